"""Looks at every machine of a Ray cluster: `python -m vidvq.submit.preflight_ray`, on one of them.

Prints the table and the verdict of :mod:`vidvq.submit.preflight`, and exits with it: 0, or 2.
"""

import argparse
import os
import secrets
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from vidvq.runtime.run_on_nodes import run_on_nodes
from vidvq.submit.preflight import LIMIT_S, judge, look, sweep, tell


def look_first(shared: Path, min_free_gib: float = 1.0, limit_s: float = LIMIT_S) -> int:
    """Look at all machines of the cluster that this one belongs to, and print what was found; stays connected.

    Args:
        shared: a path that all of them must be able to write.
        min_free_gib: what they must have free there.
        limit_s: until when they must answer.

    Returns:
        The exit code: 0, or 2.
    """
    shared, nonce = shared.absolute(), secrets.token_hex(8)
    look_at = partial(look, shared=shared, nonce=nonce, gpus=0)
    found, silent = [], []
    for number, answer in enumerate(run_on_nodes(look_at, limit_s)):
        if answer.problem:
            silent.append(f"machine {number} ({answer.host}) did not answer: {answer.problem}")
        else:
            found.append(replace(answer.result, host=answer.host))
    sweep(shared, nonce)
    return tell(found, silent + judge(found, len(found), 0, min_free_gib))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="a path that all machines must be able to write")
    parser.add_argument("--min-free-gib", type=float, default=1.0)
    parser.add_argument("--limit-s", type=float, default=LIMIT_S)
    asked = parser.parse_args()
    return look_first(asked.shared, asked.min_free_gib, asked.limit_s)


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
