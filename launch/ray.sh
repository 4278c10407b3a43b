#!/usr/bin/env bash
# Runs vidvq on the Ray cluster that this machine belongs to; what `vidvq submit --backend ray` sends as the job's command.
#
#   CONFIG=config.yaml launch/ray.sh tokenize CLIPS --checkpoint CHECKPOINT --out DIR
#
# All machines of the cluster must see the paths.
set -euo pipefail

exec "${PYTHON:-python}" -m vidvq "$@" --config "${CONFIG:-config.yaml}" runtime.address=auto
