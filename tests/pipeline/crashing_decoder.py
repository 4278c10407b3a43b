"""What a decoding process runs in place of the real one: it crashes on one item. By name, in a process of its own."""

import os
import signal
from collections.abc import Iterator

from vidvq.corpus.frames import ClipFrames, Piece, VideoFrames, decode_items


def decode_or_crash(job: ClipFrames | VideoFrames) -> Iterator[Piece]:
    """Segfaults on the items whose keys end in 2."""
    for piece in decode_items(job):
        if piece.key.endswith("-00002"):
            os.kill(os.getpid(), signal.SIGSEGV)
        yield piece
