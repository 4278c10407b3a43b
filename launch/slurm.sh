#!/usr/bin/env bash
# Runs vidvq on all machines of a Slurm job, one task on each. `vidvq submit --backend slurm` writes the same; by hand:
#
#   sbatch -N 2 --ntasks-per-node 1 --gpus-per-node 8 --signal B:USR2@120 --requeue --open-mode append \
#     launch/slurm.sh train CONFIG [KEY=VALUE]...
#
# NODE_SCRIPT  node.sh, where all machines see it (launch/node.sh); it reads NPROC, GPUS, CPUS, SHARED, PYTHON
#
# In a job of an array (sbatch --array=0-7) it works on its part of the corpus first, then helps with the others'.
#
# Shortly before its time is up Slurm sends USR2: training saves, and the job is queued again and goes on.
set -euo pipefail

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  set -- "$@" "runtime.part=$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
fi
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts%%$'\n'*}
# As Slurm reaches it: a node's name need not be known to the resolver.
told=$(scontrol show node --oneliner "$head")
address=$head
if [[ $told =~ NodeAddr=([^ ]+) ]]; then
  address=${BASH_REMATCH[1]}
fi
export NODES=$SLURM_NNODES HEAD="$address:$((20000 + SLURM_JOB_ID % 12000))"
RAY_AUTH_TOKEN=$("${PYTHON:-python}" -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token

asked=
trap 'asked=requeue; scancel --signal=TERM "$SLURM_JOB_ID"' USR2
trap 'asked=stop; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
# The variables are each task's own. A task that was asked to stop is no failure that would end the others, which may
# still be saving.
# shellcheck disable=SC2016
task='trap stopped=1 TERM; NODE_RANK=$SLURM_NODEID bash "$0" "$@" || [ -n "${stopped:-}" ]'
srun --ntasks-per-node=1 --kill-on-bad-exit=1 --wait=0 --label bash -c "$task" "${NODE_SCRIPT:-launch/node.sh}" "$@" &
step=$!
if [ "$asked" = stop ]; then
  kill "$step"
fi

while :; do
  before=$asked code=0
  wait "$step" || code=$?
  # A signal ends the waiting, not the step.
  if [ "$asked" = "$before" ]; then
    break
  fi
done
if [ "$asked" = requeue ]; then
  echo "time is up: queued again"
  scontrol requeue "$SLURM_JOB_ID"
  sleep 60
elif [ "$asked" = stop ]; then
  code=143
fi
exit "$code"
