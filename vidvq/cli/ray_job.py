"""What a job of a Ray cluster runs: `python -m vidvq.cli.ray_job VERB...`: a look at the machines, then the verb.

In one process: a job's folder is taken away from all of it when the first driver in it ends.
"""

import os
import sys
from pathlib import Path

from vidvq.cli.main import run
from vidvq.submit.preflight_ray import look_first


def main() -> int:
    """Look where ``SHARED`` names a path that all machines must be able to write; then run the command line."""
    shared = os.environ.get("SHARED")
    return (look_first(Path(shared)) if shared else 0) or run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
