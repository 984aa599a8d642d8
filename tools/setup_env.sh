#!/usr/bin/env bash
# Make the virtual environment .venv of this checkout from requirements.txt, unless it is there.
# mmcv's operators are compiled once for each version of torch and Python and kept in
# ${XDG_CACHE_HOME:-~/.cache}/se_mm. PYTHON names the interpreter (3.10 to 3.13) [python3].
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"
python="${PYTHON:-python3}"

fail() {
    echo "error: $*" >&2
    exit 1
}

command -v "$python" >/dev/null || fail "$python not found: install Python 3.10 to 3.13 or set PYTHON"
"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' ||
    fail "$("$python" --version) is not supported: set PYTHON to a Python 3.10 to 3.13"
stamp="$("$python" --version) $(cksum <"$root/requirements.txt") $root"
if [ "$(cat "$venv/.complete" 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi
command -v "${CXX:-c++}" >/dev/null || fail "no C++ compiler found: install one (apt-get install g++) to compile mmcv"

echo "[1/3] packages into $venv (2 minutes and 6 GB)"
rm -rf "$venv"
"$python" -m venv "$venv" || fail "$python cannot make virtual environments: apt-get install python3-venv"
export PATH="$venv/bin:$PATH" PIP_DISABLE_PIP_VERSION_CHECK=1
mmcv="$(grep -o '^onedl-mmcv==[^ ]*' "$root/requirements.txt")"
# --no-deps: the list is complete, but for opencv-python, which headless OpenCV replaces.
grep -v '^onedl-mmcv==' "$root/requirements.txt" >"$venv/requirements.txt"
grep -E '^(setuptools|wheel|packaging)==' "$venv/requirements.txt" >"$venv/build.txt"
python -m pip install -q --no-deps -r "$venv/build.txt"
python -m pip install -q --no-deps -r "$venv/requirements.txt"

device=cpu
if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    if command -v nvcc >/dev/null || [ -n "${CUDA_HOME:-}" ]; then
        device=cuda
    else
        echo "A GPU is here but no nvcc to compile mmcv for it: detection will run on the CPU."
        echo "Install the CUDA toolkit of torch's version, delete $venv and run this again to use the GPU."
    fi
fi
key="$(python -c 'import platform, sys, torch
print(f"torch{torch.__version__}-cp{sys.version_info[0]}{sys.version_info[1]}-{platform.machine()}")')"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/se_mm/${mmcv/==/-}-$key-$device"
if [ ! -d "$cache" ]; then
    echo "[2/3] compiling mmcv's operators for $key, $device: 6 to 10 minutes on 2 cores, once"
    partial="$cache.$$"
    mkdir -p "$partial"
    if [ "$device" = cpu ]; then export CUDA_VISIBLE_DEVICES='' FORCE_CUDA=0; else export FORCE_CUDA=1; fi
    MMCV_WITH_OPS=1 MAX_JOBS="${MAX_JOBS:-$(nproc)}" \
        python -m pip wheel --no-build-isolation --no-deps -w "$partial" "$mmcv" >"$venv/mmcv.log" 2>&1 &
    build=$!
    trap 'kill $build 2>/dev/null || true; rm -rf "$partial"' EXIT
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
