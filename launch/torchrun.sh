#!/usr/bin/env bash
# Trains on every device of one or more machines. Run the same line on each machine:
#
#   NNODES=2 HEAD=node0:29500 launch/torchrun.sh CONFIG [KEY=VALUE]...
#
# NNODES  machines (1)
# NPROC   processes on this machine (one per GPU, or 1 without a GPU)
# HEAD    host:port of one of the machines, that all of them reach (127.0.0.1:29500)
# On machines with several networks, name the one to use: GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME.
set -euo pipefail

python=${PYTHON:-python}
nproc=${NPROC:-$("$python" -c 'import torch; print(max(torch.cuda.device_count(), 1))')}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

exec "$python" -m torch.distributed.run \
  --nnodes "${NNODES:-1}" --nproc-per-node "$nproc" \
  --rdzv-backend c10d --rdzv-endpoint "${HEAD:-127.0.0.1:29500}" --rdzv-id vidvq \
  -m vidvq train "$@"
