"""What a job would do and cost, from a sample of its inputs that is really probed and cut. Writes nothing."""

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from vidvq.corpus.draw import draw, tell_time
from vidvq.corpus.inputs import list_sources
from vidvq.errors import UsageError
from vidvq.formats.tar import BLOCK_BYTES
from vidvq.log import progress
from vidvq.runtime import WorkerDied, start
from vidvq.shard.config import ShardConfig
from vidvq.shard.cut import Cut, CutJob, cut_clips
from vidvq.shard.plan import ProbeJob, plan_source

_PROBED = 256
_CUT_VIDEOS = 12
_CUT_CLIPS = 4


@dataclass(frozen=True)
class Estimate:
    """What ``--dry-run`` found. All but ``videos`` is scaled up from the sample where that is smaller.

    Attributes:
        videos: inputs.
        probed: inputs that were looked into.
        clips: that would be cut.
        shards: that would be made.
        bytes: of the shards.
        left_out: reason -> items that would be filtered or failed already in the plan.
        workers: that the time is for.
        seconds: from start to end; None where not one clip could be cut.
    """

    videos: int
    probed: int
    clips: int
    shards: int
    bytes: int
    left_out: dict[str, int]
    workers: int
    seconds: float | None

    def lines(self) -> list[str]:
        """The estimate in plain words."""
        exact = self.probed == self.videos
        about = "" if exact else "about "
        text = [
            f"{self.videos} videos give {about}{self.clips} clips in {self.shards} shards, "
            f"about {self.bytes / 1e6:.1f} MB; nothing was written"
        ]
        text += [f"  left out by plan, {reason}: {about}{count}" for reason, count in sorted(self.left_out.items())]
        if self.seconds is not None:
            text.append(tell_time(self.seconds, self.workers))
        if not exact:
            text.append(f"  estimated from {self.probed} videos drawn at random")
        return text


def estimate(inputs: list[str], config: ShardConfig) -> Estimate:
    """Probe a sample of the inputs, cut some of their clips, and scale up.

    Raises:
        ValueError: a mistake in the arguments.
    """
    videos, sample = draw(list_sources(inputs, config.lists), _PROBED)
    if not videos:
        raise UsageError("the inputs name no video at all")
    with start(config.runtime) as pool:
        probed: list[list[dict[str, Any]]] = []
        probe_s = cut_s = 0.0
        jobs = [ProbeJob(source, config) for source in sample]
        with progress("probe", len(jobs), "videos") as bar:
            for _, found in pool.map(_timed_plan, jobs, deadline_s=config.limits.deadline_s):
                bar.advance()
                if not isinstance(found, WorkerDied):
                    probe_s += found[0]
                    probed.append(found[1])
        some = [[row for row in rows if not row["verdict"]][:_CUT_CLIPS] for rows in probed]
        cuts = [CutJob(tuple(rows), config) for rows in some if rows][:_CUT_VIDEOS]
        made: list[Cut] = []
        with progress("cut", len(cuts), "videos") as bar:
            for _, found in pool.map(_timed_cut, cuts, deadline_s=config.limits.deadline_s):
                bar.advance()
                if not isinstance(found, WorkerDied):
                    cut_s += found[0]
                    made += found[1]
        workers = pool.size
    scale = videos / len(sample)
    rows = [row for rows in probed for row in rows]
    clips = round(scale * sum(not row["verdict"] for row in rows))
    left_out = Counter(row["reason"] for row in rows if row["verdict"])
    sizes = [sum(map(_in_tar, cut.files.values())) for cut in made if cut.files]
    return Estimate(
        videos=videos,
        probed=len(sample),
        clips=clips,
        shards=-(-round(scale * len(rows)) // config.clips_per_shard),
        bytes=round(clips * sum(sizes) / len(sizes)) if sizes else 0,
        left_out={reason: round(scale * count) for reason, count in left_out.items()},
        workers=workers,
        seconds=(scale * probe_s + clips * cut_s / len(made)) / workers if made else None,
    )


def _in_tar(data: bytes) -> int:
    return BLOCK_BYTES + -(-len(data) // BLOCK_BYTES) * BLOCK_BYTES


def _timed_plan(job: ProbeJob) -> tuple[float, list[dict[str, Any]]]:
    began = time.monotonic()
    rows = plan_source(job)
    return time.monotonic() - began, rows


def _timed_cut(job: CutJob) -> tuple[float, list[Cut]]:
    began = time.monotonic()
    made = cut_clips(job)
    return time.monotonic() - began, made
