"""`vidvq submit --backend ssh`, on two hosts: network namespaces, each with an sshd."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.helpers.namespaces import Host, two_hosts, why_not
from tests.helpers.submitted_runs import TINY, has_ended, read_log, wait_until
from vidvq import submit as jobs
from vidvq.formats.checkpoint import list_steps, read_checkpoint

REASON = why_not() or (None if Path("/usr/sbin/sshd").exists() else "no sshd (Debian: openssh-server)")
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def keygen(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@contextmanager
def sshd(host: Host, folder: Path) -> Iterator[subprocess.Popen]:
    """Run an sshd in a namespace."""
    Path("/run/sshd").mkdir(exist_ok=True)
    options = ["-o", "PidFile=none", "-o", "UsePAM=no", "-o", "StrictModes=no", "-o", "PasswordAuthentication=no"]
    options += ["-o", f"AuthorizedKeysFile={folder}/client.pub", "-h", str(folder / "host"), "-f", "/dev/null"]
    daemon = subprocess.Popen(host.command("/usr/sbin/sshd", "-D", "-e", *options), stderr=subprocess.DEVNULL)
    try:
        yield daemon
    finally:
        host.kill_all()
        daemon.wait()


@pytest.fixture
def hosts(make_short_folder, monkeypatch) -> Iterator[tuple[Host, Host, Path]]:
    folder = make_short_folder()
    keygen(folder / "host")
    keygen(folder / "client")
    with ExitStack() as stack:
        one, other = stack.enter_context(two_hosts())
        for host in (one, other):
            stack.enter_context(sshd(host, folder))
        # The command runs on the first host; everything else about ssh is in the user's configuration.
        (folder / "bin").mkdir()
        options = f"-i {folder}/client -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
        wrapper = folder / "bin/ssh"
        wrapper.write_text(f'#!/bin/sh\nexec ip netns exec {one.name} {shutil.which("ssh")} {options} "$@"\n')
        wrapper.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
        monkeypatch.setenv("PYTHONPATH", str(Path(jobs.__file__).parents[2]))
        hostfile = folder / "hosts"
        hostfile.write_text(f"# two\n{one.address} slots=1\n{other.address} slots=1\n")
        yield one, other, hostfile


@pytest.mark.slow
def test_training_on_two_hosts_is_cancelled_resumes_and_completes(hosts, clips_dir, tmp_path, vidvq):
    _, _, hostfile = hosts
    run, out = tmp_path / "run", tmp_path / "out"
    command = ["submit", "train", "demo", f"data.clips={clips_dir}", f"out={out}", "steps=60", *TINY]
    command += ["--backend", "ssh", "--hostfile", hostfile, "--job", run]
    assert vidvq(*command).code == 0
    wait_until(lambda: bool(list_steps(out)) or has_ended(run), run)
    assert vidvq("submit", "cancel", run).code == 0
    wait_until(lambda: has_ended(run), run)
    assert jobs.status(run).state == "cancelled"
    assert f"step {read_checkpoint(out).config['step']} is saved" in read_log(run)
    assert vidvq(*command).code == 0
    wait_until(lambda: has_ended(run), run)
    assert jobs.status(run).state == "done", read_log(run)
    assert read_checkpoint(out).config["step"] == 60


def test_a_lost_host_ends_the_job_and_is_named(hosts, clips_dir, tmp_path, vidvq):
    one, other, hostfile = hosts
    run, out = tmp_path / "run $(touch harm) '\"", tmp_path / "o'ut $(touch harm)"
    command = ["submit", "train", "demo", f"data.clips={clips_dir}", f"out={out}", "steps=100000", *TINY]
    assert vidvq(*command, "--backend", "ssh", "--hostfile", hostfile, "--job", run).code == 0
    wait_until(lambda: bool(list_steps(out)) or has_ended(run), run)
    other.kill_all()
    died = time.monotonic()
    wait_until(lambda: has_ended(run), run, 60)
    assert time.monotonic() - died < 30
    assert jobs.status(run).state == "failed"
    assert "10.77.0.1: preflight: ready" in read_log(run)
    assert "10.77.0.2 is lost: ssh ended; the job ends" in read_log(run)
    assert not list(tmp_path.rglob("harm"))
    # Only the sshd of the first host is left.
    wait_until(lambda: len(one.pids()) <= 1, run, 30)


@pytest.mark.slow
def test_tokenization_on_two_hosts_writes_the_same_bytes(
    hosts, clips_dir, checkpoint_dir, tokens_dir, tmp_path, vidvq, snapshot
):
    run, out = tmp_path / "run", tmp_path / "out"
    command = ["submit", "tokenize", clips_dir, "--checkpoint", checkpoint_dir, "--out", out, "--cpus", 1]
    assert vidvq(*command, "--backend", "ssh", "--hostfile", hosts[2], "--job", run).code == 0
    wait_until(lambda: has_ended(run), run)
    assert jobs.status(run).state == "done", read_log(run)
    assert snapshot(out) == snapshot(tokens_dir)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lists no hosts"),
        ("-oProxyCommand=touch slots=1", "must be `host slots=8`"),
        ("a slots=0", "must be `host slots=8`"),
        ("a\na slots=2", "is listed twice"),
        ("a slots=1", "nodes=2 exceeds the 1 hosts"),
    ],
)
def test_an_invalid_hostfile_is_a_one_line_error(clips_dir, tmp_path, vidvq, text, said):
    hostfile = tmp_path / "hosts"
    hostfile.write_text(text)
    command = ["submit", "train", "demo", f"data.clips={clips_dir}", "--backend", "ssh", "--job", tmp_path / "r"]
    ran = vidvq(*command, "--hostfile", hostfile, "--nodes", 2)
    assert ran.code == 2
    assert said in ran.error
    assert not (tmp_path / "r").exists()
