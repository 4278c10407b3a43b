"""The tokenization job: plan, then one idempotent unit of work per shard."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vidvq.formats.clip_shard import ClipInfo, read_clips
from vidvq.formats.commit import Commit, Outcome, ShardDraft, commit_shard, read_commit
from vidvq.formats.summary import JobSummary, summarize
from vidvq.formats.token_shard import TokenInfo, token_files, write_tokenizer_card
from vidvq.log import info, progress
from vidvq.model import Tokenizer
from vidvq.model.checkpoint import find_tokenizer, load_tokenizer
from vidvq.model.pixels import to_video
from vidvq.runtime import WorkerDied, start
from vidvq.storage import sha256_file
from vidvq.tokenize.config import TokenizeConfig
from vidvq.tokenize.plan import plan_tokens
from vidvq.video import VideoError
from vidvq.video.decode import decode_clip


@dataclass(frozen=True)
class TokenJob:
    """One shard to make; travels to a worker."""

    clips: Path
    out: Path
    shard: str
    plan_id: str
    rows: list[dict[str, Any]]


def run_tokenize(clips: Path, checkpoint: Path, out: Path, config: TokenizeConfig) -> JobSummary:
    """Tokenize a directory of clip shards, or finish a job that was interrupted.

    Args:
        clips: a directory that ``vidvq shard`` finished.
        checkpoint: a checkpoint, or a training run.
        out: the output directory.
        config: how.

    Raises:
        ValueError: a mistake in the arguments; nothing was changed.
        OSError: the disk is full or not writable; what was committed stays.
    """
    folder = find_tokenizer(checkpoint)
    _, card = load_tokenizer(folder)
    plan = plan_tokens(out, clips, card)
    write_tokenizer_card(out, card)
    items = plan.header["items"]
    info(f"plan {plan.plan_id[:12]}: {items} clips in {plan.num_shards} shards by {card.token_fingerprint[:12]}")
    with start(config.runtime) as pool, progress("tokenize", items, "clips") as bar:
        jobs: list[TokenJob] = []
        for index, (shard, rows) in enumerate(plan.shards()):
            if read_commit(out, shard):
                bar.advance(len(rows))
            else:
                jobs.append(TokenJob(clips, out, shard, plan.id_of(index), rows))
        make = partial(make_worker, folder)
        for job, commit in pool.map_stateful(make, jobs, gpus=1 if torch.cuda.is_available() else 0):
            if isinstance(commit, WorkerDied):
                raise OSError(f"{job.shard}: {commit.message}; run the same command again to go on")
            bar.advance(commit.items)
    return summarize(out, plan)


def make_worker(checkpoint: Path) -> Callable[[TokenJob], Commit]:
    """Load the tokenizer once; returns what makes a shard with it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # One thread whoever runs it, so that no sum is ever split another way and tokens never differ by machine size.
    torch.set_num_threads(1)
    tokenizer, card = load_tokenizer(checkpoint)
    tokenizer.to(device)

    def make_shard(job: TokenJob) -> Commit:
        path = job.clips / job.rows[0]["clip_shard"]
        if not path.is_file() or sha256_file(path) != job.rows[0]["clip_shard_sha256"]:
            raise ValueError(f"{path} is missing or not the one that was planned; run vidvq verify {job.clips}")

        def fill(draft: ShardDraft) -> None:
            for key, media, clip in read_clips(path):
                try:
                    codes = encode_clip(tokenizer, media, clip, key)
                except VideoError as error:
                    draft.failed.append(Outcome(key, error.reason, f"{clip.source}: {error.detail}"))
                    continue
                grid = tuple(int(length) for length in codes.shape)
                tokens = TokenInfo(
                    source=clip.source,
                    clip_index=clip.clip_index,
                    grid=grid,
                    num_frames=clip.num_frames,
                    height=clip.height,
                    width=clip.width,
                    fps=clip.fps,
                    time_base=clip.time_base,
                    pts=clip.pts,
                    duration=clip.duration,
                )
                draft.add(key, token_files(codes, tokens, card), frames=clip.num_frames, tokens=int(codes.size))

        return commit_shard(job.out, job.shard, job.plan_id, fill)

    return make_shard


@torch.inference_mode()
def encode_clip(tokenizer: Tokenizer, media: bytes, clip: ClipInfo, key: str) -> Any:
    """Decode and encode one clip; returns codes ``lt lh lw`` as an integer array.

    Raises:
        VideoError: the clip cannot be decoded, or is not what its JSON says.
    """
    frames = decode_clip(media, key)
    if frames.shape != (clip.num_frames, clip.height, clip.width, 3):
        raise VideoError("decode_error", f"{key} has frames {frames.shape}, its JSON says otherwise")
    return tokenizer.encode(to_video(frames).to(tokenizer.device))[0].cpu().numpy()
