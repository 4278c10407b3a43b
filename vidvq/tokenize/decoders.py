"""The decoding processes of a worker: one for each stream of the encoder, or several that decode its items in turns.

They are children of the worker, or run on nodes of the Ray cluster.
"""

from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import cycle
from math import ceil
from pathlib import Path
from time import monotonic
from typing import Any, Literal, TypeAlias

from vidvq.corpus.frames import ClipFrames, DecodeMessage, VideoFrames, decode_items
from vidvq.jobs.local_clips import local_clips
from vidvq.jobs.rows import ClipRow
from vidvq.runtime import Feeder, WorkerDied

# Excess of decoding processes over the measured need, because rates vary between videos.
_MARGIN = 1.25
# Maximum number of clips, or messages of a video, that one of several processes may be ahead of the encoder: it waits
# for its turn, or a step waits for the slowest stream. Shared memory bounds their bytes.
_AHEAD_CLIPS, _AHEAD = 16, 64
# Time limit for processes on other nodes to start; after it a child of the worker decodes instead (seconds).
_START_S = 30.0


def decoders_per_stream(encode_s: float, decode_s: float, streams: int, cores: int) -> int:
    """Return the number of decoding processes per stream that keep up with the encoder.

    The ratio of the times for the same frames, plus a quarter, is the number of processes, rounded up to the same
    number for each stream, and at most the cores for each stream, rounded to the nearest number: a few processes too
    many share cores, but one too few per stream would leave up to half of the cores idle.

    Args:
        encode_s: time that the encoder was busy with some frames (seconds).
        decode_s: time that decoding processes were busy with them, summed over the processes (seconds).
        streams: streams that the encoder processes together.
        cores: cores that the worker may use.

    Returns:
        At least 1.
    """
    needed = ceil(_MARGIN * decode_s / max(encode_s, 1e-9) / streams)
    return max(1, min(needed, (cores + streams // 2) // streams))


@dataclass(frozen=True)
class PlannedClips:
    """Clips of one clip shard to decode on any node, which opens and checks the shard itself.

    Attributes:
        row: any clip of the shard.
        share: index of the process, and number of processes, which decode the clips in turns.
    """

    clips: Path
    row: ClipRow
    keys: frozenset[str]
    share: tuple[int, int] = (0, 1)


Job: TypeAlias = ClipFrames | VideoFrames | PlannedClips


def decode_planned(job: PlannedClips) -> Iterator[DecodeMessage]:
    """Yield the messages of :func:`decode_items`; raises as :func:`local_clips`."""
    with local_clips(job.clips, job.row) as file:
        assert file, "a shard without clips has no keys"
        yield from decode_items(ClipFrames(file, job.keys, job.share))


class Decoders:
    """Decoding processes, which are started on first use and reused for the next shard.

    Args:
        streams: streams that the encoder processes together.
        wanted: number of processes; ``auto`` for as many as the encoder needs. There is at least one per stream.
        cores: cores that the worker may use; those of the cluster with ``on_cluster``.
        on_cluster: whether the processes run on nodes of the Ray cluster. A stream for which none has started, or all
            have died, is decoded by a child of the worker.

    Attributes:
        on_cluster: whether the processes run on nodes of the Ray cluster.
        from_nvdec: frames that NVDEC decoded since :meth:`adapt`.
    """

    def __init__(self, streams: int, wanted: int | Literal["auto"], cores: int, on_cluster: bool = False) -> None:
        self._streams, self._wanted, self._cores, self.on_cluster = streams, wanted, cores, on_cluster
        each = 1 if wanted == "auto" else ceil(wanted / streams)
        self._feeders: list[list[Any]] = [[self._new_feeder() for _ in range(each)] for _ in range(streams)]
        self._frames, self._busy_s = 0, 0.0
        self.from_nvdec = 0
        if on_cluster:
            self._fallback = [Feeder() for _ in range(streams)]
            self._patient_until = monotonic() + _START_S
            for stream in range(streams):
                self._find_ready(stream, 0)

    @property
    def count(self) -> int:
        """Number of processes."""
        if self.on_cluster:
            return sum(max(sum(feeder.started for feeder in feeders), 1) for feeders in self._feeders)
        return sum(map(len, self._feeders))

    def messages(self, stream: int, job: Job, deadline_s: float) -> Generator[DecodeMessage | WorkerDied, None, None]:
        """Start to decode items for one stream.

        Args:
            deadline_s: time limit of one step of a process (seconds).

        Yields:
            The messages of :func:`decode_items`, item by item, in the order of the job. If a process dies, the last one
            is :class:`WorkerDied`.
        """
        feeders = self._feeders[stream]
        if self.on_cluster:
            patience_s = max(self._patient_until - monotonic(), 0)
            feeders = self._find_ready(stream, patience_s) or [self._fallback[stream]]
        messages = self._in_turns(feeders, job, deadline_s)
        # Run the generator to its first yield, which starts the processes.
        next(messages)
        return messages

    def _in_turns(self, feeders: list[Any], job: Job, deadline_s: float) -> Generator[Any, None, None]:
        """Yield None once the processes are started, then their messages in the order of the job."""
        finished: set[str] = set()
        with ExitStack() as stack:
            parts = [
                stack.enter_context(closing(self._start(feeder, job, (index, len(feeders)), deadline_s)))
                for index, feeder in enumerate(feeders)
            ]
            yield None
            for part in cycle(parts):
                for message in part:
                    if isinstance(message, WorkerDied):
                        yield message
                        return
                    self._busy_s += message.busy_s
                    # Without a later part of an item that has failed, and an error of a process that could not open a
                    # video.
                    if message.key and message.key not in finished:
                        if message.error or message.done:
                            finished.add(message.key)
                        if message.frames is not None:
                            self._frames += len(message.frames)
                            self.from_nvdec += len(message.frames) * message.from_nvdec
                        yield message
                    if message.turn_ends:
                        break
                else:
                    # The process whose turn it is has nothing left, so the job is done.
                    break
            # Processes are reused only after their last message has been read.
            for part in parts:
                for _ in part:
                    pass

    def adapt(self, encode_s: float) -> None:
        """Start or stop processes after a shard, according to the rates measured on it.

        Args:
            encode_s: time that the encoder was busy (seconds).
        """
        frames, decode_s = self._frames, self._busy_s
        self._frames, self._busy_s, self.from_nvdec = 0, 0.0, 0
        if self._wanted != "auto" or not frames:
            return
        each = decoders_per_stream(encode_s, decode_s, self._streams, self._cores)
        for feeders in self._feeders:
            feeders[each:] = [self._new_feeder() for _ in range(each - len(feeders))]

    def release(self) -> None:
        """Make one process available to other decoding in this worker. The others are kept: they are slow to start."""
        (self._fallback if self.on_cluster else self._feeders[0])[0].release()

    def _start(
        self, feeder: Any, job: Job, share: tuple[int, int], deadline_s: float
    ) -> Generator[DecodeMessage | WorkerDied, None, None]:
        function: Any = decode_planned if isinstance(job, PlannedClips) else decode_items
        if self._streams * share[1] == 1:
            return feeder.feed(function, job, deadline_s)
        ahead = _AHEAD if isinstance(job, VideoFrames) else _AHEAD_CLIPS
        return feeder.feed(function, replace(job, share=share), deadline_s, ahead)

    def _new_feeder(self) -> Any:
        if not self.on_cluster:
            return Feeder()
        from vidvq.runtime.ray_feeder import RayFeeder

        return RayFeeder()

    def _find_ready(self, stream: int, patience_s: float) -> list[Any]:
        from vidvq.runtime.ray_feeder import find_ready

        return find_ready(self._feeders[stream], patience_s)
