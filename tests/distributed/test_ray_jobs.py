"""`vidvq submit --backend ray`: jobs on a cluster of two nodes, one of which is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import vidvq as package
from tests.helpers.namespaces import two_hosts, why_not
from tests.helpers.ray_nodes import TOKEN, ray_node, wait_for_both

SETTINGS = "clip.num_frames=8 clip.min_frames=4 clip.short_side=64 clip.multiple=8 clips_per_shard=2".split()
REASON = why_not()
needs_hosts = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@needs_hosts
def test_a_job_survives_the_loss_of_a_node(demo_videos, make_short_folder, snapshot, vidvq, monkeypatch):
    # Ray keeps sockets below this folder.
    tmp_path = make_short_folder()
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(package.__file__).parents[1]))
    settings = [*SETTINGS, "clips_per_shard=1"]
    inline = ["shard", demo_videos / "train", *settings, "runtime.workers=0", "--out", tmp_path / "inline"]
    assert vidvq(*inline).code == 0
    out, run = tmp_path / "out $(touch harm) '\"", tmp_path / "run"
    with two_hosts() as (one, other):
        head = ["--head", "--port=6379", f"--temp-dir={tmp_path / 'r'}", f"--dashboard-host={one.address}"]
        with ray_node(one, tmp_path, *head), ray_node(other, tmp_path, f"--address={one.address}:6379") as second:

            def command(*arguments: object, token: bool = True) -> subprocess.CompletedProcess:
                line = one.command(sys.executable, "-m", "vidvq", "submit", *arguments)
                environment = os.environ | (TOKEN if token else {"RAY_AUTH_MODE": "disabled"})
                return subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=120)

            # The nodes share a disk, so Ray replaces the folder of the job when a node joins while it runs.
            wait_for_both(one, second, tmp_path / f"{other.name}.log")
            submission = ["shard", demo_videos / "train", "--out", out, *settings, "--backend", "ray", "--job", run]
            submission += ["--address", f"http://{one.address}:8265"]
            deadline = time.monotonic() + 300
            while (done := command(*submission)).returncode:
                logs = "".join(path.read_text()[-1500:] for path in tmp_path.glob("vvq*.log"))
                assert time.monotonic() < deadline, done.stderr + logs
                time.sleep(1)
            assert "ANYONE" not in done.stderr
            again = command(*submission)
            assert "was already submitted: " in again.stderr
            stranger = command(*submission, token=False)
            assert stranger.returncode == 1
            assert "ANYONE WHO CAN REACH" in stranger.stderr
            assert "Traceback" not in stranger.stderr
            while len(list((out / "commits").glob("*.json"))) < 2:
                assert time.monotonic() < deadline, command("logs", run).stdout
                time.sleep(0.02)
            os.killpg(second.pid, signal.SIGKILL)
            told = command("logs", "-f", run).stdout
            assert command("status", run).stdout.startswith("done"), told
            assert snapshot(out) == snapshot(tmp_path / "inline")
            assert not list(tmp_path.rglob("harm"))
            assert "0 failed" in told
            assert "preflight: ready" in told


def test_usage_errors_are_one_line(tmp_path, demo_videos, vidvq):
    command = ["submit", "shard", demo_videos, "--out", tmp_path / "o", "--backend", "ray", "--job", tmp_path / "r"]
    assert "must be the URL of the cluster's job server" in vidvq(*command, "--address", "10.0.0.1:8265").error
    assert (
        "request to the Ray cluster at http://127.0.0.1:9 failed"
        in vidvq(*command, "--address", "http://127.0.0.1:9").error
    )
    trained = vidvq("submit", "train", "demo", "--backend", "ray", "--job", tmp_path / "t")
    assert "training does not run as a Ray job" in trained.error
