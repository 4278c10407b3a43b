#!/usr/bin/env bash
# Runs vidvq on all nodes of a Slurm job, one task per node. `vidvq submit --backend slurm` writes this script; by hand:
#
#   sbatch -N 2 --ntasks-per-node 1 --gpus-per-node 8 --signal B:USR2@120 --requeue --open-mode append \
#     launch/slurm.sh train CONFIG [KEY=VALUE]...
#
# NODE_SCRIPT  path of node.sh, visible on all nodes (default: launch/node.sh); it reads NPROC, GPUS, CPUS, SHARED, PYTHON
#
# A job of an array (sbatch --array=0-7) processes its own part of the corpus first, then takes work from the others.
#
# Shortly before the time limit Slurm sends USR2: training saves, and the job is requeued and resumes. So is a job whose
# tasks receive SIGTERM, which Slurm sends to a job that it preempts.
set -euo pipefail

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  set -- "$@" "runtime.part=$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
fi
hosts=$(scontrol show hostnames "${SLURM_JOB_NODELIST:?this script runs in a Slurm job; start it with sbatch}")
head=${hosts%%$'\n'*}
# The address that Slurm itself uses; the node's name need not resolve.
described=$(scontrol show node --oneliner "$head")
address=$head
if [[ $described =~ NodeAddr=([^ ]+) ]]; then
  address=${BASH_REMATCH[1]}
fi
export NODES=$SLURM_NNODES HEAD="$address:$((20000 + SLURM_JOB_ID % 12000))"
RAY_AUTH_TOKEN=$("${PYTHON:-python}" -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token

action=
trap 'action=requeue; scancel --signal=TERM "$SLURM_JOB_ID"' USR2
trap 'action=stop; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
# The variables expand in each task. A task that was asked to stop exits with 0, because a failure would end the others,
# which may still be saving. That of this node, the first, leaves a file.
STOPPED=$(mktemp -u)
export STOPPED
# shellcheck disable=SC2016
task='trap stopped=1 TERM
NODE_RANK=$SLURM_NODEID bash "$0" "$@" && exit
code=$?
[ -n "${stopped:-}" ] || exit "$code"
[ "$SLURM_NODEID" != 0 ] || : >"$STOPPED"'
srun --ntasks-per-node=1 --kill-on-bad-exit=1 --wait=0 --label bash -c "$task" "${NODE_SCRIPT:-launch/node.sh}" "$@" &
step=$!
if [ "$action" = stop ]; then
  kill "$step"
fi

while :; do
  before=$action code=0
  wait "$step" || code=$?
  # A signal interrupts `wait`, not the step.
  if [ "$action" = "$before" ]; then
    break
  fi
done
reason="time limit reached"
if [ -e "$STOPPED" ]; then
  rm "$STOPPED"
  if [ -z "$action" ]; then
    action=requeue reason="stopped by SIGTERM"
  fi
fi
if [ "$action" = requeue ]; then
  echo "$reason: requeued"
  scontrol requeue "$SLURM_JOB_ID"
  sleep 60
elif [ "$action" = stop ]; then
  code=143
fi
exit "$code"
