#!/usr/bin/env bash
# Install what users install, in one line and an empty environment, then draw data, train a detector and evaluate it
# outside of the checkout. No compiler is on PATH. Arguments: the extra [onedl], the folder to work in [a temporary
# one, deleted at the end]. PYTHON names the interpreter. Downloads 3 GB.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
extra="${1:-onedl}"
folder="${2:-}"
python="$("${PYTHON:-python3}" -c 'import sys; print(sys.executable)')"
if [ -z "$folder" ]; then
    folder="$(mktemp -d)"
    trap 'rm -rf "$folder"' EXIT
fi
mkdir -p "$folder"/{bin,source,work}

# PATH without compilers
for file in /usr/bin/* /bin/*; do
    case "${file##*/}" in
    *c++* | *g++* | *gcc* | cc | c89* | c99* | clang* | nvcc*) ;;
    *) ln -sf "$file" "$folder/bin/" ;;
    esac
done
export PATH="$folder/env/bin:$folder/bin" PYTHONPATH='' OMP_NUM_THREADS=1 PIP_DISABLE_PIP_VERSION_CHECK=1
unset CC CXX

# What is committed, in a folder of its own, since pip builds in place.
git -C "$root" archive HEAD | tar -x -C "$folder/source"
"$python" -m venv "$folder/env"
cd "$folder/work"
set -x
time pip install -q "$folder/source[$extra]"
pip check
tools="$(python -c 'import importlib.util as i; print(i.find_spec("se_mm").submodule_search_locations[0])')/.mim/tools"
python "$tools/draw_data.py" data
time bash "$tools/dist_train.sh" se_mm::quickstart/faster_rcnn_se_r18_shapes.py 2 --cfg-options train_cfg.max_epochs=1
time bash "$tools/dist_test.sh" se_mm::quickstart/faster_rcnn_se_r18_shapes.py \
    work_dirs/faster_rcnn_se_r18_shapes/epoch_1.pth 2
python -c 'import json; print(json.load(open("work_dirs/faster_rcnn_se_r18_shapes/metrics.json"))["metrics"])'
