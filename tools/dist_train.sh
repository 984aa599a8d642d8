#!/usr/bin/env bash
# tools/dist_train.sh CONFIG GPUS [options of train.py]
# Without GPUs, GPUS is a number of CPU processes. Several machines: NNODES, NODE_RANK, MASTER_ADDR, PORT.
# RESTARTS=3 starts all processes again, up to 3 times, after one has failed, from the latest checkpoint.
set -euo pipefail
if [ $# -lt 2 ] || ! [[ $2 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: $0 CONFIG GPUS [options of train.py]" >&2
    exit 2
fi
restarts="${RESTARTS:-0}" resume=()
if ! [[ $restarts =~ ^[0-9]+$ ]]; then
    echo "error: RESTARTS=$restarts: a number of restarts, such as 3" >&2
    exit 2
fi
if [ "$restarts" -gt 0 ] && [[ " ${*:3} " != *" --resume"* ]]; then resume=(--resume); fi
tools="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}"
exec python "$tools/launch.py" \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$2" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    --max_restarts="$restarts" \
    "$tools/train.py" "$1" --launcher pytorch "${@:3}" ${resume[@]+"${resume[@]}"}
