"""The check of all nodes before a job; processes on the loopback stand in for nodes."""

import json
import os
import socket
import struct
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from vidvq import __version__
from vidvq.storage import PREFLIGHT_MARKER
from vidvq.submit.preflight import NodeReport, find_problems, format_table, remove_markers

GOOD = NodeReport(0, "a", "1.0", 8, 100.0, None)


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def node(port: int, rank: int, shared: Path, *more: object, nodes: int = 2) -> subprocess.Popen:
    asked = ["--head", f"127.0.0.1:{port}", "--nodes", nodes, "--rank", rank, "--shared", shared, *more]
    return subprocess.Popen(
        [sys.executable, "-m", "vidvq.submit.preflight", *map(str, asked)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_healthy_nodes_are_ready_and_leave_the_port_and_the_path_unchanged(tmp_path, port):
    # The other nodes may start first.
    others = [node(port, rank, tmp_path / "not/there/yet", nodes=3) for rank in (2, 1)]
    time.sleep(0.5)
    head = node(port, 0, tmp_path / "not/there/yet", nodes=3)
    out, err = head.communicate(timeout=300)
    assert head.returncode == 0
    assert out == "127.0.0.1 lo\n"
    assert err.splitlines()[0].split() == ["node", "host", "vidvq", "GPUs", "free", "GiB", "shared", "path"]
    assert len(err.splitlines()) == 5
    assert err.endswith("preflight: ready\n")
    for other in others:
        assert other.communicate(timeout=300) == ("127.0.0.1 lo\n", "")
        assert other.returncode == 0
    assert not list(tmp_path.iterdir())
    socket.create_server(("127.0.0.1", port)).close()


def test_a_missing_node_is_named(tmp_path, port):
    head = node(port, 0, tmp_path, "--limit-s", 1)
    _, err = head.communicate(timeout=300)
    assert head.returncode == 2
    assert "node 1 did not reach the rendezvous" in err
    assert err.endswith("preflight: not ready\n")


def test_a_node_that_cannot_reach_the_head_reports_it(tmp_path, port):
    other = node(port, 1, tmp_path, "--limit-s", 1)
    _, err = other.communicate(timeout=300)
    assert other.returncode == 2
    assert f"cannot reach 127.0.0.1:{port}: [Errno 111] Connection refused" in err
    assert "Traceback" not in err


def test_a_path_that_is_not_shared_is_noticed_by_all(tmp_path, port):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    other, head = node(port, 1, tmp_path / "other"), node(port, 0, tmp_path / "one")
    _, err = head.communicate(timeout=300)
    assert head.returncode == 2
    assert "other is not the folder that node 0 sees" in err
    other.communicate(timeout=300)
    assert other.returncode == 2


def test_other_clients_at_the_rendezvous_are_ignored(tmp_path, port):
    head = node(port, 0, tmp_path)
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(b'{"rank": "x"}\n')
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    other = node(port, 1, tmp_path)
    _, err = head.communicate(timeout=300)
    assert head.returncode == 0, err
    other.communicate(timeout=300)


def test_a_node_that_dies_after_its_report_leaves_no_traceback_and_no_markers(tmp_path, port):
    head = node(port, 0, tmp_path)
    while True:
        try:
            link = socket.create_connection(("127.0.0.1", port))
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    with link:
        assert b"nonce" in link.recv(4096)
        # Reset the connection.
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        link.sendall(json.dumps(asdict(replace(GOOD, rank=1, vidvq=__version__))).encode() + b"\n")
    _, err = head.communicate(timeout=300)
    assert (head.returncode, err.splitlines()[-1]) == (0, "preflight: ready")
    assert not list(tmp_path.iterdir())


def test_markers_of_this_job_and_old_ones_are_removed(tmp_path):
    for name in ("mine", "mine-1", "old", "other"):
        (tmp_path / f"{PREFLIGHT_MARKER}{name}").touch()
    os.utime(tmp_path / f"{PREFLIGHT_MARKER}old", (0, 0))
    remove_markers(tmp_path / "not/there", "mine")
    assert [path.name for path in tmp_path.iterdir()] == [f"{PREFLIGHT_MARKER}other"]


def test_an_unwritable_path_is_named(port):
    head = node(port, 0, Path("/proc/nosuch"), nodes=1)
    _, err = head.communicate(timeout=300)
    assert head.returncode == 2
    assert "/proc cannot be written" in err


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (NodeReport(1, "b", "1.0", 4, 100.0, None), "node 1 (b) has 4 GPUs; 8 are required"),
        (NodeReport(1, "b", "1.0", 8, 0.5, None), "node 1 (b) has 0.5 GiB free at the shared path; 1 are required"),
        (NodeReport(1, "b", "1.1", 8, 100.0, None), "node 1 (b) has vidvq 1.1; node 0 has 1.0"),
        (NodeReport(1, "b", "1.0", 8, 100.0, "/x is odd"), "node 1 (b): /x is odd"),
    ],
)
def test_each_problem_is_reported(other, problem):
    assert find_problems([GOOD, other], 2, 8) == [problem]
    assert not find_problems([GOOD], 1, 8)
    assert format_table([other, GOOD])[1].startswith("0 ")
