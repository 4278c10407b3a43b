"""Summary of a finished job: the sum over its commit records, which account for every planned item once."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from math import prod
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from vidvq.errors import JobStopped, UsageError
from vidvq.formats.arrow import keys_of
from vidvq.formats.commit import FOLDER, Commit, Outcome, read_commits, record_path
from vidvq.formats.plan import Plan, newer_generation, read_plan
from vidvq.log import counted, in_bytes
from vidvq.storage import file_exists, pretty_json, remove_attempts, safe_join, write_shared

SUMMARY = "summary.json"
_EXAMPLES = 5
# Statistics with this suffix are sums of scores, in units of 1e-4, over the samples that ``scored`` counts.
SCORE_SUFFIX = "_e4"
SCORE_UNIT = 1e-4


@dataclass(frozen=True)
class Reason:
    """Failed or filtered items with the same reason.

    Attributes:
        count: number of items.
        examples: the first few different details.
    """

    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class JobSummary:
    """Summary of a finished job; written as ``summary.json``.

    Attributes:
        plan_id: ``plan_id`` of the plan.
        planned: number of planned items.
        ok: number of items in the shards.
        failed: failed items by reason.
        filtered: filtered items by reason.
        shards: number of tars.
        bytes: size of all tars.
        stats: sums of the statistics of all shards.
    """

    plan_id: str
    planned: int
    ok: int
    failed: dict[str, Reason]
    filtered: dict[str, Reason]
    shards: int
    bytes: int
    stats: dict[str, int]

    @property
    def num_failed(self) -> int:
        """Number of failed items."""
        return sum(reason.count for reason in self.failed.values())

    @property
    def num_filtered(self) -> int:
        """Number of filtered items."""
        return sum(reason.count for reason in self.filtered.values())

    @property
    def failed_share(self) -> float:
        """Fraction of planned items that failed (0 to 1)."""
        return self.num_failed / self.planned if self.planned else 0.0

    def lines(self) -> list[str]:
        """The summary as text: a line of totals, then each reason with examples."""
        return [self._totals(), *_reason_lines("failed", self.failed), *_reason_lines("filtered", self.filtered)]

    def _totals(self) -> str:
        totals = f"{self.ok} ok, {self.num_failed} failed, {self.num_filtered} filtered of {self.planned} planned; "
        totals += f"{counted(self.shards, 'shards')}, {in_bytes(self.bytes)}"
        stats = format_stats(self.stats)
        stats += [f"{self.bytes / tokens:.2f} bytes per token"] if (tokens := self.stats.get("tokens")) else []
        return ", ".join([totals, *stats])


@dataclass(frozen=True)
class UpdateSummary(JobSummary):
    """Summary of a corpus after an update; ``summary.json`` has the fields of :class:`JobSummary` alone.

    Attributes:
        new_failed: failed items of this update by reason, which ``failed`` contains.
        new_filtered: filtered items of this update by reason.
    """

    new_failed: dict[str, Reason]
    new_filtered: dict[str, Reason]

    def lines(self) -> list[str]:
        """The summary as text, with examples of this update alone."""
        text = [self._totals()]
        for verdict, reasons, new in (
            ("failed", self.failed, self.new_failed),
            ("filtered", self.filtered, self.new_filtered),
        ):
            text += _reason_lines(verdict, new)
            earlier = _counts(reasons) - _counts(new)
            if earlier:
                each = ", ".join(f"{name} {count}" for name, count in sorted(earlier.items()))
                text.append(f"  {verdict} before this update: {each}")
        return text


def _counts(reasons: dict[str, Reason]) -> Counter[str]:
    return Counter({name: reason.count for name, reason in reasons.items()})


def _reason_lines(verdict: str, reasons: dict[str, Reason]) -> list[str]:
    text: list[str] = []
    for name, reason in sorted(reasons.items()):
        text.append(f"  {verdict} {name}: {reason.count}")
        text += [f"    {detail}" for detail in reason.examples]
        more = reason.count - len(reason.examples)
        text += [f"    and {more} more"] if more else []
    return text


def format_stats(stats: dict[str, int]) -> list[str]:
    """Statistics of a stage as text: counts, and means of scores."""
    counts = [counted(count, name) for name, count in sorted(stats.items()) if not name.endswith(SCORE_SUFFIX)]
    means = {
        name.removesuffix(SCORE_SUFFIX): total * SCORE_UNIT / max(stats.get("scored", 1), 1)
        for name, total in sorted(stats.items())
        if name.endswith(SCORE_SUFFIX)
    }
    return counts + [f"mean {name} {mean:.4g}" for name, mean in means.items()]


def sample_stats(num_frames: int, grid: tuple[int, ...], quality: dict[str, float] | None) -> dict[str, int]:
    """Statistics of one token sample; scores are integers, so that sums do not depend on the order."""
    scores = quality or {}
    scored = {f"{name}{SCORE_SUFFIX}": round(value / SCORE_UNIT) for name, value in scores.items()}
    return {"frames": num_frames, "tokens": prod(grid)} | ({"scored": 1} | scored if scores else {})


class _Tally:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            self.counts[outcome.reason] += 1
            shown = self.examples.setdefault(outcome.reason, [])
            if len(shown) < _EXAMPLES and outcome.detail not in shown:
                shown.append(outcome.detail)

    def reasons(self) -> dict[str, Reason]:
        return {name: Reason(count, tuple(self.examples[name])) for name, count in sorted(self.counts.items())}


class RecordSum:
    """Sums the commit records of a job, in shard order."""

    def __init__(self) -> None:
        self._ok = self._bytes = self._shards = 0
        self._failed, self._filtered = _Tally(), _Tally()
        self._stats: Counter[str] = Counter()

    def add(self, commit: Commit) -> None:
        """Add one record."""
        self._ok += commit.ok
        self._bytes += commit.bytes
        self._shards += commit.sha256 is not None
        self._failed.add(commit.failed)
        self._filtered.add(commit.filtered)
        self._stats.update(commit.stats)

    def summary(self, plan: Plan) -> JobSummary:
        """The sum as the summary of a plan."""
        failed, filtered = self._failed.reasons(), self._filtered.reasons()
        return JobSummary(
            plan.plan_id, plan.num_items, self._ok, failed, filtered, self._shards, self._bytes, dict(self._stats)
        )


def summarize(folder: Path, plan: Plan) -> JobSummary:
    """Add up the commit records of a finished job, write ``summary.json``, and delete leftovers of killed writers.

    Raises:
        UsageError: a shard is not committed, or the records do not add up to the plan.
        JobStopped: another driver has changed the plan in the meantime.
    """
    return _summarize(folder, plan, lambda rows, commit: None)


def summarize_update(folder: Path, plan: Plan, made: bool) -> UpdateSummary:
    """Summarize as :func:`summarize` does, with the failures of the newest generation apart.

    Args:
        made: whether the update made a shard; if not, there was nothing to do, and the newest generation is an older
            update's.
    """
    newest = len(plan.headers) - 1
    failed, filtered = _Tally(), _Tally()

    def tally(rows: pa.Table, commit: Commit) -> None:
        keys = set(keys_of(rows.filter(pc.field("generation") == newest))) if made else set[str]()
        failed.add(outcome for outcome in commit.failed if outcome.key in keys)
        filtered.add(outcome for outcome in commit.filtered if outcome.key in keys)

    summary = _summarize(folder, plan, tally)
    known = {each.name: getattr(summary, each.name) for each in fields(JobSummary)}
    return UpdateSummary(**known, new_failed=failed.reasons(), new_filtered=filtered.reasons())


def _summarize(folder: Path, plan: Plan, tally: Callable[[pa.Table, Commit], None]) -> JobSummary:
    """Summarize, and call ``tally`` with the rows and the record of each shard."""
    refuse_older_plan(folder, plan)
    total = RecordSum()
    commits = read_commits(folder, plan.shard_names())
    for index, ((shard, rows), commit) in enumerate(zip(plan.shard_tables(), commits, strict=True)):
        if commit:
            refuse_other_plan(folder, plan, index, commit)
        if commit is None or commit.items != rows.num_rows:
            raise UsageError(f"{folder}: {shard} is not committed whole; run the same command again")
        total.add(commit)
        tally(rows, commit)
    summary = total.summary(plan)
    write_shared(folder / SUMMARY, encode_summary(summary))
    # All shards are committed. Temporary files belong to killed or late writers, and older generations of a shard are
    # superseded.
    _remove_older(folder, plan, plan.touched)
    remove_attempts(folder)
    remove_attempts(folder / FOLDER)
    return summary


def refuse_older_plan(folder: Path, plan: Plan) -> None:
    """Refuse a plan that another driver has changed, and delete what this driver made again of older generations.

    Raises:
        JobStopped: there is a newer generation.
    """
    if not (newer := newer_generation(folder, plan)):
        return
    current = read_plan(folder)
    made = [index for index in current.touched if file_exists(record_path(folder, current.shard_name(index)))]
    _remove_older(folder, current, made)
    raise JobStopped(
        f"{folder} was changed by another driver in the meantime ({newer}); finish it with the command of that driver"
    )


def _remove_older(folder: Path, plan: Plan, touched: Iterable[int]) -> None:
    for index in touched:
        for name in plan.superseded(index):
            safe_join(folder, name).unlink(missing_ok=True)
            record_path(folder, name).unlink(missing_ok=True)


def encode_summary(summary: JobSummary) -> bytes:
    """The content of ``summary.json``."""
    return pretty_json(asdict(summary))


def refuse_other_plan(folder: Path, plan: Plan, index: int, commit: Commit) -> None:
    """Refuse a committed shard of another plan.

    Raises:
        UsageError: the plan was edited, or files of two directories were mixed.
    """
    if commit.plan_id != plan.id_of(index):
        raise UsageError(
            f"{folder}: {commit.shard} was made from plan {commit.plan_id[:12]}, {plan.file_of(index)} is plan "
            f"{plan.id_of(index)[:12]}; restore {plan.file_of(index)} from a copy, or give another --out"
        )
