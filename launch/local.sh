#!/usr/bin/env bash
# Runs a vidvq command line on this machine: training on NPROC processes, everything else as it is.
#
#   NPROC=8 launch/local.sh train CONFIG [KEY=VALUE]...
set -euo pipefail

python=${PYTHON:-python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

if [ "$1" = train ] && [ "${NPROC:-1}" -gt 1 ]; then
  "$python" -m torch.distributed.run --standalone --nproc-per-node "$NPROC" -m vidvq "$@"
else
  "$python" -m vidvq "$@"
fi
