#!/usr/bin/env bash
# Runs vidvq on the Ray cluster that this machine belongs to; what `vidvq submit` has a Ray job and a RayJob do.
#
#   CONFIG=config.yaml SHARED=DIR launch/ray.sh tokenize CLIPS --checkpoint CHECKPOINT --out DIR
#
# CONFIG  the settings (config.yaml)
# SHARED  a path that all machines must be able to write; without it that is not looked at
# PYTHON  the interpreter (python)
#
# The machines are looked at first (disk, versions, the shared path): within a minute it says no.
set -euo pipefail

# By its whole path: where nodes share a disk, Ray unpacks a job's folder anew for each, and this process stays in the old.
config=$(realpath "${CONFIG:-config.yaml}")
exec "${PYTHON:-python}" -m vidvq.cli.ray_job "$@" --config "$config" runtime.address=auto
