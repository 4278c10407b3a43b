#!/usr/bin/env bash
# Trains on every device of one or more machines. Run the same line on each machine:
#
#   NNODES=2 HEAD=node0:29500 launch/torchrun.sh CONFIG [KEY=VALUE]...
#
# NNODES  machines (1)
# NPROC   processes on this machine (one per GPU, or 1 without a GPU)
# HEAD    host:port of one of the machines, that all of them reach (127.0.0.1:29500); the job uses the network that leads
#         there. GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name another.
set -euo pipefail

python=${PYTHON:-python}
nproc=${NPROC:-$("$python" -c 'import torch; print(max(torch.cuda.device_count(), 1))')}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

head=${HEAD:-127.0.0.1:29500}
nodes=${NNODES:-1}
where=(--nnodes "$nodes" --rdzv-backend c10d --rdzv-endpoint "$head" --rdzv-id vidvq)
if [ "$nodes" -gt 1 ]; then
  # By itself torchrun takes the machine's name for its address, and so may find nobody at HEAD.
  route=$("$python" -m vidvq.submit.route "$head")
  read -r address here interface <<<"$route"
  export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$interface}
  where+=(--local-addr "$address" --rdzv-conf "is_host=$here")
fi

exec "$python" -m torch.distributed.run "${where[@]}" --nproc-per-node "$nproc" -m vidvq train "$@"
