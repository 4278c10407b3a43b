"""A Ray cluster of two network namespaces writes the same bytes as inline, also if a node is lost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.namespaces import Host, two_hosts, why_not
from tests.helpers.ray_nodes import TOKEN, ray_node, wait_for_both

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
PREFLIGHT = """
import sys
from pathlib import Path
from vidvq.submit.preflight_ray import check_cluster
sys.exit(check_cluster(Path(sys.argv[1])))
"""
SETTINGS = "clip.num_frames=8 clip.min_frames=4 clip.short_side=64 clip.multiple=8 clips_per_shard=2".split()


@contextmanager
def cluster(tmp_path: Path) -> Iterator[tuple[Host, Host, subprocess.Popen]]:
    with two_hosts() as (one, other):
        head = ("--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={tmp_path / 'r1'}")
        with ray_node(one, tmp_path, *head), ray_node(other, tmp_path, f"--address={one.address}:6379") as second:
            wait_for_both(one, second, tmp_path / f"{other.name}.log")
            yield one, other, second


def shard(host: Host, demo_videos: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "vidvq", "shard", demo_videos / "train", "--out", out, *SETTINGS]
    command.append(f"runtime.address={host.address}:6379")
    return subprocess.Popen(host.command(*command), stderr=subprocess.PIPE, env=os.environ | TOKEN, text=True)


# By default, test_ray_jobs.py loses a node.
@pytest.mark.slow
def test_two_nodes_make_the_same_bytes_also_when_one_is_lost(demo_videos, make_short_folder, snapshot, vidvq):
    # Ray keeps sockets below this folder.
    tmp_path = make_short_folder()
    job = ["shard", demo_videos / "train", *SETTINGS, "runtime.workers=0"]
    assert vidvq(*job, "--out", tmp_path / "inline").code == 0
    with cluster(tmp_path) as (one, _, second):
        both = shard(one, demo_videos, tmp_path / "both")
        _, told = both.communicate(timeout=300)
        assert both.returncode == 0, told
        assert snapshot(tmp_path / "both") == snapshot(tmp_path / "inline")
        killed = shard(one, demo_videos, tmp_path / "killed")
        while killed.poll() is None and len(list((tmp_path / "killed/commits").glob("*.json"))) < 2:
            time.sleep(0.02)
        assert killed.poll() is None, "the job was over before the node was lost"
        os.killpg(second.pid, signal.SIGKILL)
        _, told = killed.communicate(timeout=400)
        assert killed.returncode == 0, told
        assert snapshot(tmp_path / "killed") == snapshot(tmp_path / "inline")


def test_the_nodes_of_a_cluster_are_checked(make_short_folder):
    tmp_path = make_short_folder()
    with cluster(tmp_path) as (one, _, _):
        # As in a Ray job; this machine may have other clusters.
        environment = os.environ | TOKEN | {"RAY_ADDRESS": f"{one.address}:6379", "PYTHONWARNINGS": "ignore"}

        def preflight(shared: Path) -> subprocess.CompletedProcess:
            command = one.command(sys.executable, "-c", PREFLIGHT, str(shared))
            return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)

        done = preflight(tmp_path / "out")
        assert done.returncode == 0, done.stderr
        rows = done.stderr.splitlines()
        assert [row.split()[0] for row in rows[:3]] == ["node", "0", "1"]
        assert rows[3] == "preflight: ready"
        assert not list(tmp_path.glob(".vidvq-preflight*"))
        unwritable = preflight(Path("/proc/nosuch"))
        assert unwritable.returncode == 2
        assert "node 1" in unwritable.stderr
        assert "preflight: not ready" in unwritable.stderr
