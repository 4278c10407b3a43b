"""`vidvq tokenize` with simulated decoding and a simulated GPU, over the lower of their two rates.

    python benchmarks/simulated_job.py CLIPS [--clips 2048] [--decoders 16] [--decode-ms 240] [--encoder-fps 20000]

Measures what the job itself costs, on a machine with neither the cores nor the GPU. A decoding process decodes a clip
once, and sleeps for the others; their times vary by a fifth (log-normal). The GPU is a queue: a step returns at once,
and its codes are ready when the steps before it and the step itself have taken their time. Everything else is the job:
shared memory, batches, samples, tars, commits.

Prints one JSON line. All figures count from the second shard on: processes start during the first. ``efficiency`` shows
the machine instead of the job if that has no core for this process, and less than 1 ms of a core for each clip.
``thread_us_per_clip`` is the CPU time of the thread that feeds the GPU; ``thread_frames_per_s``, its inverse, bounds
the job on any machine with such cores.
"""

import json
import os
import random
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from job import most_frequent, repeat_clips
from torch import Tensor

import vidvq.corpus.frames as frames
import vidvq.formats.commit as commit
import vidvq.tokenize.batching as batching
import vidvq.tokenize.decoders as decoders
import vidvq.tokenize.worker as worker
from vidvq.cli.main import run
from vidvq.formats.commit import Commit
from vidvq.formats.plan import read_plan
from vidvq.formats.tar import read_samples
from vidvq.model import StreamState, VideoTokenizer
from vidvq.tokenize.encode import PendingCodes

STREAMS = 8
# Standard deviation of the logarithm of the time of a clip.
SPREAD = 0.2
# Time of a clip (ms), for decoding processes.
DECODE_MS = "SIMULATED_DECODE_MS"


def decode_slowly(job: frames.ClipFrames) -> Iterator[frames.DecodeMessage]:
    """Stands for :func:`vidvq.corpus.frames.decode_items`, in a decoding process."""
    decode, ms = cache(frames.decode_clip), float(os.environ[DECODE_MS])

    def decode_clip(data: bytes, *arguments: Any) -> np.ndarray:
        started, seconds = time.monotonic(), ms / 1e3 * random.lognormvariate(-(SPREAD**2) / 2, SPREAD)
        found = decode(data, *arguments)
        time.sleep(max(seconds - (time.monotonic() - started), 0))
        return found

    frames.decode_clip = lambda data, key, *arguments: decode_clip(data, "clip", *arguments)
    return frames.decode_items(job)


class SimulatedGpu:
    """Encodes nothing, at a rate.

    Args:
        fps: frames per second of all streams together.
    """

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._free_s = 0.0

    def encode_step(self, tokenizer: VideoTokenizer, pixels: Tensor, state: StreamState | None = None) -> Any:
        """Queue a step of pixels ``b t h w c``; see :meth:`vidvq.model.VideoTokenizer.encode_step`."""
        b, t, h, w, _ = pixels.shape
        latents = tokenizer.latent_shape(t if state is None else t + 1, h, w)
        groups = latents[0] - (state is not None)
        self._free_s = max(self._free_s, time.monotonic()) + b * t / self._fps
        return torch.zeros(b, groups, *latents[1:], dtype=torch.int64), StreamState("encode", (b, h, w), (), None)

    def pending_codes(self, codes: Tensor) -> PendingCodes:
        """See :func:`vidvq.tokenize.encode.pending_codes`."""
        ready_s = self._free_s

        def wait() -> np.ndarray:
            time.sleep(max(ready_s - time.monotonic(), 0))
            return codes.numpy()

        return wait


@click.command()
@click.argument("clips", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--clips", "count", default=2048, show_default=True, help="Clips to tokenize.")
@click.option("--per-shard", default=256, show_default=True, help="Clips per shard.")
@click.option("--decoders", "processes", default=16, show_default=True, help="Decoding processes.")
@click.option(
    "--decode-ms",
    default=240.0,
    type=click.FloatRange(min=0.1),
    show_default=True,
    help="Mean time that one decodes a clip (ms).",
)
@click.option("--encoder-fps", default=20000.0, show_default=True, help="Rate of the GPU (frames/s).")
def main(clips: Path, count: int, per_shard: int, processes: int, decode_ms: float, encoder_fps: float) -> None:
    """Measure a job on clips repeated from CLIPS."""
    import simulated_job

    gpu = SimulatedGpu(encoder_fps)
    # Child processes import the function by this name.
    decoders.decode_items = simulated_job.decode_slowly
    # As pinned memory, which is allocated once.
    batching._empty_pixels = cache(lambda shape, device: torch.zeros(shape, dtype=torch.uint8))
    batching.prepare_step = lambda tokenizer, pixels, state: pixels
    batching.pending_codes = gpu.pending_codes
    VideoTokenizer.encode_step = lambda self, frames, state=None: gpu.encode_step(self, frames, state)
    thread_s: list[float] = []

    def commit_shard(*arguments: Any) -> Commit:
        record = commit.commit_shard(*arguments)
        thread_s.append(time.thread_time())
        return record

    worker.commit_shard = commit_shard
    os.environ[DECODE_MS] = str(decode_ms)
    plan = read_plan(clips)
    samples, (length, _, _) = most_frequent(
        entry for shard in plan.shard_names() for entry in read_samples(clips / shard)
    )
    with tempfile.TemporaryDirectory() as folder:
        many, out = Path(folder, "clips"), Path(folder, "tokens")
        repeat_clips(plan, samples[:STREAMS], many, count, per_shard)
        settings = [f"batch={STREAMS}", "groups=16", "runtime.workers=0", f"runtime.decoders={processes}"]
        if code := run(["tokenize", str(many), "--out", str(out), *settings]):
            raise SystemExit(code)
        committed = sorted(shard.stat().st_mtime for shard in out.glob("*.tar"))
        seconds = json.loads((out / "metrics.json").read_text())["seconds"]
    rate = (len(committed) - 1) * per_shard * length / (committed[-1] - committed[0])
    decoding = processes * length / decode_ms * 1e3
    found = {"frames_per_s": rate, "decoders_frames_per_s": decoding, "encoder_frames_per_s": encoder_fps}
    found = {name: round(value, 1) for name, value in found.items()}
    found |= {"efficiency": round(rate / min(decoding, encoder_fps), 3)}
    per_clip_s = (thread_s[-1] - thread_s[0]) / ((len(thread_s) - 1) * per_shard)
    found |= {"thread_us_per_clip": round(per_clip_s * 1e6), "thread_frames_per_s": round(length / per_clip_s)}
    print(json.dumps(found | {f"{name}_s": round(value, 2) for name, value in seconds.items() if value >= 0.005}))


if __name__ == "__main__":
    main()
