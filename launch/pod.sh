#!/usr/bin/env bash
# The command of a training pod: node.sh, with the SIGTERM that a pod gets before it is ended passed on to all of it.
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
