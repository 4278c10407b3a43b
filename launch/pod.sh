#!/usr/bin/env bash
# Command of a training pod: runs node.sh and forwards the pod's SIGTERM to its whole process group.
set -euo pipefail

setsid bash "$(dirname "$0")/node.sh" "$@" &
node=$!
stopped=
trap 'stopped=1; kill -TERM -- "-$node"' TERM
while :; do
  before=$stopped code=0
  wait "$node" || code=$?
  if [ "$stopped" = "$before" ]; then
    exit "$code"
  fi
done
