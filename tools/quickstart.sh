#!/usr/bin/env bash
# Set up, then train and evaluate SE and plain networks on drawn data and compare them.
# Can be interrupted and run again: finished parts are kept. Delete work_dirs/quickstart to start over.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
"$root/tools/setup_env.sh"
export PATH="$root/.venv${STACK:+-$STACK}${MMCV_WITH_OPS:+-ops}/bin:$PATH"
cd "$root"
exec python tools/quickstart.py "$@"
