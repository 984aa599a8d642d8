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
# memory that takes minutes less than on a disk. It needs memory to spare, and programs have to run from there.
spare="$(awk '/^MemAvailable/ { print $2 }' /proc/meminfo 2>/dev/null || true)" # KiB
space="$(df --output=avail /dev/shm 2>/dev/null | tail -n 1 || true)"           # KiB
if [ -z "${TMPDIR:-}" ] && [ "${spare:-0}" -gt $((14 << 20)) ] && [ "${space:-0}" -gt $((4 << 20)) ]; then
  folder="$(mktemp -d -p /dev/shm)"
  trap 'rm -rf "$folder"' EXIT
  printf '#!/bin/sh\n' >"$folder/program"
  chmod +x "$folder/program"
  if "$folder/program" 2>/dev/null; then
    export TMPDIR="$folder"
  fi
fi
# One process a core, of one thread each; a process takes up to 5 GB.
export OMP_NUM_THREADS=1
# Idle processes take over tests of busy ones: the long tests lie side by side.
python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal "$@"
