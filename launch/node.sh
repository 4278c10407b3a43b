#!/usr/bin/env bash
# Runs one node's part of a vidvq job: training under torchrun, other commands on a Ray cluster. Run it on each node:
#
#   NODES=2 NODE_RANK=0 HEAD=node0:29500 launch/node.sh train CONFIG [KEY=VALUE]...
#   NODES=2 NODE_RANK=0 HEAD=node0:29500 launch/node.sh generate train TOKENS... --out RUN
#   NODES=2 NODE_RANK=0 HEAD=node0:29500 launch/node.sh shard VIDEOS... --out DIR
#
# NODES      number of nodes (default: 1)
# NODE_RANK  number of this node, from 0 (default: 0)
# HEAD       HOST:PORT of node 0, reachable from all nodes (default: 127.0.0.1:29500)
# NPROC      training processes on this node (default: one per GPU, or 1 without a GPU)
# GPUS       GPUs that each node must have (default: 0)
# SHARED     path that all nodes must be able to write (default: the current directory)
# CPUS       CPU cores for Ray on this node (default: all)
# PYTHON     Python interpreter (default: python)
# RAY_AUTH_TOKEN, RAY_AUTH_MODE=token  restrict access to the Ray cluster; `vidvq submit` sets both
#
# A preflight check of all nodes (GPUs, disk, versions, network) runs first and fails within a minute.
set -euo pipefail
# A signal to the process group also reaches the running command; bash waits for it before it runs the trap.
trap 'exit 143' TERM

: "${1:?give the command, such as: train CONFIG}"
python=${PYTHON:-python}
nodes=${NODES:-1} rank=${NODE_RANK:-0} head=${HEAD:-127.0.0.1:29500}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

found=$("$python" -m vidvq.submit.preflight --head "$head" --nodes "$nodes" --rank "$rank" \
  --gpus "${GPUS:-0}" --shared "${SHARED:-$PWD}")
read -r address interface <<<"$found"

if [ "$1" = train ] || [ "$1 ${2:-}" = "generate train" ]; then
  nproc=${NPROC:-$("$python" -c 'import torch; print(max(torch.cuda.device_count(), 1))')}
  where=(--standalone)
  if [ "$nodes" -gt 1 ]; then
    where=(--nnodes "$nodes" --node-rank "$rank" --master-addr "${head%:*}" --master-port "${head##*:}")
    # By default Gloo binds to the interface that the host name resolves to, which is often the loopback.
    export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$interface}
  fi
  # Saving a large model takes longer than torchrun's default of 30 s.
  export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}
  "$python" -m torch.distributed.run "${where[@]}" --nproc-per-node "$nproc" -m vidvq "$@"
elif [ "$nodes" = 1 ]; then
  "$python" -m vidvq "$@"
else
  ray=("$python" -m ray.scripts.scripts start --block --disable-usage-stats "--node-ip-address=$address")
  if [ -n "${CPUS:-}" ]; then
    ray+=("--num-cpus=$CPUS")
  fi
  # Once the job has ended there are no tasks to drain.
  export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0
  folder=$(mktemp -d)
  started=
  trap '[ -z "$started" ] || kill "$started"; wait; rm -rf "$folder"' EXIT
  if [ "$rank" -gt 0 ]; then
    "$python" -m vidvq.runtime.wait_for_cluster "$head"
    "${ray[@]}" "--address=$head" >"$folder/log" 2>&1 &
    started=$!
    "$python" -m vidvq.runtime.wait_for_cluster "$head" gone
  else
    "${ray[@]}" --head "--port=${head##*:}" --include-dashboard=false "--temp-dir=$folder" >"$folder/log" 2>&1 &
    started=$!
    "$python" -m vidvq.runtime.wait_for_cluster "$head" "$nodes" || { cat "$folder/log" && exit 1; }
    "$python" -m vidvq "$@" "runtime.address=$address:${head##*:}"
  fi
fi
