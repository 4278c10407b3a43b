"""A Ray cluster whose second node has a GPU, while the driver and the head have none. The GPU is declared, not real."""

import os
import subprocess
import sys

import pytest

from tests.helpers.namespaces import two_hosts, why_not
from tests.helpers.ray_nodes import TOKEN, ray_node, wait_for_both

REASON = why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(REASON is not None, reason=str(REASON))]


def test_workers_run_on_the_gpus_of_the_cluster(demo_videos, checkpoint_dir, make_short_folder):
    # Ray keeps sockets below this folder.
    tmp_path = make_short_folder()
    with two_hosts() as (one, other):
        head = ("--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={tmp_path / 'r1'}")
        second_node = (f"--address={one.address}:6379", "--num-gpus=1")
        with ray_node(one, tmp_path, *head), ray_node(other, tmp_path, *second_node) as second:
            wait_for_both(one, second, tmp_path / f"{other.name}.log")
            command = [
                sys.executable,
                "-m",
                "vidvq",
                "tokenize",
                demo_videos / "heldout",
                "--checkpoint",
                checkpoint_dir,
            ]
            command += ["--out", tmp_path / "out", f"runtime.address={one.address}:6379", "runtime.gpus_per_worker=0.5"]
            done = subprocess.run(
                one.command(*command), capture_output=True, text=True, check=False, env=os.environ | TOKEN, timeout=300
            )
    # The worker was started where the GPU is, and found that its torch cannot use it.
    assert done.returncode == 2, done.stderr
    assert "was given a GPU, but its torch" in done.stderr.strip().splitlines()[-1]
