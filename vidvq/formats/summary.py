"""What became of a plan: the sum over its commit records, that every item is in exactly once."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from vidvq.formats.commit import FOLDER, Outcome, read_commit
from vidvq.formats.plan import Plan
from vidvq.storage import pretty_json, remove_attempts, write_atomic

_SHOWN = 5


@dataclass(frozen=True)
class JobSummary:
    """The account of a finished job; written as ``summary.json``.

    ``stats`` sums the stage's own counts over all shards; ``bytes`` is the size of the tars.
    """

    planned: int
    ok: int
    failed: tuple[Outcome, ...]
    filtered: tuple[Outcome, ...]
    shards: int
    bytes: int
    stats: dict[str, int]

    @property
    def failed_share(self) -> float:
        """Failed items over planned items."""
        return len(self.failed) / self.planned if self.planned else 0.0

    def lines(self) -> list[str]:
        """The account in plain words: a line of totals, then each reason with examples."""
        totals = f"{self.ok} ok, {len(self.failed)} failed, {len(self.filtered)} filtered of {self.planned} planned; "
        counts = ", ".join(f"{count} {name}" for name, count in sorted(self.stats.items()))
        text = [totals + f"{self.shards} shards, {self.bytes / 1e6:.1f} MB" + (f", {counts}" if counts else "")]
        for verdict, outcomes in (("failed", self.failed), ("filtered", self.filtered)):
            for reason, count in sorted(Counter(outcome.reason for outcome in outcomes).items()):
                text.append(f"  {verdict} {reason}: {count}")
                examples = [outcome.detail for outcome in outcomes if outcome.reason == reason]
                text += [f"    {detail}" for detail in examples[:_SHOWN]]
                text += [f"    and {count - _SHOWN} more"] if count > _SHOWN else []
        return text


def summarize(folder: Path, plan: Plan) -> JobSummary:
    """Add up the commit records of a finished job and write ``summary.json``.

    Raises:
        ValueError: a shard is not committed, or the records do not add up to the plan.
    """
    ok = size = shards = 0
    failed: list[Outcome] = []
    filtered: list[Outcome] = []
    stats: Counter[str] = Counter()
    for shard, rows in plan.shards():
        commit = read_commit(folder, shard)
        if commit is None or commit.plan_id != plan.plan_id or commit.items != len(rows):
            raise ValueError(f"{folder}: {shard} is not committed whole; run the same command again")
        ok += commit.ok
        size += commit.bytes
        shards += commit.sha256 is not None
        failed += commit.failed
        filtered += commit.filtered
        stats.update(commit.stats)
    summary = JobSummary(plan.header["items"], ok, tuple(failed), tuple(filtered), shards, size, dict(stats))
    account = {
        "plan_id": plan.plan_id,
        "planned": summary.planned,
        "ok": ok,
        "failed": Counter(outcome.reason for outcome in failed),
        "filtered": Counter(outcome.reason for outcome in filtered),
        "shards": shards,
        "bytes": size,
        "stats": summary.stats,
    }
    try:
        write_atomic(folder / "summary.json", pretty_json(account))
    except FileNotFoundError:
        # Another driver has finished too, and swept.
        if not (folder / "summary.json").exists():
            raise
    # All is committed: what is left under an attempt name is of writers that were killed, or came too late.
    remove_attempts(folder)
    remove_attempts(folder / FOLDER)
    return summary
