#!/usr/bin/env bash
# Runs vidvq on hosts that plain ssh reaches without a password, and that share a file system:
#
#   HOSTFILE=hosts launch/ssh.sh train CONFIG [KEY=VALUE]...
#
# HOSTFILE     lines of `host slots=8`: training processes there; the first host is where they meet
# NODES        how many of them (all)
# PORT         where they meet (29500)
# NODE_SCRIPT  node.sh, where all hosts see it (launch/node.sh)
# PYTHON       the interpreter, on all hosts
set -euo pipefail

"${PYTHON:-python}" -m vidvq.submit.fanout --hostfile "$HOSTFILE" --nodes "${NODES:-0}" --port "${PORT:-29500}" -- \
  bash "${NODE_SCRIPT:-launch/node.sh}" "$@"
