"""`vidvq tokenize` with decoding on the other node of a Ray cluster: the same bytes, also if that node is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.namespaces import Host, two_hosts, why_not
from tests.helpers.ray_nodes import TOKEN, ray_node, wait_for_both

REASON = why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(REASON is not None, reason=str(REASON))]
SETTINGS = ("video.short_side=32", "video.multiple=8", "items_per_shard=24", "gop_frames=33", "device=cpu")


def find_processes(host: Host, name: str) -> list[int]:
    """Ids of the processes on a host whose command line has a name."""
    found = []
    for pid in host.pids():
        try:
            if name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


def wait_for(host: Host, name: str, job: subprocess.Popen) -> int:
    deadline = time.monotonic() + 300
    while not (found := find_processes(host, name)):
        assert job.poll() is None, f"the job is over: {job.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found[0]


@pytest.mark.parametrize("is_lost", [False, True])
def test_tokens_do_not_depend_on_where_frames_are_decoded(
    vidvq, make_video, checkpoint_dir, make_short_folder, snapshot, is_lost
):
    # Ray keeps sockets below this folder.
    folder = make_short_folder()
    videos = folder / "videos"
    videos.mkdir()
    for index in range(2):
        make_video(videos / f"{index}.mp4", 800 + index, size=(64, 48))
    command = ["tokenize", videos, "--checkpoint", checkpoint_dir, *SETTINGS]
    assert vidvq(*command, "--out", folder / "inline", "runtime.workers=0").code == 0
    with two_hosts() as (one, other):
        head = ("--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={folder / 'r1'}")
        command += [f"runtime.address={one.address}:6379", "runtime.workers=1", "runtime.decode_on=cluster"]
        with ray_node(one, folder, *head):
            line = one.command(sys.executable, "-m", "vidvq", *command, "--out", folder / "cluster")
            job = subprocess.Popen(line, stderr=subprocess.PIPE, env=os.environ | TOKEN, text=True)
            # The worker takes the only CPU of the first node. It is stopped until there is another.
            worker = wait_for(one, "ray::_StatefulWorker", job)
            os.kill(worker, signal.SIGSTOP)
            with ray_node(other, folder, f"--address={one.address}:6379") as second:
                wait_for_both(one, second, folder / f"{other.name}.log")
                os.kill(worker, signal.SIGCONT)
                wait_for(other, "vidvq.runtime.feeder", job)
                if is_lost:
                    other.kill_all()
                _, told = job.communicate(timeout=400)
    assert job.returncode == 0, told
    assert snapshot(folder / "cluster") == snapshot(folder / "inline")
