"""Checks every node of a Ray cluster: run `python -m vidvq.submit.preflight_ray` on one of them.

Prints the table and the verdict of :mod:`vidvq.submit.preflight`, and exits with it: 0 if ready, 2 if not.
"""

import argparse
import os
import secrets
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from vidvq.runtime.run_on_nodes import run_on_nodes
from vidvq.submit.preflight import LIMIT_S, find_problems, print_verdict, probe_node, remove_markers


def check_cluster(shared: Path, min_free_gib: float = 1.0, limit_s: float = LIMIT_S) -> int:
    """Check all nodes of this node's Ray cluster and print the verdict. The process stays connected to the cluster.

    Args:
        shared: path that all nodes must be able to write.
        limit_s: time limit for the answers (seconds).

    Returns:
        The exit code: 0 if ready, 2 if not.
    """
    shared, nonce = shared.absolute(), secrets.token_hex(8)
    probe = partial(probe_node, shared=shared, nonce=nonce, gpus=0)
    reports, unreachable = [], []
    for number, answer in enumerate(run_on_nodes(probe, limit_s)):
        if answer.problem:
            unreachable.append(f"node {number} ({answer.host}) did not answer: {answer.problem}")
        else:
            reports.append(replace(answer.result, host=answer.host))
    remove_markers(shared, nonce)
    return print_verdict(reports, unreachable + find_problems(reports, len(reports), 0, min_free_gib))


def main() -> int:
    """Parse the command line and check the cluster; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="path that all nodes must be able to write")
    parser.add_argument("--min-free-gib", type=float, default=1.0, help="free space required at the shared path (GiB)")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="time limit (seconds)")
    arguments = parser.parse_args()
    return check_cluster(arguments.shared, arguments.min_free_gib, arguments.limit_s)


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
