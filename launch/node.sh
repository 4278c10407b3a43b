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
# GPUS       that each machine must have (0)
# SHARED     a path that all machines must be able to write (the current directory)
# CPUS       that Ray may use on this machine (all)
# PYTHON     the interpreter (python)
# RAY_AUTH_TOKEN, RAY_AUTH_MODE=token  keep strangers out of the Ray cluster; `vidvq submit` sets both
#
# The machines are looked at first (GPUs, disk, versions, whether they reach one another): within a minute it says no.
set -euo pipefail
# A signal to all of the group is for the command that runs; this waits for it.
trap 'exit 143' TERM

python=${PYTHON:-python}
nodes=${NODES:-1} rank=${NODE_RANK:-0} head=${HEAD:-127.0.0.1:29500}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

found=$("$python" -m vidvq.submit.preflight --head "$head" --nodes "$nodes" --rank "$rank" \
  --gpus "${GPUS:-0}" --shared "${SHARED:-$PWD}")
read -r address interface <<<"$found"

if [ "$1" = train ]; then
  nproc=${NPROC:-$("$python" -c 'import torch; print(max(torch.cuda.device_count(), 1))')}
  where=(--standalone)
  if [ "$nodes" -gt 1 ]; then
    where=(--nnodes "$nodes" --node-rank "$rank" --master-addr "${head%:*}" --master-port "${head##*:}")
    # Gloo would take the interface that the machine's name stands for, which is often the loopback.
    export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$interface}
  fi
  # Saving a large model takes longer than the 30 s that torchrun would allow.
  export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}
  "$python" -m torch.distributed.run "${where[@]}" --nproc-per-node "$nproc" -m vidvq "$@"
elif [ "$nodes" = 1 ]; then
  "$python" -m vidvq "$@"
else
  ray=("$python" -m ray.scripts.scripts start --block --disable-usage-stats "--node-ip-address=$address")
  if [ -n "${CPUS:-}" ]; then
    ray+=("--num-cpus=$CPUS")
  fi
  # When the job is over nothing is left to be drained.
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
