"""What whoever watches a run sees: a note behind the progress bar, and figures that Ray serves to Prometheus."""

from collections import Counter
from time import monotonic

from vidvq.formats.commit import Commit
from vidvq.runtime import Measure, Pool
from vidvq.tokenize.account import Made

ITEMS = Measure("vidvq_tokenize_items", "Items accounted for by this run.", ("outcome", "reason"))
SHARDS = Measure("vidvq_tokenize_shards", "Shards that this run committed.")
FRAMES = Measure("vidvq_tokenize_frames", "Frames that this run encoded.")
TOKENS = Measure("vidvq_tokenize_tokens", "Tokens that this run made.")
SECONDS = Measure("vidvq_tokenize_worker_seconds", "Seconds of all workers in shards, by stage.", ("stage",))
EFFICIENCY = Measure("vidvq_tokenize_efficiency", "Share of the encoder in the workers' time since they could begin.")


class Live:
    """Tells of each shard as it comes in.

    Args:
        pool: that carries figures to where they are served.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._began = monotonic()
        self._failed = 0
        self._totals: Counter[str] = Counter()

    def earlier(self, commit: Commit) -> str:
        """Take in a shard of an earlier run; returns the note."""
        self._failed += len(commit.failed)
        return self._note()

    def made(self, made: Made, efficiency: float) -> str:
        """Take in a shard of this run, and the share of the encoder so far; returns the note."""
        commit, count = made.commit, self._pool.count
        self._failed += len(commit.failed)
        self._totals.update(made.encoded)
        count(SHARDS, 1)
        count(ITEMS, commit.ok, outcome="ok", reason="")
        for outcome, items in (("failed", commit.failed), ("filtered", commit.filtered)):
            for reason, number in Counter(item.reason for item in items).items():
                count(ITEMS, number, outcome=outcome, reason=reason)
        count(FRAMES, made.encoded["frames"])
        count(TOKENS, made.encoded["tokens"])
        for stage, passed in made.seconds.items():
            count(SECONDS, passed, stage=stage)
        self._pool.gauge(EFFICIENCY, efficiency)
        return self._note()

    def _note(self) -> str:
        passed = max(monotonic() - self._began, 1e-9)
        rates = [f"{self._totals[name] / passed:.0f} {name}/s" for name in ("frames", "tokens") if self._totals[name]]
        return ", ".join([*rates, f"{self._failed} failed"])
