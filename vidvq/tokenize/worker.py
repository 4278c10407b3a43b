"""What a worker of the job does: frames in from a process that decodes, codes out, one shard after another."""

from collections import Counter, deque
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidvq.corpus.amend import LEFT_OUT
from vidvq.corpus.frames import FrameJob, Piece, decode_items
from vidvq.errors import UsageError
from vidvq.formats.commit import Outcome, ShardDraft, commit_shard
from vidvq.formats.reuse import reusable_samples
from vidvq.formats.token_shard import TokenInfo, TokenizerCard, parse_info, token_files
from vidvq.metrics.codes import CodeCounts
from vidvq.pretrained import load_tokenizer
from vidvq.runtime import Feeder, WorkerDied
from vidvq.tokenize.account import Made, Stopwatch
from vidvq.tokenize.clips import local_clips
from vidvq.tokenize.config import QualityPolicy, TokenizeConfig
from vidvq.tokenize.encode import Step, stream
from vidvq.tokenize.lanes import Lane, run_lanes
from vidvq.tokenize.quality import Scorer, is_scored, keep_frames, refuse_poor, stats_of
from vidvq.video import VideoError

# Decoded at a time, in whole groups: enough that a step costs more than sending it, little enough for any memory.
_CHUNK_FRAMES = 32
# A decoding process may have been killed from outside; what kills it so often is the video.
_TRIES = 3


@dataclass(frozen=True)
class TokenJob:
    """One shard to make; travels to a worker.

    ``clips`` is the directory of clip shards, None for raw video. ``older`` are the names the shard had before, whose
    samples may serve again.
    """

    clips: Path | None
    out: Path
    shard: str
    plan_id: str
    rows: list[dict[str, Any]]
    config: TokenizeConfig
    older: list[tuple[str, int]] = field(default_factory=list)

    @property
    def batch(self) -> int:
        """How many streams are stepped together."""
        return self.config.batch or 1


class _DecoderDied(Exception):
    """The decoding process crashed or ran past its deadline."""


class ShardMaker:
    """Makes one token shard after another with a tokenizer that is loaded once.

    Args:
        checkpoint: of the tokenizer.
        policy: which samples are scored.
    """

    def __init__(self, checkpoint: Path, policy: QualityPolicy) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        # One thread whoever runs it, so that no sum is ever split another way and tokens never differ by machine size.
        torch.set_num_threads(1)
        self._tokenizer, self._card = load_tokenizer(checkpoint)
        self._tokenizer.to(device)
        self._feeders: list[Feeder] = []
        self._scorer = Scorer(self._tokenizer, policy)
        # On a GPU this thread waits while it encodes; on the CPU it only waits where others have its core.
        self._clock = Stopwatch(computes=("encode", "score") if device == "cpu" else ())

    def __call__(self, job: TokenJob) -> Made:
        """Make a shard and commit it."""
        counts, copied = CodeCounts(self._card), Counter[str]()
        with ExitStack() as stack:
            with self._clock.stage("fetch"):
                file = stack.enter_context(local_clips(job.clips, job.rows[0])) if job.clips else None
            with self._clock.stage("write"):
                commit = commit_shard(job.out, job.shard, job.plan_id, partial(self._fill, job, file, counts, copied))
        return self._clock.made(commit, counts, dict(copied))

    def _fill(
        self, job: TokenJob, file: Path | None, counts: CodeCounts, copied: Counter[str], draft: ShardDraft
    ) -> None:
        for row in job.rows:
            if row.get("reason"):
                outcomes = draft.filtered if row["reason"] in LEFT_OUT else draft.failed
                source = row["clip_shard"] if job.clips else row["uri"]
                outcomes.append(Outcome(row["key"], row["reason"], f"{source}: {row['detail']}"))
        keys = [row["key"] for row in job.rows if not row.get("reason")]
        desk = _Desk(job.config, self._card, draft, keys, counts, copied)
        reused = reusable_samples(job.out, job.older, job.rows) if job.older else {}
        while len(self._feeders) < job.batch:
            self._feeders.append(Feeder())
        lanes = []
        for part, feeder in zip(_split(job), self._feeders, strict=True):
            left = deque(row for row in part if not row.get("reason") and row["key"] not in reused)
            lanes.append(self._lane(job, file, left, feeder, desk))
        for key, files in reused.items():
            desk.put(_Copy(key, files))
        run_lanes(self._tokenizer, lanes, self._clock)
        refuse_poor(job.shard, desk.scores, job.config.quality)

    def _lane(
        self, job: TokenJob, file: Path | None, left: deque[dict[str, Any]], feeder: Feeder, desk: "_Desk"
    ) -> Lane:
        """Encode some items in their order, while the next are decoded."""
        group = self._tokenizer.temporal_factor
        chunk = max(_CHUNK_FRAMES // group, 1) * group
        deaths = 0
        while left:
            before = len(left)
            where = file or left[0]["uri"]
            work = FrameJob(tuple(left), file, job.config.video, job.config.limits, chunk)
            decoded = feeder.feed(decode_items, work, work.limits.deadline_s)
            if (yield from self._encode(job.config, decoded, left, desk)):
                deaths = deaths + 1 if len(left) == before else 1
                if deaths >= _TRIES:
                    deaths = 0
                    row = left.popleft()
                    detail = f"the decoder crashed on it or ran past limits.deadline_s={job.config.limits.deadline_s:g}"
                    desk.put(Outcome(row["key"], "decoder_died", f"{row.get('uri', where)}: {detail}"))
            elif left:
                raise UsageError(f"{where} lacks {left[0]['key']}, which was planned")

    def _encode(
        self,
        config: TokenizeConfig,
        decoded: Generator[Piece | WorkerDied, None, None],
        left: deque[dict[str, Any]],
        desk: "_Desk",
    ) -> Generator[Step, tuple[np.ndarray, Any], bool]:
        """Encode items and take each off ``left``; True where the decoding process died."""
        with closing(decoded):
            pieces = self._clock.waiting("decode", decoded)
            for piece in pieces:
                if isinstance(piece, WorkerDied):
                    return True
                try:
                    if piece.error:
                        raise piece.error
                    assert piece.stretch is not None
                    frames, kept = _frames(pieces), []
                    scored = is_scored(piece.key, config.quality.share)
                    chunks = keep_frames(self._tokenizer, frames, kept) if scored else frames
                    codes = yield from stream(self._tokenizer, chunks, self._card.dtype)
                except _DecoderDied:
                    return True
                except VideoError as error:
                    desk.put(Outcome(piece.key, error.reason, error.detail))
                else:
                    with self._clock.stage("score"):
                        quality = self._scorer.score(codes, kept) if scored else None
                    grid = tuple(int(length) for length in codes.shape)
                    fields = {name: getattr(piece.stretch, name) for name in asdict(piece.stretch)}
                    info = TokenInfo(grid=grid, quality=quality, **fields)
                    desk.put(_Sample(piece.key, codes, info))
                left.popleft()
        return False


@dataclass(frozen=True)
class _Sample:
    key: str
    codes: np.ndarray
    info: TokenInfo


@dataclass(frozen=True)
class _Copy:
    key: str
    files: dict[str, bytes]


class _Desk:
    """Where lanes put what they made; it goes into the shard in the order of the plan."""

    def __init__(
        self,
        config: TokenizeConfig,
        card: TokenizerCard,
        draft: ShardDraft,
        keys: list[str],
        counts: CodeCounts,
        copied: Counter[str],
    ) -> None:
        self.scores: list[float] = []
        self._config, self._card, self._draft, self._counts = config, card, draft, counts
        self._copied = copied
        self._keys = deque(keys)
        self._early: dict[str, _Sample | _Copy | Outcome] = {}

    def put(self, made: "_Sample | _Copy | Outcome") -> None:
        """Take an item, whichever comes first."""
        self._early[made.key] = made
        while self._keys and (ready := self._early.pop(self._keys[0], None)):
            self._keys.popleft()
            if isinstance(ready, Outcome):
                self._draft.failed.append(ready)
            elif isinstance(ready, _Copy):
                self._copied.update(self._add(ready.key, ready.files, parse_info(ready.files, ready.key)))
            else:
                self._counts.add(ready.codes)
                files = token_files(ready.codes, ready.info, self._card, self._config.pack)
                self._add(ready.key, files, ready.info)

    def _add(self, key: str, files: dict[str, bytes], info: TokenInfo) -> dict[str, int]:
        """Write a sample; returns what it adds to the shard's totals."""
        self.scores += [info.quality["psnr"]] if info.quality else []
        stats = {"frames": info.num_frames, "tokens": prod(info.grid)}
        stats |= stats_of(info.quality) if info.quality else {}
        self._draft.add(key, files, **stats)
        return stats


def _split(job: TokenJob) -> list[list[dict[str, Any]]]:
    """The items of each lane, by their places in the plan's shard alone; those with nothing to encode keep theirs.

    A lane has neighbours, which are decoded from one video in one go. Unbroken streams share none, and may be hours of
    tokens that wait for their turn in the shard: these are dealt out.
    """
    if job.clips is None and job.config.gop_frames is None:
        return [job.rows[place :: job.batch] for place in range(job.batch)]
    edges = [len(job.rows) * place // job.batch for place in range(job.batch + 1)]
    return [job.rows[start:stop] for start, stop in pairwise(edges)]


def _frames(pieces: Iterator[Piece | WorkerDied]) -> Iterator[np.ndarray]:
    for piece in pieces:
        if isinstance(piece, WorkerDied):
            raise _DecoderDied(piece.message)
        if piece.error:
            raise piece.error
        if piece.done:
            return
        assert piece.frames is not None
        yield piece.frames
