"""What a worker of the job does: frames in from a process that decodes, codes out, one shard after another."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidvq.corpus.frames import FrameJob, Piece, decode_items
from vidvq.formats.commit import Commit, Outcome, ShardDraft, commit_shard
from vidvq.formats.token_shard import TokenInfo, TokenizerCard, token_files
from vidvq.metrics.codes import CodeCounts
from vidvq.model import Tokenizer
from vidvq.model.checkpoint import load_tokenizer
from vidvq.runtime import Feeder, WorkerDied
from vidvq.tokenize.clips import local_clips
from vidvq.tokenize.config import QualityPolicy, TokenizeConfig
from vidvq.tokenize.encode import encode_stream
from vidvq.tokenize.quality import Scorer, is_scored, keep_frames, refuse_poor, stats_of
from vidvq.video import VideoError

# Decoded at a time, in whole groups: enough that a step costs more than sending it, little enough for any memory.
_CHUNK_FRAMES = 32
# A decoding process may have been killed from outside; what kills it so often is the video.
_TRIES = 3


@dataclass(frozen=True)
class TokenJob:
    """One shard to make; travels to a worker. ``clips`` is the directory of clip shards, None for raw video."""

    clips: Path | None
    out: Path
    shard: str
    plan_id: str
    rows: list[dict[str, Any]]
    config: TokenizeConfig


class _DecoderDied(Exception):
    """The decoding process crashed or ran past its deadline."""


def make_worker(checkpoint: Path, policy: QualityPolicy) -> Callable[[TokenJob], tuple[Commit, CodeCounts]]:
    """Load the tokenizer once; returns what makes a shard with it, and counts its codes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # One thread whoever runs it, so that no sum is ever split another way and tokens never differ by machine size.
    torch.set_num_threads(1)
    tokenizer, card = load_tokenizer(checkpoint)
    tokenizer.to(device)
    feeder, scorer = Feeder(), Scorer(tokenizer, policy)

    def make_shard(job: TokenJob) -> tuple[Commit, CodeCounts]:
        counts = CodeCounts(card)
        path = job.clips / job.rows[0]["clip_shard"] if job.clips else None

        def fill(draft: ShardDraft, file: Path | None) -> None:
            planned_out = [row for row in job.rows if row.get("reason")]
            draft.failed += [
                Outcome(row["key"], row["reason"], f"{row['uri']}: {row['detail']}") for row in planned_out
            ]
            left = deque(row for row in job.rows if not row.get("reason"))
            deaths = 0
            scores: list[float] = []
            while left:
                before = len(left)
                work = _frame_job(job, file, left, tokenizer)
                decoded = feeder.feed(decode_items, work, work.limits.deadline_s)
                if _encode(tokenizer, scorer, card, job.config, decoded, left, draft, scores, counts):
                    deaths = deaths + 1 if len(left) == before else 1
                    if deaths >= _TRIES:
                        deaths = 0
                        row = left.popleft()
                        detail = (
                            f"the decoder crashed on it or ran past limits.deadline_s={job.config.limits.deadline_s:g}"
                        )
                        draft.failed.append(Outcome(row["key"], "decoder_died", f"{row.get('uri', path)}: {detail}"))
                elif left:
                    raise ValueError(f"{path or left[0]['uri']} lacks {left[0]['key']}, which was planned")
            refuse_poor(job.shard, scores, job.config.quality)

        with local_clips(job.clips, job.rows[0]) if job.clips else nullcontext() as file:
            return commit_shard(job.out, job.shard, job.plan_id, partial(fill, file=file)), counts

    return make_shard


def _frame_job(job: TokenJob, path: Path | None, left: deque[dict[str, Any]], tokenizer: Tokenizer) -> FrameJob:
    group = tokenizer.temporal_factor
    return FrameJob(tuple(left), path, job.config.video, job.config.limits, max(_CHUNK_FRAMES // group, 1) * group)


def _encode(
    tokenizer: Tokenizer,
    scorer: Scorer,
    card: TokenizerCard,
    config: TokenizeConfig,
    decoded: Generator[Piece | WorkerDied, None, None],
    left: deque[dict[str, Any]],
    draft: ShardDraft,
    scores: list[float],
    counts: CodeCounts,
) -> bool:
    """Encode items while the next are decoded, and take each off ``left``; True where the decoding process died.

    Args:
        scores: PSNR of each item that was scored, added to.
        counts: of the codes of each item that was encoded, added to.
    """
    with closing(decoded) as pieces:
        for piece in pieces:
            if isinstance(piece, WorkerDied):
                return True
            try:
                if piece.error:
                    raise piece.error
                assert piece.stretch is not None
                frames, kept = _frames(pieces), []
                scored = is_scored(piece.key, config.quality.share)
                codes = encode_stream(tokenizer, keep_frames(tokenizer, frames, kept) if scored else frames)
            except _DecoderDied:
                return True
            except VideoError as error:
                draft.failed.append(Outcome(piece.key, error.reason, error.detail))
            else:
                grid = tuple(int(length) for length in codes.shape)
                counts.add(codes)
                quality = scorer.score(codes, kept) if scored else None
                scores += [quality["psnr"]] if quality else []
                fields = {name: getattr(piece.stretch, name) for name in asdict(piece.stretch)}
                files = token_files(codes, TokenInfo(grid=grid, quality=quality, **fields), card, config.pack)
                stats = {"frames": piece.stretch.num_frames, "tokens": int(codes.size)}
                draft.add(piece.key, files, **stats | (stats_of(quality) if quality else {}))
            left.popleft()
    return False


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
