#!/usr/bin/env bash
# Make the virtual environment .venv of this checkout from requirements.txt, unless it is there.
# With STACK=openmmlab: .venv-openmmlab with the original OpenMMLab packages, from requirements-openmmlab.txt.
# mmcv's operators are compiled once for each version of torch and Python and kept in
# ${XDG_CACHE_HOME:-~/.cache}/se_mm. PYTHON names the interpreter (3.10 to 3.13, the original
# packages to 3.12) [python3].
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
case "${STACK:-}" in
'') suffix='' newest=13 ;;
openmmlab) suffix=-openmmlab newest=12 ;;
*) echo "error: STACK=$STACK is unknown: leave it out or set it to openmmlab" >&2 && exit 1 ;;
esac
venv="$root/.venv$suffix"
requirements="$root/requirements$suffix.txt"
python="${PYTHON:-python3}"

fail() {
    echo "error: $*" >&2
    exit 1
}

command -v "$python" >/dev/null || fail "$python not found: install Python 3.10 to 3.$newest or set PYTHON"
"$python" -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, $newest))" ||
    fail "$("$python" --version) is not supported: set PYTHON to a Python 3.10 to 3.$newest"
stamp="$("$python" --version) $(cksum <"$requirements") $root"
if [ "$(cat "$venv/.complete" 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi
"$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.isfile(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
    fail "$python has no headers to compile mmcv with: apt-get install python3-dev"
command -v "${CXX:-c++}" >/dev/null || fail "no C++ compiler found: install one (apt-get install g++) to compile mmcv"

echo "[1/3] packages into $venv (2 minutes and 6 GB)"
rm -rf "$venv"
"$python" -m venv "$venv" || fail "$python cannot make virtual environments: apt-get install python3-venv"
export PATH="$venv/bin:$PATH" PIP_DISABLE_PIP_VERSION_CHECK=1
mmcv="$(grep -Eo '^(onedl-)?mmcv==[^ ]*' "$requirements")"
# --no-deps: the list is complete, but for opencv-python, which headless OpenCV replaces.
grep -v "^$mmcv" "$requirements" >"$venv/requirements.txt"
grep -E '^(setuptools|wheel|packaging)==' "$venv/requirements.txt" >"$venv/build.txt"
python -m pip install -q --no-deps -r "$venv/build.txt"
python -m pip install -q --no-deps -r "$venv/requirements.txt"

# CUDA operators need a GPU to compile for and the nvcc of torch's CUDA.
device="$(python - <<'EOF'
import shutil, subprocess, torch
device = 'cpu'
if torch.cuda.is_available() and shutil.which('nvcc'):
    version = subprocess.run(['nvcc', '--version'], capture_output=True, text=True).stdout
    if f'release {torch.version.cuda.split(".")[0]}.' in version:
        device = 'cuda-sm' + '-'.join(sorted({f'{a}{b}' for a, b in map(
            torch.cuda.get_device_capability, range(torch.cuda.device_count()))}))
print(device)
EOF
)"
echo "$device" >"$venv/.device"
if [ "$device" = cpu ] && python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "A GPU is here, but no nvcc of CUDA $(python -c 'import torch; print(torch.version.cuda)') to compile mmcv for it:"
    echo "the CPU is used. To use the GPU, install that CUDA toolkit, delete $venv and run this again."
fi
key="$(python -c 'import platform, sys, torch
print(f"torch{torch.__version__}-cp{sys.version_info[0]}{sys.version_info[1]}-{platform.machine()}")')"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/se_mm/${mmcv/==/-}-$key-$device"
if [ ! -d "$cache" ]; then
    echo "[2/3] compiling mmcv's operators for $key, $device: 8 to 15 minutes on 2 cores, once"
    partial="$cache.$$"
    mkdir -p "$partial"
    if [ "$device" = cpu ]; then export CUDA_VISIBLE_DEVICES='' FORCE_CUDA=0; else export FORCE_CUDA=1; fi
    # --no-cache-dir: pip would take any mmcv that it built before, for whatever torch.
    set -m # the build in a process group of its own, so that it can be ended with all its compilers
    MMCV_WITH_OPS=1 MAX_JOBS="${MAX_JOBS:-$(nproc)}" \
        python -m pip wheel --no-cache-dir --no-build-isolation --no-deps -w "$partial" "$mmcv" >"$venv/mmcv.log" 2>&1 &
    build=$!
    set +m
    trap 'kill -- "-$build" 2>/dev/null || true; rm -rf "$partial"' EXIT
    started=$SECONDS
    while kill -0 "$build" 2>/dev/null; do
        sleep 5
        if (((SECONDS - started) % 60 < 5)); then echo "      $(((SECONDS - started) / 60)) min"; fi
    done
    wait "$build" || { tail -n 20 "$venv/mmcv.log" >&2; fail "mmcv did not compile, see $venv/mmcv.log"; }
    mv -T "$partial" "$cache" 2>/dev/null || [ -d "$cache" ]
else
    echo "[2/3] mmcv compiled before: $cache"
fi
python -m pip install -q --no-deps "$cache"/*.whl

echo "[3/3] se_mm itself, editable"
python -m pip install -q --no-deps --no-build-isolation -e "$root"
python -c 'import se_mm, mmdet, mmpretrain, mmcv.ops' || fail "the environment does not import, see above"
echo "$stamp" >"$venv/.complete"
