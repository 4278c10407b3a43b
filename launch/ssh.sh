#!/usr/bin/env bash
# Runs vidvq on hosts that share a file system and accept ssh without a password:
#
#   HOSTFILE=hosts launch/ssh.sh train CONFIG [KEY=VALUE]...
#
# HOSTFILE     file with lines of `host slots=8`, the training processes per host; the first host is the rendezvous
# NODES        number of hosts to use, from the top (default: all)
# PORT         port of the rendezvous (default: 29500)
# NODE_SCRIPT  path of node.sh, visible on all hosts (default: launch/node.sh)
# PYTHON       Python interpreter on all hosts (default: python)
set -euo pipefail

"${PYTHON:-python}" -m vidvq.submit.ssh_launcher --hostfile "${HOSTFILE:?set it to the hostfile}" --nodes "${NODES:-0}" \
  --port "${PORT:-29500}" -- bash "${NODE_SCRIPT:-launch/node.sh}" "$@"
