#!/usr/bin/env bash
# Set up the virtual environment, then lint and test. Arguments go to pytest.
# STACK=openmmlab tests beside the original OpenMMLab packages, MMCV_WITH_OPS=1 with mmcv's own operators (see
# setup_env.sh).
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
"$root/tools/setup_env.sh"
export PATH="$root/.venv${STACK:+-$STACK}${MMCV_WITH_OPS:+-ops}/bin:$PATH"
cd "$root"
python -m ruff check .
python -m ruff format --check .
shellcheck tools/*.sh .dev_scripts/*.sh .ci/run
lint-imports
# MMEngine copies every config file that it reads into a temporary folder, and tests write checkpoints into others. In
# memory, where there is enough, that takes minutes less than on a disk.
free="$(df --output=avail /dev/shm 2>/dev/null | tail -n 1 || true)" # KiB
if [ -z "${TMPDIR:-}" ] && [ "${free:-0}" -gt $((8 << 20)) ]; then
  TMPDIR="$(mktemp -d -p /dev/shm)"
  export TMPDIR
  trap 'rm -rf "$TMPDIR"' EXIT
fi
# One process a core, of one thread each; a process takes up to 5 GB.
export OMP_NUM_THREADS=1
# Idle processes take over tests of busy ones: the long tests lie side by side.
python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal "$@"
