"""Efficiency of `vidvq tokenize`: its throughput relative to the bare encoder on the same cores.

    python benchmarks/corpus.py CLIPS CHECKPOINT [--workers 2] [--rounds 3]

CLIPS is a directory with many more clip shards than workers. CHECKPOINT is a checkpoint, a training run, or the name of
a packaged training config, such as `small`, for an untrained tokenizer of it. Each round runs the bare decoder and the
bare encoder on clips from all shards, with one single-threaded process per worker; the encoder gets decoded clips. Then
`vidvq tokenize` encodes the complete directory. Its throughput is measured for the whole command, including start-up
and planning, and from the first commit to the last, as in a long job. If decoding shares the cores of the encoder, the
ceiling is encoding time over encoding plus decoding time. The table shows medians over rounds.

Wall time is meaningful only on an idle machine. The table therefore also shows CPU time per frame: of the bare encoder
and decoder, and of the job from the first commit to the last, including all Ray and decoding processes (Linux only).
Their ratio is the efficiency on a machine whose cores never wait.
"""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import islice
from pathlib import Path
from time import monotonic, process_time, sleep, time
from typing import Any

import numpy as np
import torch

from vidvq import config as settings
from vidvq.formats.checkpoint import write_checkpoint
from vidvq.formats.clip_shard import read_clips
from vidvq.formats.commit import read_commit
from vidvq.formats.plan import read_plan
from vidvq.model import TokenizerConfig, VideoTokenizer
from vidvq.model.pixels import PREPROCESSING, to_video
from vidvq.pretrained import find_tokenizer, load_tokenizer
from vidvq.video.decode import decode_clip


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare-clips", type=int, default=64, help="clips for the bare encoder, over all processes")
    options = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = find_or_create(options.checkpoint, Path(folder, "untrained"))
        for _ in range(options.rounds):
            bare, encode_ms, decode_ms = measure_bare(options.clips, checkpoint, options.workers, options.bare_clips)
            rounds.append((bare, *_job(options.clips, checkpoint, options.workers), encode_ms, decode_ms))
    columns = [statistics.median(column) for column in zip(*rounds, strict=True)]
    bare, whole, steady, size, job_ms, encode_ms, decode_ms = columns
    print(f"bare encoder, {options.workers} processes   {bare:8.1f} frames/s")
    print(f"vidvq tokenize, whole command   {whole:8.1f} frames/s")
    print(f"vidvq tokenize, commit to commit{steady:8.1f} frames/s")
    print(f"efficiency, commit to commit    {statistics.median(row[2] / row[0] for row in rounds):8.2f}")
    print(f"efficiency, whole command       {statistics.median(row[1] / row[0] for row in rounds):8.2f}")
    print(f"CPU time, bare encoder          {encode_ms:8.2f} ms/frame")
    print(f"CPU time, bare decoder          {decode_ms:8.2f} ms/frame")
    print(f"CPU time, job, all processes    {job_ms:8.2f} ms/frame")
    ceiling = statistics.median(row[-2] / (row[-2] + row[-1]) for row in rounds)
    print(f"ceiling, decoding on these cores{ceiling:8.2f}")
    print(f"efficiency, CPU time            {statistics.median(row[-2] / row[-3] for row in rounds):8.2f}")
    print(f"bytes per token, whole tars     {size:8.2f}")


def find_or_create(checkpoint: str, folder: Path) -> Path:
    """Return the path of a checkpoint; for the name of a packaged config, an untrained one, written to ``folder``."""
    if Path(checkpoint).exists() or not checkpoint.isidentifier():
        return Path(checkpoint)
    config = settings.validate(TokenizerConfig, settings.read_yaml(settings.find_config(checkpoint))["model"])
    torch.manual_seed(0)
    tensors = {name: tensor.numpy() for name, tensor in VideoTokenizer(config).inference_state_dict().items()}
    write_checkpoint(folder, config.to_dict(), PREPROCESSING, tensors, step=0)
    return folder


def measure_bare(clips: Path, checkpoint: Path, workers: int, count: int) -> tuple[float, float, float]:
    """Measure the total frames per second, and the CPU time to encode and to decode a frame (ms).

    Raises:
        BrokenProcessPool: a process died. Any other error of a process is raised as well.
    """
    shards = [clips / shard for shard in read_plan(clips).shard_names()]
    start = multiprocessing.get_context("spawn")
    barrier = start.Barrier(workers)
    with ProcessPoolExecutor(workers, mp_context=start, initializer=_share, initargs=(barrier,)) as pool:
        share = count // workers
        running = [pool.submit(_encode, shards[index::workers], checkpoint, share) for index in range(workers)]
        try:
            rates = [done.result() for done in as_completed(running)]
        except BrokenProcessPool:
            # The pool has ended the others.
            raise
        except BaseException:
            # The others wait for the one that failed.
            barrier.abort()
            raise
    speed, encode_ms, decode_ms = zip(*rates, strict=True)
    return sum(speed), statistics.mean(encode_ms), statistics.mean(decode_ms)


def _share(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _encode(shards: list[Path], checkpoint: Path, count: int) -> tuple[float, float, float]:
    torch.set_num_threads(1)
    tokenizer, _ = load_tokenizer(find_tokenizer(checkpoint))
    per_shard = -(-count // len(shards))
    media = [entry for shard in shards for entry in islice(read_clips(shard), per_shard)]
    decode_clip(media[0][1], media[0][0])
    _barrier.wait()
    decoding_s = -process_time()
    clips = [decode_clip(data, key) for key, data, _ in media]
    decoding_s += process_time()
    frames = sum(map(len, clips))
    videos = [to_video(clip) for clip in clips]
    with torch.inference_mode():
        tokenizer.encode(videos[0])
        _barrier.wait()
        started, busy_s = monotonic(), -process_time()
        for video in videos:
            tokenizer.encode(video)
        encoding_s = monotonic() - started
        busy_s += process_time()
    return frames / encoding_s, busy_s / frames * 1e3, decoding_s / frames * 1e3


def _job(clips: Path, checkpoint: Path, workers: int) -> tuple[float, float, float, float]:
    """Measure frames per second of the command and after the first commits, bytes per token, CPU ms per frame."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "tokens")
        command = [sys.executable, "-m", "vidvq", "tokenize", str(clips), "--checkpoint", str(checkpoint)]
        started = monotonic()
        with subprocess.Popen(
            [*command, "--out", str(out), f"runtime.workers={workers}"], stderr=subprocess.DEVNULL
        ) as running:
            used = _watch(running)
        if running.returncode:
            sys.exit(f"vidvq tokenize exited with code {running.returncode}")
        elapsed_s = monotonic() - started
        done = []
        for shard in read_plan(out).shard_names():
            commit = read_commit(out, shard)
            assert commit is not None
            done.append(((out / "commits" / f"{shard}.json").stat().st_mtime, commit.stats))
        done.sort(key=lambda entry: entry[0])
        frames = [totals["frames"] for _, totals in done]
        tokens = sum(totals["tokens"] for _, totals in done)
        size = sum((out / shard).stat().st_size for shard in read_plan(out).shard_names())
        # Start after the first commit of each worker: those shards were encoded before the measured interval.
        begun = done[workers - 1][0]
        times, seconds = zip(*used, strict=True)
        busy_s = float(np.interp(done[-1][0], times, seconds) - np.interp(begun, times, seconds))
        later = sum(frames[workers:])
        return sum(frames) / elapsed_s, later / (done[-1][0] - begun), size / tokens, busy_s / later * 1e3


def _watch(command: subprocess.Popen[bytes]) -> list[tuple[float, float]]:
    """Sample ``(time, CPU seconds so far)`` of a command and its descendants until it exits."""
    used: dict[tuple[str, str], float] = {}
    results = []
    while command.poll() is None:
        below, found = {str(command.pid)}, {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                found[process.name] = (process / "stat").read_text().rpartition(")")[2].split()
        while more := {pid for pid, fields in found.items() if fields[1] in below} - below:
            below |= more
        for pid in below & found.keys():
            ticks = int(found[pid][11]) + int(found[pid][12])
            used[pid, found[pid][19]] = ticks / os.sysconf("SC_CLK_TCK")
        results.append((time(), sum(used.values())))
        sleep(0.5)
    return results


if __name__ == "__main__":
    main()
