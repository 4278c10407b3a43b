"""Checks every node of a Ray cluster, as :mod:`vidvq.submit.preflight` does those of other jobs."""

import secrets
from dataclasses import replace
from functools import partial
from pathlib import Path

from vidvq.runtime.run_on_nodes import run_on_nodes
from vidvq.submit.preflight import LIMIT_S, find_problems, print_verdict, probe_node, remove_markers


def check_cluster(shared: Path) -> int:
    """Check all nodes of this node's Ray cluster and print the verdict. The process stays connected to the cluster.

    Args:
        shared: path that all nodes must be able to write.

    Returns:
        The exit code: 0 if ready, 2 if not.
    """
    shared, nonce = shared.absolute(), secrets.token_hex(8)
    probe = partial(probe_node, shared=shared, nonce=nonce, gpus=0)
    reports, unreachable = [], []
    for number, (host, report, problem) in enumerate(run_on_nodes(probe, LIMIT_S)):
        if problem:
            unreachable.append(f"node {number} ({host}) did not answer: {problem}")
        else:
            reports.append(replace(report, host=host))
    remove_markers(shared, nonce)
    return print_verdict(reports, unreachable + find_problems(reports, len(reports), 0))
