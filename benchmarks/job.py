"""`vidvq tokenize` end to end in one worker, over the rates of its encoder and of its decoding processes.

    python benchmarks/job.py CLIPS [--clips 3000] [--seconds 60] [--device cuda] [--decoders 16] [--checkpoint DIR]
        [KEY=VALUE]...

CLIPS is a finished directory of clip shards; its clips of the most frequent size are repeated under other keys until
there are enough. The rates are measured first, on these clips: of decoding processes alone, and of the encoder
in steps of the shape that the job has on the device. At the lower rate, the job takes at most the given seconds.
Prints one JSON line. ``efficiency`` is the rate of the job over the lower of the two rates, ``starved`` the activity
that took the most time of the worker beside encoding, and ``share_*`` its share and that of the others.
"""

import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import click
import pyarrow as pa
import torch

from vidvq.formats.checkpoint import BUNDLED
from vidvq.formats.clip_shard import ClipInfo, media_of, parse_clip_info
from vidvq.formats.commit import ShardDraft, commit_shard
from vidvq.formats.plan import Plan, create_plan, read_plan
from vidvq.formats.tar import read_samples
from vidvq.model.step_shape import StepShape
from vidvq.model.streaming import groups_per_step, prepare_step
from vidvq.pretrained import find_tokenizer, load_tokenizer
from vidvq.pretrained.device import prepare
from vidvq.storage import read_json
from vidvq.tokenize.config import TokenizeConfig, resolve_execution
from vidvq.video.decode import decode_clip

ROUNDS = 5
Size = tuple[int, int, int]
# Key and files of a clip.
Sample = tuple[str, dict[str, bytes]]


@click.command()
@click.argument("clips", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--clips", "count", default=3000, show_default=True, help="Clips to tokenize.")
@click.option("--seconds", default=60, show_default=True, help="Limit of the time that the clips take (seconds).")
@click.option("--per-shard", default=256, show_default=True, help="Clips per shard.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--decoders", default=os.cpu_count() or 1, show_default="cores", help="Decoding processes.")
@click.option("--checkpoint", type=Path, help="Tokenizer; the bundled one by default.")
def main(
    clips: Path,
    overrides: tuple[str, ...],
    count: int,
    seconds: int,
    per_shard: int,
    device: str,
    decoders: int,
    checkpoint: Path | None,
) -> None:
    """Measure a job on clips repeated from CLIPS."""
    plan = read_plan(clips)
    # Each size would be compiled anew.
    samples, size = most_frequent(entry for shard in plan.shard_names() for entry in read_samples(clips / shard))
    decoding = decoding_rate([files[media_of(files, key)] for key, files in samples], decoders)
    encoding = encoding_rate(checkpoint, device, size)
    count = min(count, math.ceil(seconds * min(encoding, decoding) / size[0]))
    click.echo(f"frames/s alone: encoder {encoding:.0f}, decoding processes {decoding:.0f}; the job has {count} clips")
    with tempfile.TemporaryDirectory() as folder:
        many, out = Path(folder, "clips"), Path(folder, "tokens")
        repeat_clips(plan, samples, many, count, per_shard)
        command = [sys.executable, "-m", "vidvq", "tokenize", str(many), "--out", str(out), f"device={device}"]
        command += ["--checkpoint", str(checkpoint)] if checkpoint else []
        started = monotonic()
        subprocess.run([*command, "runtime.workers=0", f"runtime.decoders={decoders}", *overrides], check=True)
        whole_s = monotonic() - started
        print(json.dumps(summary(read_json(out / "metrics.json"), encoding, decoding, whole_s)))


def summary(metrics: dict[str, Any], encoding: float, decoding: float, whole_s: float) -> dict[str, Any]:
    """Relate the metrics of a job to the rates of its parts (frames per second)."""
    rate, seconds = metrics["frames"] / metrics["wall_s"], metrics["seconds"]
    shares = {name: s / sum(seconds.values()) for name, s in sorted(seconds.items(), key=lambda entry: -entry[1])}
    return {
        "frames": metrics["frames"],
        "frames_per_s": round(rate, 1),
        "encoder_frames_per_s": round(encoding, 1),
        "decoders_frames_per_s": round(decoding, 1),
        "efficiency": round(rate / min(encoding, decoding), 3),
        "decoders": metrics["decoders"],
        "whole_s": round(whole_s, 1),
        "start_s": metrics["start_s"],
        "starved": next(name for name in shares if name != "encode"),
    } | {f"share_{name}": round(share, 3) for name, share in shares.items() if share >= 0.005}


def most_frequent(samples: Iterable[Sample]) -> tuple[list[Sample], Size]:
    """Return the clips of the most frequent size, and that size."""
    samples = list(samples)
    sizes = [_size(parse_clip_info(files["json"], key)) for key, files in samples]
    size = Counter(sizes).most_common(1)[0][0]
    return [sample for sample, found in zip(samples, sizes, strict=True) if found == size], size


def _size(info: ClipInfo) -> Size:
    return info.num_frames, info.height, info.width


def repeat_clips(plan: Plan, samples: list[Sample], out: Path, count: int, per_shard: int) -> None:
    """Write a finished directory of clip shards with ``count`` clips, which are samples of a plan in turn."""
    planned = {key: row for row, key in enumerate(plan.table.column("key").to_pylist())}
    rows = [planned[key] for key, _ in samples]
    table = plan.table.drop_columns(["key", "shard", "generation"]).take([rows[i % len(rows)] for i in range(count)])
    keys = [f"{samples[index % len(samples)][0]}-{index:06d}" for index in range(count)]
    shards = pa.array([index // per_shard for index in range(count)], pa.int32())
    table = table.append_column("key", pa.array(keys)).append_column("shard", shards)
    made_from = {"repeats": plan.plan_id, "clips": count, "clip": plan.made_from.get("clip")}
    repeated = create_plan(out, "shard", "clips", made_from, table)
    turns = zip(keys, cycle(samples), strict=False)

    def fill(draft: ShardDraft) -> None:
        for key, (_, files) in islice(turns, per_shard):
            draft.add(key, files)

    for index in range(repeated.num_shards):
        commit_shard(out, repeated.shard_name(index), repeated.plan_id, fill)


def decoding_rate(media: list[bytes], processes: int, seconds: float = 3) -> float:
    """Measure the frames per second that all decoding processes together decode."""
    start = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=start) as pool:
        return sum(pool.map(_decode, [media] * processes, [seconds] * processes))


def _decode(media: list[bytes], seconds: float) -> float:
    decode_clip(media[0], "clip")
    started, frames = monotonic(), 0
    for data in cycle(media):
        frames += len(decode_clip(data, "clip"))
        if monotonic() - started > seconds:
            break
    return frames / (monotonic() - started)


def encoding_rate(checkpoint: Path | None, device: str, size: Size) -> float:
    """Measure the frames per second of the encoder on clips of a size (frames, height, width)."""
    torch.set_num_threads(1)
    tokenizer, _ = load_tokenizer(find_tokenizer(checkpoint or BUNDLED))
    execution = resolve_execution(TokenizeConfig(), device, 1 + (size[0] - 1) // tokenizer.temporal_factor)
    prepare(tokenizer, execution)
    if execution.compiled:
        tokenizer.compile_steps(capture=True)
    pixels = torch.zeros(execution.streams, *size, 3, dtype=torch.uint8)
    pixels = pixels.pin_memory() if device == "cuda" else pixels
    # The first calls compile and record.
    times = [_encode_s(tokenizer, pixels) for _ in range(ROUNDS + 2)][2:]
    return execution.streams * size[0] / median(times)


@torch.inference_mode()
def _encode_s(tokenizer: Any, pixels: torch.Tensor) -> float:
    started, state, done = monotonic(), None, 0
    step = StepShape(groups=groups_per_step(tokenizer, pixels.shape[2:4]))
    while done < pixels.shape[1]:
        frames = pixels[:, done : done + step.num_frames(tokenizer.temporal_factor, state is None)]
        codes, state = tokenizer.encode_step(prepare_step(tokenizer, frames, state), state)
        done += frames.shape[1]
    codes.cpu()
    return monotonic() - started


if __name__ == "__main__":
    main()
