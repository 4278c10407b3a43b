"""Small training runs with `vidvq submit`, and waiting for their states."""

import time
from collections.abc import Callable
from pathlib import Path

from vidvq import submit as jobs

# Settings of `vidvq generate train`, and of `vidvq train`, for a network that takes milliseconds per step.
TINY_GENERATOR = [
    "data.batch_size=2",
    "data.workers=0",
    "checkpoint_every=2",
    "log_every=1",
    "model={width: 24, depth: 1, heads: 2}",
]
TINY = [
    "data.batch_size=2",
    "data.crop=32",
    "data.num_frames=5",
    "data.workers=1",
    "checkpoint_every=2",
    "log_every=1",
    "model.encoder={channels: [8, 8], blocks: [1, 1]}",
    "model.decoder={channels: [8, 8], blocks: [1, 1]}",
    "model.quantizer.spatial={kind: vq, size: 32, warmup: 2}",
    "model.quantizer.temporal={kind: vq, size: 32, warmup: 2}",
    "loss.adversarial=0",
]


def wait_until(condition: Callable[[], bool], run: Path, limit_s: float = 400) -> None:
    """Wait for a condition; fails with the run's status and logs after ``limit_s`` seconds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        log = "\n".join(path.read_text(errors="replace")[-3000:] for path in (run / "logs").iterdir())
        assert time.monotonic() < deadline, f"{jobs.status(run)}\n{log}"
        time.sleep(0.1)


def has_ended(run: Path) -> bool:
    """Whether a run is done, failed or cancelled."""
    return jobs.status(run).ended


def read_log(run: Path) -> str:
    """The log of a run so far."""
    return b"".join(jobs.logs(run, follow=False)).decode()
