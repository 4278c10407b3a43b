"""Training on two hosts with torchrun. If one is lost, the job ends with a one-line error, resumes when restarted, and
reaches the weights of an undisturbed run."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.namespaces import Host, two_hosts, why_not
from vidvq.formats.checkpoint import read_checkpoint, step_folder

REASON = why_not()
# By default, tests/distributed/test_ssh.py loses a host, and tests/train/test_resume.py compares a resumed run.
pytestmark = [pytest.mark.slow, pytest.mark.skipif(REASON is not None, reason=str(REASON))]
ROOT = Path(__file__).parents[2]
SETTINGS = [
    "steps=40",
    "checkpoint_every=10",
    "log_every=1",
    "lost_after_s=20",
    "data.batch_size=2",
    "data.crop=32",
    "data.num_frames=5",
    "data.workers=1",
    "model.encoder={channels: [8, 8], blocks: [1, 1]}",
    "model.decoder={channels: [8, 8], blocks: [1, 1]}",
    "model.quantizer.spatial={kind: vq, size: 32, warmup: 2}",
    "model.quantizer.temporal={kind: vq, size: 32, warmup: 2}",
    "discriminator={channels: 8, layers: 1}",
    "loss.adversarial_start=5",
    "loss.discriminator_warmup=2",
]
TIMINGS = {"step_s", "data_wait", "frames_per_s", "tflops"}


@contextmanager
def training(
    hosts: tuple[Host, Host], folder: Path, clips: Path, out: Path, stage: int
) -> Iterator[list[subprocess.Popen]]:
    """Start the same command on both hosts; the first runs the store of torchrun."""
    meeting = {"NNODES": "2", "NPROC": "1", "HEAD": f"{hosts[0].address}:29500", "PYTHON": sys.executable}
    command = [ROOT / "launch/torchrun.sh", "demo", f"data.clips={clips}", f"out={out}", f"zero_stage={stage}"]
    jobs = []
    try:
        for rank, host in enumerate(hosts):
            with log_of(folder, host).open("wb") as log:
                line = host.command(*command, *SETTINGS)
                mine = os.environ | meeting | {"NODE_RANK": str(rank)}
                jobs.append(subprocess.Popen(line, stdout=log, stderr=log, env=mine))
        yield jobs
    finally:
        for host, job in zip(hosts, jobs, strict=False):
            host.kill_all()
            job.wait()


def log_of(folder: Path, host: Host) -> Path:
    return folder / f"{host.name}.log"


def read_metrics(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]


# The connections of a killed process close at once, unless the cable was cut before.
@pytest.mark.parametrize(("stage", "lost", "cut"), [(2, 0, True), (2, 1, True), (3, 0, False)])
def test_a_lost_host_costs_nothing_but_time(clips_dir, tmp_path, stage, lost, cut):
    with two_hosts() as hosts:
        with training(hosts, tmp_path, clips_dir, tmp_path / "whole", stage) as jobs:
            assert [job.wait(300) for job in jobs] == [0, 0], log_of(tmp_path, hosts[0]).read_text()

        out = tmp_path / "out"
        with training(hosts, tmp_path, clips_dir, out, stage) as jobs:
            deadline = time.monotonic() + 300
            while not (step_folder(out, 10) / "fingerprint").exists():
                assert time.monotonic() < deadline and jobs[0].poll() is None, log_of(tmp_path, hosts[0]).read_text()
                time.sleep(0.02)
            if cut:
                hosts[lost].cut_cable()
            hosts[lost].kill_all()
            assert jobs[1 - lost].wait(60) == 1
        assert not step_folder(out, 40).exists()
        (line,) = [line for line in log_of(tmp_path, hosts[1 - lost]).read_text().splitlines() if "vidvq: " in line]
        assert line.startswith(f"vidvq: process {1 - lost} of 2 lost contact with another process: ")
        assert ("Timed out waiting 20000ms" if cut else "by peer") in line
        assert line.endswith("; restart the job to resume from its last checkpoint")

        if cut:
            hosts[lost].mend_cable()
        with training(hosts, tmp_path, clips_dir, out, stage) as jobs:
            assert [job.wait(300) for job in jobs] == [0, 0], log_of(tmp_path, hosts[0]).read_text()
        assert "resuming from" in log_of(tmp_path, hosts[0]).read_text()
    assert read_metrics(out) == read_metrics(tmp_path / "whole")
    assert read_checkpoint(out).fingerprints == read_checkpoint(tmp_path / "whole").fingerprints
