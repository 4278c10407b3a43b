#!/usr/bin/env bash
# Trains on every device of one or more machines. Run the same line on each machine, each with a rank of its own:
#
#   NNODES=2 NODE_RANK=0 HEAD=node0:29500 launch/torchrun.sh CONFIG [KEY=VALUE]...
#
# NNODES     machines (1)
# NODE_RANK  which of them this is, from 0 (0 where there is one)
# NPROC      processes on this machine (one per GPU, or 1 without a GPU)
# HEAD       host:port of machine 0, that all of them reach (127.0.0.1:29500); the job uses the network that leads there.
#            GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name another.
set -euo pipefail

python=${PYTHON:-python}
nproc=${NPROC:-$("$python" -c 'import torch; print(max(torch.cuda.device_count(), 1))')}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

head=${HEAD:-127.0.0.1:29500}
nodes=${NNODES:-1}
if [ "$nodes" -gt 1 ]; then
  if [ -z "${NODE_RANK:-}" ]; then
    echo "NODE_RANK is not set; it says which of the $nodes machines this is, from 0; machine 0 is that of HEAD=$head" >&2
    exit 2
  fi
  # Gloo would take the interface that the machine's name stands for, which is often the loopback.
  interface=$("$python" -m vidvq.submit.route "$head")
  export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$interface}
fi

# Ranks that are told, and no c10d rendezvous: that asks machine 0 all the time, and where it has lost its power torchrun
# waits for the answer long after its processes have ended.
exec "$python" -m torch.distributed.run --nnodes "$nodes" --node-rank "${NODE_RANK:-0}" \
  --master-addr "${head%:*}" --master-port "${head##*:}" --nproc-per-node "$nproc" -m vidvq train "$@"
