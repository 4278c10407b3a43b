#!/usr/bin/env bash
# Trains on all GPUs of one or more nodes. Run the same command on each node, each with its own NODE_RANK:
#
#   NNODES=2 NODE_RANK=0 HEAD=node0:29500 launch/torchrun.sh [train] CONFIG [KEY=VALUE]...
#   NNODES=2 NODE_RANK=0 HEAD=node0:29500 launch/torchrun.sh generate train TOKENS... --out RUN
#
# NNODES     number of nodes (default: 1)
# NODE_RANK  number of this node, from 0; required if NNODES > 1
# NPROC      processes on this node (default: one per GPU, or 1 without a GPU)
# HEAD       HOST:PORT of node 0, reachable from all nodes (default: 127.0.0.1:29500). The job uses the network that
#            leads there; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME select another.
set -euo pipefail

python=${PYTHON:-python}
nproc=${NPROC:-$("$python" -c 'import torch; print(max(torch.cuda.device_count(), 1))')}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Saving a large model takes longer than torchrun's default of 30 s.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}

head=${HEAD:-127.0.0.1:29500}
nodes=${NNODES:-1}
if [ "$nodes" -gt 1 ]; then
  if [ -z "${NODE_RANK:-}" ]; then
    echo "NODE_RANK is not set; set it to the number of this node, 0 to $((nodes - 1)); node 0 is the host of HEAD=$head" >&2
    exit 2
  fi
  # By default Gloo binds to the interface that the host name resolves to, which is often the loopback.
  interface=$("$python" -m vidvq.submit.network "$head")
  export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$interface}
fi

case "${1:-} ${2:-}" in
  "train "* | "generate train") ;;
  *) set -- train "$@" ;;
esac

# Static ranks instead of the c10d rendezvous, which polls node 0: if node 0 loses power, torchrun waits for an answer long
# after its processes have ended.
exec "$python" -m torch.distributed.run --nnodes "$nodes" --node-rank "${NODE_RANK:-0}" \
  --master-addr "${head%:*}" --master-port "${head##*:}" --nproc-per-node "$nproc" -m vidvq "$@"
