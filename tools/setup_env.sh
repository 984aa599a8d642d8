#!/usr/bin/env bash
# Make a virtual environment of this checkout from its pinned requirements, unless it is there. Nothing is compiled:
# torchvision stands in for mmcv's operators, on CPUs and GPUs. Variables:
#   PYTHON=python3.12   the interpreter, 3.10 to 3.13, with STACK=openmmlab to 3.12 [python3]
#   STACK=openmmlab     the original OpenMMLab packages, in .venv-openmmlab
#   MMCV_WITH_OPS=1     compile mmcv's operators, in .venv-ops or .venv-openmmlab-ops; needs a C++ compiler, for GPUs
#                       also nvcc. They are compiled once for each version of torch and Python, and kept in
#                       ${XDG_CACHE_HOME:-~/.cache}/se_mm.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python3}" stack="${STACK:-}" ops="${MMCV_WITH_OPS:+-ops}"
venv="$root/.venv${stack:+-$stack}$ops"

fail() {
    echo "error: $*" >&2
    exit 1
}

case "$stack" in
'') newest=13 requirements="$root/requirements$ops.txt" ;;
openmmlab) newest=12 requirements="$root/requirements-openmmlab.txt" ;;
*) fail "STACK=$stack is unknown: leave it out or set it to openmmlab" ;;
esac
case "${MMCV_WITH_OPS:-1}" in
1) ;;
*) fail "MMCV_WITH_OPS=$MMCV_WITH_OPS is unknown: leave it out or set it to 1" ;;
esac
command -v "$python" >/dev/null || fail "$python not found: install Python 3.10 to 3.$newest or set PYTHON"
"$python" -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, $newest))" ||
    fail "$("$python" --version) is not supported: set PYTHON to a Python 3.10 to 3.$newest"
stamp="$("$python" --version) $(cksum <"$requirements") $root"
if [ "$(cat "$venv/.complete" 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi
if [ -n "$ops" ]; then
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.isfile(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
        fail "$python has no headers to compile mmcv with: apt-get install python3-dev"
    command -v "${CXX:-c++}" >/dev/null ||
        fail "no C++ compiler found to compile mmcv with: apt-get install g++, or leave out MMCV_WITH_OPS"
fi

if [ -e "$venv" ] && [ ! -e "$venv/.setup_env" ] && [ ! -e "$venv/.complete" ]; then
    fail "$venv exists and is not of this script: move it away or delete it"
fi

started=$SECONDS
step() {
    echo "[$1/3 $((SECONDS - started)) s] $2"
}

step 1 "packages into $venv: 6 GB, 1 to 3 minutes"
rm -rf "$venv"
mkdir "$venv"
touch "$venv/.setup_env" # may be replaced, also if what follows is interrupted
"$python" -m venv "$venv" || fail "$python cannot make virtual environments: apt-get install python3-venv"
export PATH="$venv/bin:$PATH" PIP_DISABLE_PIP_VERSION_CHECK=1
quiet=-q
if [ -t 1 ]; then quiet=''; fi # pip's progress is for terminals
mmcv="$(grep -Eo '^(onedl-)?mmcv==[^ ]*' "$requirements")"
grep -v "^$mmcv" "$requirements" >"$venv/requirements.txt"
grep -E '^(pip|setuptools|wheel)==' "$venv/requirements.txt" >"$venv/build.txt"
# --no-deps: the list is complete, but for opencv-python, which headless OpenCV replaces.
python -m pip install -q --no-deps -r "$venv/build.txt"
python -m pip install $quiet --no-deps -r "$venv/requirements.txt"

# Compile mmcv's operators into the cache, as a wheel, unless it is there. Sets wheel.
compile_mmcv() {
    # Operators for GPUs need a GPU to compile for and the nvcc of torch's CUDA.
    local device partial build begun
    device="$(python - <<'EOF'
import shutil, subprocess, torch
device = 'cpu'
if torch.cuda.is_available():
    version = subprocess.run(['nvcc', '--version'], capture_output=True, text=True).stdout if shutil.which('nvcc') else ''
    arch = sorted({f'{a}{b}' for a, b in map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))})
    right = f'release {torch.version.cuda.split(".")[0]}.' in version
    device = 'cuda-sm' + '-'.join(arch) if right else f'no nvcc of CUDA {torch.version.cuda}'
print(device)
EOF
)"
    if [[ "$device" == no* ]]; then
        fail "a GPU is here, but $device to compile mmcv with: install that CUDA toolkit, or leave out MMCV_WITH_OPS"
    fi
    wheel="${XDG_CACHE_HOME:-$HOME/.cache}/se_mm/${mmcv/==/-}-$(python -c 'import platform, sys, torch
print(f"torch{torch.__version__}-cp{sys.version_info[0]}{sys.version_info[1]}-{platform.machine()}")')-$device"
    if [ -d "$wheel" ]; then
        step 2 "mmcv's operators, compiled before: $wheel"
        return
    fi
    step 2 "mmcv's operators for $device are compiled: 8 to 15 minutes on 2 cores, once"
    partial="$wheel.$$"
    mkdir -p "$partial"
    if [ "$device" = cpu ]; then export CUDA_VISIBLE_DEVICES='' FORCE_CUDA=0; else export FORCE_CUDA=1; fi
    # --no-cache-dir: pip would take any mmcv that it built before, for whatever torch.
    set -m # the build in a process group of its own, so that it can be ended with all its compilers
    MAX_JOBS="${MAX_JOBS:-$(nproc)}" python -m pip wheel --no-cache-dir --no-build-isolation --no-deps \
        -w "$partial" "$mmcv" >"$venv/mmcv.log" 2>&1 &
    build=$!
    set +m
    # shellcheck disable=SC2064  # the values of now
    trap "kill -- -$build 2>/dev/null || true; rm -rf '$partial'" EXIT
    begun=$SECONDS
    while kill -0 "$build" 2>/dev/null; do
        sleep 5
        if (((SECONDS - begun) % 60 < 5)); then echo "      $(((SECONDS - begun) / 60)) min"; fi
    done
    wait "$build" || { tail -n 20 "$venv/mmcv.log" >&2; fail "mmcv did not compile, see $venv/mmcv.log"; }
    mv -T "$partial" "$wheel" 2>/dev/null || [ -d "$wheel" ]
}

if [ -n "$ops" ]; then
    compile_mmcv
    python -m pip install -q --no-deps "$wheel"/*.whl
else
    step 2 "mmcv without compiled operators"
    # Build isolation hides torch from mmcv's setup, which then compiles nothing. The original mmcv has a wheel for that.
    # --no-cache-dir: pip would take a compiled one that it built before.
    python -m pip install -q --no-cache-dir --no-deps "${mmcv/#mmcv==/mmcv-lite==}"
fi

step 3 "se_mm itself, editable"
# The warning is that folders of the checkout can be imported, which is what editable is for.
PYTHONWARNINGS=ignore python -m pip install -q --no-deps --no-build-isolation -e "$root"
python -c 'import se_mm.mmcv_ext, mmdet, mmpretrain, mmcv.ops' || fail "the environment does not import, see above"
echo "$stamp" >"$venv/.complete"
step 3 "done: source $venv/bin/activate"
