"""The decoding processes of a worker: one for each stream of the encoder, or several that decode its items in turns."""

from collections.abc import Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import cycle
from math import ceil
from typing import Any, Literal

from vidvq.corpus.frames import ClipFrames, DecodeMessage, VideoFrames, decode_items
from vidvq.runtime import Feeder, WorkerDied

# Rates vary over videos.
_MARGIN = 1.25
# Messages that a process may be ahead while it waits for its turn: those of a turn. Shared memory bounds their bytes.
_AHEAD = 64


@dataclass(frozen=True)
class Rates:
    """Measurements of a worker on one shard.

    Attributes:
        frames: number of frames that were decoded and encoded.
        encode_s: time that the encoder was busy with them (seconds).
        decode_s: time that decoding processes were busy with them, summed over the processes (seconds).
    """

    frames: int
    encode_s: float
    decode_s: float


def decoders_per_stream(rates: Rates, streams: int, cores: int) -> int:
    """Return the number of decoding processes per stream that keep up with the encoder.

    The encoder takes ``frames / encode_s`` frames per second, and one process decodes ``frames / decode_s``. Their
    ratio, plus a quarter, is the number of processes, rounded up to the same number for each stream, and at most one
    per core in total.

    Args:
        rates: measurements; the shard must have frames.
        streams: streams that the encoder processes together.
        cores: cores that the worker may use.

    Returns:
        At least 1.
    """
    needed = ceil(_MARGIN * rates.decode_s / max(rates.encode_s, 1e-9) / streams)
    return max(1, min(needed, cores // streams))


class Decoders:
    """Decoding processes, which are started on first use and reused for the next shard.

    Args:
        streams: streams that the encoder processes together.
        wanted: number of processes; ``auto`` for as many as the encoder needs. There is at least one per stream.
        cores: cores that the worker may use.
    """

    def __init__(self, streams: int, wanted: int | Literal["auto"], cores: int) -> None:
        self._streams, self._wanted, self._cores = streams, wanted, cores
        each = 1 if wanted == "auto" else ceil(wanted / streams)
        self._feeders = [[Feeder() for _ in range(each)] for _ in range(streams)]
        self._frames, self._busy_s = 0, 0.0

    @property
    def count(self) -> int:
        """Number of processes."""
        return sum(map(len, self._feeders))

    def messages(
        self, stream: int, job: ClipFrames | VideoFrames, deadline_s: float
    ) -> Generator[DecodeMessage | WorkerDied, None, None]:
        """Start to decode items for one stream.

        Args:
            stream: index of the stream.
            job: the items.
            deadline_s: time limit of one step of a process (seconds).

        Yields:
            The messages of :func:`decode_items`, item by item, in the order of the job. If a process dies, the last one
            is :class:`WorkerDied`.
        """
        found = self._in_turns(self._feeders[stream], job, deadline_s)
        # Up to the start of the processes.
        next(found)
        return found

    def _in_turns(
        self, feeders: list[Feeder], job: ClipFrames | VideoFrames, deadline_s: float
    ) -> Generator[Any, None, None]:
        failed = None
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
                    if message.turn_ends:
                        break
                    if message.key == failed:
                        # A later part of an item that has failed.
                        continue
                    if message.error:
                        failed = message.key
                    if message.frames is not None:
                        self._frames += len(message.frames)
                    yield message
                else:
                    break
            for part in parts:
                for _ in part:
                    pass

    def adapt(self, encode_s: float) -> None:
        """Start or stop processes after a shard, as the rates that were measured on it suggest.

        Args:
            encode_s: time that the encoder was busy (seconds).
        """
        rates = Rates(self._frames, encode_s, self._busy_s)
        self._frames, self._busy_s = 0, 0.0
        if self._wanted != "auto" or not rates.frames:
            return
        each = decoders_per_stream(rates, self._streams, self._cores)
        for feeders in self._feeders:
            feeders[each:] = [Feeder() for _ in range(each - len(feeders))]

    def release(self) -> None:
        """Leave one process to whatever else this process decodes; starting the others again would take long."""
        self._feeders[0][0].release()

    def _start(
        self, feeder: Feeder, job: ClipFrames | VideoFrames, share: tuple[int, int], deadline_s: float
    ) -> Generator[DecodeMessage | WorkerDied, None, None]:
        if share[1] == 1:
            return feeder.feed(decode_items, job, deadline_s)
        return feeder.feed(decode_items, replace(job, share=share), deadline_s, _AHEAD)
