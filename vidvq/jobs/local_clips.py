"""The clip shard that a shard is made from, as a local file."""

import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vidvq.corpus.fetch import local_file
from vidvq.corpus.source import Source
from vidvq.errors import StoreError, UsageError
from vidvq.jobs.rows import ClipRow
from vidvq.storage import safe_join
from vidvq.video import VideoError
from vidvq.video.limits import Limits

# The plan has the digest of a clip shard, whatever its size.
_NO_LIMIT = Limits(max_bytes=sys.maxsize)


@contextmanager
def local_clips(clips: Path, row: ClipRow) -> Generator[Path | None]:
    """Open a clip shard, or a temporary copy if it is remote, after checking that it is the planned one.

    Args:
        row: any clip of the shard.

    Yields:
        The file; None if the shard no longer holds any clip.

    Raises:
        UsageError: the file is missing, or has other content.
        StoreError: it cannot be fetched.
    """
    if not row.clip_shard_sha256:
        yield None
        return
    path = safe_join(clips, row.clip_shard)
    with ExitStack() as stack:
        try:
            file = stack.enter_context(local_file(Source(str(path)), _NO_LIMIT, True, row.clip_shard_sha256))
        except VideoError as error:
            if error.reason.startswith("fetch_failed"):
                raise StoreError(f"{path}: {error.detail}; run the same command again to resume") from error
            raise UsageError(f"{path} is missing or not the one that was planned; run vidvq verify {clips}") from error
        yield file
