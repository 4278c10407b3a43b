"""Generators for decoding processes, which import them by name: some crash, hang or raise."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from vidvq.corpus.frames import ClipFrames, DecodedClip, DecodeMessage, VideoFrames, decode_clips, decode_items
from vidvq.video import VideoError

BROKEN = VideoError("decode_error", "broken")


def decode_or_crash(job: ClipFrames | VideoFrames) -> Iterator[DecodeMessage]:
    """Decode, and crash with a segmentation fault on items whose keys end in ``-00002``."""
    for message in decode_items(job):
        if message.key.endswith("-00002"):
            os.kill(os.getpid(), signal.SIGSEGV)
        yield message


def decode_or_fail(job: ClipFrames | VideoFrames) -> Iterator[DecodeMessage]:
    """Decode; items whose keys end in ``-00001`` are damaged."""
    for message in decode_items(job):
        yield DecodeMessage(message.key, error=BROKEN) if message.key.endswith("-00001") else message


def clips_or_crash(job: ClipFrames) -> Iterator[DecodedClip]:
    """Decode clips; those whose keys end in ``-00001`` are damaged, and those in ``-00002`` crash the decoder."""
    for clip in decode_clips(job):
        if clip.key.endswith("-00001"):
            clip = replace(clip, frames=None, error=BROKEN)
        if clip.key.endswith("-00002"):
            os.kill(os.getpid(), signal.SIGSEGV)
        yield clip


def count_or_die(item: str) -> Iterator[int]:
    """Yield 1 and 2; ``kill`` crashes, ``hang`` waits and ``raise`` raises in between."""
    yield 1
    if item == "kill":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "hang":
        signal.pause()
    if item == "raise":
        raise ValueError("broken")
    yield 2


def process_id(item: str) -> Iterator[int]:
    """Yield the id of the process; ``kill`` crashes it then."""
    yield os.getpid()
    if item == "kill":
        os.kill(os.getpid(), signal.SIGSEGV)


def numbered(job: tuple[int, Path]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the id of this process's parent and an array of 256 KiB, so many times; a file has a byte for each."""
    count, log = job
    with log.open("ab", buffering=0) as file:
        for index in range(count):
            file.write(b".")
            yield os.getppid(), np.full((64, 4096), index % 256, np.uint8)
