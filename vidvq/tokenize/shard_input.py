"""The input of a shard, which is fetched in the background while the previous shard is encoded."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

from vidvq.corpus.download import in_background
from vidvq.corpus.fetch import local_file
from vidvq.corpus.frames import DecodeMessage
from vidvq.formats.reuse import reusable_samples
from vidvq.jobs.local_clips import local_clips
from vidvq.jobs.rows import ClipRow
from vidvq.jobs.stage import ShardTask
from vidvq.runtime import WorkerDied
from vidvq.tokenize.rows import PlannedSample
from vidvq.video.limits import Limits

Row: TypeAlias = ClipRow | PlannedSample
Decoded: TypeAlias = Generator[DecodeMessage | WorkerDied, None, None]


class ShardInput:
    """The items of a shard by slot, and their local files. Close it to delete temporary copies.

    Args:
        clips: directory of clip shards, from which this process opens one; None if it opens none.
        interleave: whether slots take turns over the items, instead of getting consecutive items each.

    Attributes:
        file: local file of the clip shard; None if this process opens none.
        reused: files of the samples that are copied from an older version of the shard, by key and extension.
        left: items of each slot that are not encoded yet.

    Raises:
        UsageError: the clip shard is missing, or has other content.
        StoreError: it cannot be fetched.
    """

    def __init__(self, task: ShardTask[Any], clips: Path | None, slots: int, interleave: bool) -> None:
        self._stack = ExitStack()
        self.file = self._stack.enter_context(local_clips(clips, task.rows[0])) if clips else None
        self.reused = reusable_samples(task.out, task.older, task.rows)
        # The slot of an item depends only on its position in the plan, not on which items are still to be encoded.
        self.left: list[deque[Row]] = [
            deque(row for row in part if not row.outcome and row.key not in self.reused)
            for part in _split(task.rows, interleave, slots)
        ]
        self._decoding: dict[int, Decoded] = {}

    def start(self, slot: int, decode: Callable[[int, "ShardInput"], Decoded]) -> None:
        """Start to decode the items of a slot, unless their decoding has started."""
        if self.left[slot] and slot not in self._decoding:
            self._decoding[slot] = self._stack.enter_context(closing(decode(slot, self)))

    def prefetch(self, limits: Limits, allow_private: bool) -> None:
        """Fetch the first video in the background, and keep its temporary copy, if any, until this input is closed.

        It is often the last video of the previous shard, whose processes share the copy.

        Args:
            limits: caps on the video.
            allow_private: whether its URL may lead to a private address.
        """
        first = next((part[0] for part in self.left if part), None)
        if isinstance(first, PlannedSample):
            fetching = in_background(partial(_fetch, first, limits, allow_private))
            self._stack.callback(fetching.add_done_callback, lambda done: done.result().close())

    def take_decoding(self, slot: int) -> Decoded | None:
        """Return the messages of a slot, once; None if its decoding has not started."""
        return self._decoding.pop(slot, None)

    def close(self) -> None:
        """Stop decoding, and delete temporary copies."""
        self._stack.close()


def _fetch(row: PlannedSample, limits: Limits, allow_private: bool) -> ExitStack:
    """Fetch a video. A failure is reported by the process that decodes it."""
    stack = ExitStack()
    with suppress(Exception):
        stack.enter_context(local_file(row.source, limits, allow_private, row.sha256))
    return stack


def _split(rows: Sequence[Row], interleave: bool, slots: int) -> list[Sequence[Row]]:
    """The items of each slot, by position in the planned shard."""
    if interleave:
        return [rows[slot::slots] for slot in range(slots)]
    edges = [len(rows) * slot // slots for slot in range(slots + 1)]
    return [rows[start:stop] for start, stop in pairwise(edges)]
