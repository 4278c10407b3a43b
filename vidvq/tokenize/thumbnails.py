"""The contact sheet of a tokenize job: original frames of sampled items above their reconstructions."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from vidvq.corpus.fetch import local_file
from vidvq.corpus.frames import ClipFrames, VideoFrames, decode_first
from vidvq.errors import StoreError, UsageError
from vidvq.formats.commit import Commit
from vidvq.formats.token_shard import parse_tokens
from vidvq.jobs.local_clips import local_clips
from vidvq.jobs.report import jpeg_grid, read_sample
from vidvq.jobs.stage import Thumbnail
from vidvq.metrics.pixel import psnr
from vidvq.model.enlarge import shrink_frames
from vidvq.model.streaming import decode_start
from vidvq.pretrained import load_tokenizer
from vidvq.runtime import InlinePool
from vidvq.tokenize.config import TokenizeConfig
from vidvq.video import VideoError

# Number of groups that are decoded per sample; decoding costs more than encoding.
_GROUPS = 3
# Limit of the pixels that are decoded for one sheet. A CPU decodes about a million per second.
_MAX_PIXELS = 16_000_000


def token_thumbnails(
    out: Path,
    drawn: Sequence[tuple[Commit, Any]],
    checkpoint: Path,
    config: TokenizeConfig,
    clips: Path | None,
) -> Iterator[Thumbnail]:
    """Yield three of the first frames of each sample (first, middle, last) above their reconstructions.

    Large samples are few: decoding ends after 16 million pixels.

    Args:
        drawn: commit record and row of each sample.
        clips: directory of clip shards; None for raw video.
    """
    tokenizer, card = load_tokenizer(checkpoint)
    # Other nodes cannot read the temporary copies of this one.
    pool = InlinePool()
    pixels = 0
    for _, samples in groupby(drawn, key=lambda pair: pair[1].origin):
        with ExitStack() as opened:
            file = None
            for commit, row in samples:
                if pixels > _MAX_PIXELS:
                    return
                try:
                    codes, info = parse_tokens(read_sample(out, commit, row.key), card, row.key)
                    count = info.num_frames
                    if tokenizer.supports_streaming:
                        count = min(1 + (_GROUPS - 1) * tokenizer.temporal_factor, count)
                    # Held for all samples of one input, so that a remote one is downloaded once.
                    file = file or opened.enter_context(_local_input(row, config, clips))
                    originals = _originals(row, count, config, file if clips else None, pool)
                except (OSError, KeyError, StoreError, UsageError, VideoError):
                    # An input is gone, or another driver is cleaning up; the job itself has succeeded.
                    continue
                if originals is None:
                    continue
                (decoded,) = decode_start(tokenizer, [codes], count, (info.height, info.width))
                pixels += count * info.height * info.width
                decoded = shrink_frames(decoded, tokenizer.upscale)
                some = [0, count // 2, count - 1]
                caption = (
                    f"{info.num_frames} frames, {info.width}×{info.height}, {info.fps:.3g} fps; the first {count} "
                    f"frames have {psnr(originals, decoded):.1f} dB"
                )
                grid = [[originals[at] for at in some], [decoded[at] for at in some]]
                yield Thumbnail(row.key, caption, jpeg_grid(grid))


def _local_input(row: Any, config: TokenizeConfig, clips: Path | None) -> AbstractContextManager[Path | None]:
    """The clip shard or the video of a sample as a local file, whose copy processes of this machine share."""
    if clips:
        return local_clips(clips, row)
    return local_file(row.source, config.limits, config.lists.allow_private, row.sha256)


def _originals(row: Any, count: int, config: TokenizeConfig, shard: Path | None, pool: InlinePool) -> np.ndarray | None:
    """The first frames ``t h w c`` uint8 of one sample, from a clip shard if given; None if they cannot be decoded."""
    job: ClipFrames | VideoFrames
    if shard:
        job = ClipFrames(shard, frozenset([row.key]))
    else:
        job = VideoFrames((row,), config.video, config.limits, max(count - 1, 1), config.lists.allow_private)
    ((_, found),) = pool.map(decode_first, [job], deadline_s=config.limits.deadline_s)
    return found[:count] if isinstance(found, np.ndarray) and len(found) >= count else None
