#!/usr/bin/env bash
# Runs one machine's part of a vidvq job: training under torchrun, all else on a Ray cluster. Run it on each machine:
#
#   NODES=2 NODE_RANK=0 HEAD=node0:29500 launch/node.sh train CONFIG [KEY=VALUE]...
#   NODES=2 NODE_RANK=0 HEAD=node0:29500 launch/node.sh shard VIDEOS... --out DIR
#
# NODES      machines (1)
# NODE_RANK  which of them this is (0)
# HEAD       host:port of machine 0, that all of them reach (127.0.0.1:29500)
# NPROC      training processes on this machine (one per GPU, or 1 without a GPU)
# GPUS       that this machine must have (0)
# SHARED     a path that all machines must be able to write (the current directory)
# PYTHON     the interpreter (python)
# RAY_AUTH_TOKEN, RAY_AUTH_MODE=token  keep strangers out of the Ray cluster; `vidvq submit` sets both
set -euo pipefail

python=${PYTHON:-python}
nodes=${NODES:-1} rank=${NODE_RANK:-0} head=${HEAD:-127.0.0.1:29500}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
verb=$1

if [ "$verb" = train ]; then
  nproc=${NPROC:-$("$python" -c 'import torch; print(max(torch.cuda.device_count(), 1))')}
  if [ "$nodes" = 1 ]; then
    where=(--standalone)
  else
    where=(--nnodes "$nodes" --node-rank "$rank" --master-addr "${head%:*}" --master-port "${head##*:}")
  fi
  # Saving a large model takes longer than the 30 s that torchrun would allow.
  export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}
  "$python" -m torch.distributed.run "${where[@]}" --nproc-per-node "$nproc" -m vidvq "$@"
else
  "$python" -m vidvq "$@"
fi
