"""The clip shard that a token shard is made from, as a file of this machine."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from vidvq.corpus.fetch import local_file
from vidvq.corpus.inputs import Source
from vidvq.errors import StoreError, UsageError
from vidvq.video import VideoError


@contextmanager
def local_clips(clips: Path, row: dict[str, Any]) -> Iterator[Path | None]:
    """A clip shard itself where it is on this machine, else a temporary copy of it; with the content that was planned.

    None where it holds nothing any more.

    Args:
        clips: a directory of clip shards.
        row: of the plan, of any clip in it.

    Raises:
        ValueError: it is missing, or has other content.
        StoreError: it cannot be fetched.
    """
    if not row["clip_shard_sha256"]:
        yield None
        return
    path = clips / row["clip_shard"]
    with ExitStack() as stack:
        try:
            file = stack.enter_context(local_file(Source(str(path)), sys.maxsize, row["clip_shard_sha256"]))
        except VideoError as error:
            if error.reason == "fetch_failed":
                raise StoreError(f"{path}: {error.detail}; run the same command again to go on") from error
            raise UsageError(f"{path} is missing or not the one that was planned; run vidvq verify {clips}") from error
        yield file
