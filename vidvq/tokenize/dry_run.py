"""What a job would make and cost, from a sample of it that is really encoded, in a folder that is gone afterwards."""

import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from vidvq.corpus.draw import draw, tell_time
from vidvq.corpus.inputs import list_sources
from vidvq.errors import UsageError
from vidvq.formats.commit import Commit
from vidvq.formats.plan import read_plan
from vidvq.log import progress
from vidvq.runtime import Pool, WorkerDied, start
from vidvq.tokenize.config import TokenizeConfig
from vidvq.tokenize.job import open_job
from vidvq.tokenize.plan import clip_shards, rows_of
from vidvq.tokenize.videos import LookJob, look_at
from vidvq.tokenize.worker import ShardMaker, TokenJob

_LOOKED_INTO = 256
_JOBS = 4
_ITEMS = 8
_FRAMES = 128


@dataclass(frozen=True)
class Estimate:
    """What ``--dry-run`` found. All that the sample was too small for is scaled up from it.

    Attributes:
        sources: videos, or shards of clips.
        samples: that would be made, one for each clip or fresh start of a stream.
        shards: that they would be in.
        frames, tokens, bytes: of all of them.
        exact: whether ``samples``, ``shards`` and ``frames`` are counted and not estimated.
        encoded: samples that the rest is estimated from.
        workers: that the time is for.
        seconds: from the first shard to the last; None where not one sample could be encoded.
    """

    sources: int
    samples: int
    shards: int
    frames: int
    tokens: int
    bytes: int
    exact: bool
    encoded: int
    workers: int
    seconds: float | None

    def lines(self) -> list[str]:
        """The estimate in plain words."""
        about = "" if self.exact else "about "
        text = [
            f"{about}{self.samples} samples of {about}{self.frames} frames give {self.tokens} tokens in {about}"
            f"{self.shards} shards, about {self.bytes / 1e6:.1f} MB; nothing was written"
        ]
        text += [tell_time(self.seconds, self.workers)] if self.seconds is not None else []
        return [*text, f"  estimated from {self.encoded} samples that were encoded"]


@dataclass(frozen=True)
class _Corpus:
    sources: int
    samples: int
    shards: int
    frames: int
    exact: bool
    drawn: list[list[dict[str, Any]]]


def estimate(sources: list[str], checkpoint: Path, config: TokenizeConfig) -> Estimate:
    """Count a corpus, or a sample of it, encode some, and scale up.

    Raises:
        ValueError: a mistake in the arguments.
    """
    job = open_job(sources, checkpoint, config)
    with start(job.config.runtime) as pool:
        corpus = _count_clips(job.clips) if job.clips else _look_into_videos(sources, job.config, pool)
        some = enumerate(corpus.drawn)
        drawn = [TokenJob(job.clips, Path(), f"sample-{number}.tar", "", rows, job.config) for number, rows in some]
        made: list[tuple[Commit, float]] = []
        with progress("encode", len(drawn), "samples") as bar:
            make = partial(_TimedMaker, job.folder, job.config)
            for _, done in pool.map_stateful(make, drawn, gpus=job.gpus):
                bar.advance()
                if not isinstance(done, WorkerDied):
                    made.append(done)
        workers = max(min(pool.size, corpus.shards), 1)
    frames = sum(commit.stats.get("frames", 0) for commit, _ in made)
    scale = corpus.frames / frames if frames else 0.0
    return Estimate(
        sources=corpus.sources,
        samples=corpus.samples,
        shards=corpus.shards,
        frames=corpus.frames,
        tokens=round(scale * sum(commit.stats.get("tokens", 0) for commit, _ in made)),
        bytes=round(scale * sum(commit.bytes for commit, _ in made)),
        exact=corpus.exact,
        encoded=sum(commit.ok for commit, _ in made),
        workers=workers,
        seconds=scale * sum(seconds for _, seconds in made) / workers if frames else None,
    )


def _count_clips(clips: Path) -> _Corpus:
    """All of a directory of clip shards, by its commit records."""
    shards = list(clip_shards(clips, read_plan(clips)))
    samples = sum(commit.ok for commit in shards)
    frames = sum(commit.stats["frames"] for commit in shards)
    drawn = [rows_of(commit)[:_ITEMS] for commit in shards[:: max(len(shards) // _JOBS, 1)][:_JOBS]]
    return _Corpus(len(shards), samples, len(shards), frames, True, drawn)


def _look_into_videos(inputs: list[str], config: TokenizeConfig, pool: Pool) -> _Corpus:
    """A sample of raw videos, scaled up."""
    videos, sample = draw(list_sources(inputs, config.lists), _LOOKED_INTO)
    if not videos:
        raise UsageError("the inputs name no video at all")
    looked: list[list[dict[str, Any]]] = []
    with progress("probe", len(sample), "videos") as bar:
        jobs = [LookJob(source, config) for source in sample]
        for _, found in pool.map(look_at, jobs, deadline_s=config.limits.deadline_s):
            bar.advance()
            if not isinstance(found, WorkerDied):
                looked.append([row for row in found if not row["reason"]])
    scale = videos / len(sample)
    samples = round(scale * sum(map(len, looked)))
    frames = round(scale * sum(row["num_frames"] for rows in looked for row in rows))
    # One unbroken stream may be hours long.
    drawn = [
        [row | {"num_frames": min(row["num_frames"], _FRAMES)} for row in rows[:_ITEMS]] for rows in looked if rows
    ]
    shards = -(-samples // config.items_per_shard)
    return _Corpus(videos, samples, shards, frames, len(sample) == videos, drawn[:_JOBS])


class _TimedMaker:
    """Makes shards in a folder that is gone afterwards; returns each one's record and what it took, seconds."""

    def __init__(self, checkpoint: Path, config: TokenizeConfig) -> None:
        self._make = ShardMaker(checkpoint, config.quality)
        self._warm = False

    def __call__(self, job: TokenJob) -> tuple[Commit, float]:
        with tempfile.TemporaryDirectory(prefix="vidvq-dry-run-") as scratch:
            if not self._warm:
                self._make(replace(job, out=Path(scratch, "first")))
                self._warm = True
            began = time.monotonic()
            made = self._make(replace(job, out=Path(scratch, "timed")))
            return made.commit, time.monotonic() - began
