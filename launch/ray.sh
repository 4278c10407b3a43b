#!/usr/bin/env bash
# Runs vidvq on this node's Ray cluster. `vidvq submit` uses it as the command of a Ray job and of a RayJob.
#
#   CONFIG=config.yaml SHARED=DIR launch/ray.sh tokenize CLIPS --checkpoint CHECKPOINT --out DIR
#
# CONFIG  file with the settings (default: config.yaml)
# SHARED  path that all nodes must be able to write; if unset, the preflight check is skipped
# PYTHON  Python interpreter (default: python)
#
# A preflight check of all nodes (disk, versions, shared path) runs first and fails within a minute.
set -euo pipefail

# An absolute path: on nodes that share a disk, Ray replaces the job's folder for each node that joins, while this process
# keeps the old one as its working directory.
config=$(realpath "${CONFIG:-config.yaml}")
exec "${PYTHON:-python}" -m vidvq.cli.ray_job "$@" --config "$config" runtime.address=auto
