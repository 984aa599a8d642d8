#!/usr/bin/env bash
# Set up the virtual environment, then lint and test. Arguments go to pytest.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
"$root/tools/setup_env.sh"
export PATH="$root/.venv/bin:$PATH"
if [ "$(cat "$root/.venv/.device")" = cpu ]; then export CUDA_VISIBLE_DEVICES=''; fi
cd "$root"
python -m ruff check .
python -m ruff format --check .
shellcheck tools/*.sh .ci/run
exec python -m pytest "$@"
