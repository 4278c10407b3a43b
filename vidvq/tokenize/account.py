"""Where the time of a run went: seconds by stage in each worker, and their account over all workers."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic, thread_time
from typing import TypeVar
from uuid import uuid4

from vidvq.formats.commit import Commit
from vidvq.metrics.codes import CodebookUse, CodeCounts
from vidvq.storage import pretty_json, write_over

FILE = "metrics.json"
Entry = TypeVar("Entry")
# What a worker does beside encoding, in words, and what helps where it takes much. Encoding itself is "encode".
_STAGES = {
    "fetch": ("reading and checking clip shards", "storage that is nearer or faster"),
    "decode": ("waiting for decoded frames", "more CPUs for each worker"),
    "core": ("waiting for a CPU core", "fewer workers, or more CPUs: decoding needs some beside each worker"),
    "score": ("scoring", "a smaller quality.share"),
    "write": ("writing and committing", "faster storage for the output"),
    "idle": ("waiting for a shard", "smaller shards, so that no worker is left without one at the end"),
}
# Less than this is not worth advice.
_MUCH = 0.1


@dataclass(frozen=True)
class Made:
    """What a worker says of one shard: its record, and what this run alone knows of it.

    Attributes:
        commit: the record that stands, maybe of another writer.
        counts: of the codes that were encoded.
        worker: which one.
        alive_s: since it was ready to begin.
        seconds: of this shard, by stage.
        copied: of the record's totals, those of samples that the shard's older form held.
    """

    commit: Commit
    counts: CodeCounts
    worker: str
    alive_s: float
    seconds: dict[str, float]
    copied: dict[str, int] = field(default_factory=dict)

    @property
    def encoded(self) -> dict[str, int]:
        """Frames and tokens that were encoded."""
        return {name: self.commit.stats.get(name, 0) - self.copied.get(name, 0) for name in ("frames", "tokens")}


class Stopwatch:
    """Seconds by stage; where one stage runs inside another, they are those of the inner one.

    Args:
        computes: stages that only compute, on this thread. What passes in them without its doing is of ``core``.
    """

    def __init__(self, computes: tuple[str, ...] = ()) -> None:
        self.worker = uuid4().hex
        self._computes = computes
        self._ready = self._wall = monotonic()
        self._cpu = thread_time()
        self._open: list[str] = []
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what passes inside as of ``name``."""
        self._book()
        self._open.append(name)
        try:
            yield
        finally:
            self._book()
            self._open.pop()

    def waiting(self, name: str, entries: Iterator[Entry]) -> Iterator[Entry]:
        """Pass entries on, and count the wait for each as of ``name``."""
        while True:
            with self.stage(name):
                try:
                    entry = next(entries)
                except StopIteration:
                    return
            yield entry

    def made(self, commit: Commit, counts: CodeCounts, copied: dict[str, int] | None = None) -> Made:
        """Tell of a shard, and begin with the next."""
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return Made(commit, counts, self.worker, monotonic() - self._ready, seconds, copied or {})

    def _book(self) -> None:
        wall, cpu = monotonic(), thread_time()
        if self._open:
            passed, stage = wall - self._wall, self._open[-1]
            waited = max(passed - (cpu - self._cpu), 0) if stage in self._computes else 0.0
            self._seconds[stage] += passed - waited
            self._seconds["core"] += waited
        self._wall, self._cpu = wall, cpu


@dataclass(frozen=True)
class RunMetrics:
    """What one run did and how its workers spent their time; written as ``metrics.json``, of a stopped one too.

    Attributes:
        wall_s: from the start of the workers to the last shard.
        workers: that made a shard.
        start_s: of one worker, until it could begin, on the mean.
        seconds: of all workers together since then, by stage; ``encode`` is the encoder's own, ``core`` what it waited
            for a CPU core that others had, ``idle`` what is in no shard.
        frames, tokens: that this run encoded.
        efficiency: the share of ``encode`` in all ``seconds``.
        codebooks: how the tokens of this run use them.
    """

    wall_s: float
    workers: int
    start_s: float
    frames: int
    tokens: int
    efficiency: float
    seconds: dict[str, float]
    codebooks: tuple[CodebookUse, ...] = field(default=())

    def lines(self) -> list[str]:
        """The same in plain words; nothing where nothing was encoded."""
        if not self.frames:
            return []
        total = sum(self.seconds.values())
        shares = {name: self.seconds.get(name, 0.0) / total for name in _STAGES}
        listed = sorted((name for name in shares if shares[name] >= 0.005), key=lambda name: -shares[name])
        parts = [f"{self.efficiency:.0%} of their time encoding"]
        parts += [f"{shares[name]:.0%} {_STAGES[name][0]}" for name in listed]
        text = [f"{book.line()}, over {book.tokens} tokens of this run" for book in self.codebooks if book.tokens]
        text.append(
            f"{self.frames} frames in {self.wall_s:.1f} s by {self.workers} workers: {self.frames / self.wall_s:.1f} "
            f"frames/s, {self.tokens / self.wall_s:.0f} tokens/s; {self.start_s:.1f} s until a worker could begin"
        )
        text.append(f"since then the workers spent {', '.join(parts)}")
        if listed and shares[listed[0]] >= _MUCH:
            doing, remedy = _STAGES[listed[0]]
            text.append(f"most of the rest went on {doing}; what helps: {remedy}")
        return text

    def write(self, folder: Path) -> None:
        """Write ``metrics.json``, over that of an earlier run."""
        write_over(folder / FILE, pretty_json(asdict(self)))


class Account:
    """Adds up what workers say; begins when they are started."""

    def __init__(self) -> None:
        self._began = monotonic()
        self._ready: dict[str, float] = {}
        self._seconds: dict[str, float] = defaultdict(float)
        self._totals: Counter[str] = Counter()

    def add(self, made: Made) -> None:
        """Take in a shard, when it is there."""
        self._ready.setdefault(made.worker, monotonic() - made.alive_s)
        for name, passed in made.seconds.items():
            self._seconds[name] += passed
        self._totals.update(made.encoded)

    def report(self, counts: CodeCounts) -> RunMetrics:
        """The account until now, with the codes of the run."""
        ended = monotonic()
        starts = [max(ready - self._began, 0.0) for ready in self._ready.values()]
        alive = sum(ended - ready for ready in self._ready.values())
        seconds = dict(self._seconds) | {"idle": max(alive - sum(self._seconds.values()), 0.0)}
        return RunMetrics(
            wall_s=round(ended - self._began, 3),
            workers=len(starts),
            start_s=round(sum(starts) / max(len(starts), 1), 3),
            frames=self._totals["frames"],
            tokens=self._totals["tokens"],
            efficiency=round(seconds.get("encode", 0.0) / max(sum(seconds.values()), 1e-9), 4),
            seconds={name: round(value, 6) for name, value in seconds.items()},
            codebooks=counts.use(),
        )
