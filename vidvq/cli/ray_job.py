"""Entry point of a job on a Ray cluster: `python -m vidvq.cli.ray_job COMMAND...` runs the preflight, then the command.

Both run in one process, because Ray deletes a job's folder when the first driver of the job disconnects.
"""

import os
import sys
from pathlib import Path

from vidvq.cli.main import run
from vidvq.submit.preflight_ray import check_cluster


def main() -> int:
    """Run the preflight if ``SHARED`` names a path that all nodes must be able to write; then run the command line."""
    shared = os.environ.get("SHARED")
    try:
        code = check_cluster(Path(shared)) if shared else 0
    except ConnectionError as error:
        print(f"preflight: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return code or run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
