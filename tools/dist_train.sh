#!/usr/bin/env bash
# tools/dist_train.sh CONFIG GPUS [options of train.py]
# Without GPUs, GPUS is a number of CPU processes. Several machines: NNODES, NODE_RANK, MASTER_ADDR, PORT.
# RESTARTS=3: after a process has failed, all are started again from the latest checkpoint, up to 3 times.
set -euo pipefail
if [ $# -lt 2 ] || ! [[ $2 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: $0 CONFIG GPUS [options of train.py]" >&2
    exit 2
fi
if ! [[ ${RESTARTS:-0} =~ ^[0-9]+$ ]]; then
    echo "error: RESTARTS=$RESTARTS: give a number of restarts, such as 3" >&2
    exit 2
fi
tools="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}"
exec python "$tools/launch.py" \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$2" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" --max_restarts="${RESTARTS:-0}" \
    "$tools/train.py" "$1" --launcher pytorch "${@:3}"
