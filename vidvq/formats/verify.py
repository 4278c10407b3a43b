"""Verification of an output directory: all fields of plan, records, card and summary against the bytes."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from vidvq.errors import UsageError
from vidvq.formats import clip_shard, columns, token_shard
from vidvq.formats.arrow import keys_of
from vidvq.formats.commit import FOLDER, Commit, read_commit, record_path
from vidvq.formats.plan import Plan, read_plan
from vidvq.formats.rows import verdict_of
from vidvq.formats.summary import SUMMARY, RecordSum, encode_summary, sample_stats
from vidvq.formats.tar import find_damage, read_samples
from vidvq.redact import redact
from vidvq.storage import DIGEST_KEY, read_json, safe_join, sha256_file

_SHOWN = 5


@dataclass
class VerifyReport:
    """The result of a verification.

    Attributes:
        problems: one line per problem.
        notes: one line per check that was skipped, because an older version recorded no digest.
        items: number of planned items.
        ok: number of items in the shards, by the readable records.
        failed: number of failed items.
        filtered: number of filtered items.
        shards: number of planned shards.
        bytes: size of the tars.
    """

    problems: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])
    items: int = 0
    ok: int = 0
    failed: int = 0
    filtered: int = 0
    shards: int = 0
    bytes: int = 0


def verify_folder(folder: Path, tick: Callable[[], None] = lambda: None) -> VerifyReport:
    """Check every shard of a directory against its plan and its commit records.

    Args:
        folder: output directory of ``vidvq shard``, ``vidvq tokenize`` or another stage.

    Raises:
        UsageError: the directory has no plan, or its plan was edited.
    """
    plan = read_plan(folder)
    return _Verification(folder, plan).run(tick)


class _Verification:
    def __init__(self, folder: Path, plan: Plan) -> None:
        self._folder, self._plan = folder, plan
        self._report = VerifyReport(items=plan.num_items, shards=plan.num_shards)
        self._problems = self._report.problems
        self._sum = RecordSum()
        self._without_digest = 0
        # plan_id in the records of each generation's shards, with the shards that have it.
        self._made_by: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        is_tokens = plan.header.prefix == token_shard.PREFIX
        self._card = token_shard.read_tokenizer_card(folder) if is_tokens else None

    def run(self, tick: Callable[[], None]) -> VerifyReport:
        self._problems += self._check_files()
        names: set[str] = set()
        for index, (shard, table) in enumerate(self._plan.shard_tables()):
            names.add(shard)
            self._problems += [f"{shard}: {problem}" for problem in self._verify_shard(index, shard, table)]
            tick()
        self._problems += self._other_plans()
        self._check_summary()
        self._problems += self._strays(names)
        if self._without_digest:
            self._report.notes.append(
                f"{self._without_digest} records of an older version have no digest; failure reasons are not verified"
            )
        return self._report

    def _check_files(self) -> Iterator[str]:
        """Compare the directory's other files with their digests in the plan."""
        for name, digest in self._plan.header.files.items():
            path = safe_join(self._folder, name)
            if not path.is_file() or sha256_file(path) != digest:
                state = "was changed after planning" if path.is_file() else "is missing"
                yield f"{name}: {state}; restore it from a copy, or run the same command again"
        if not self._card:
            return
        planned = self._plan.made_from.get("token_fingerprint")
        if self._card.token_fingerprint != planned:
            names = f"is of tokenizer {self._card.token_fingerprint[:12]}, the plan of {str(planned)[:12]}"
            yield f"{token_shard.CARD}: {names}; restore it"
        if token_shard.CARD not in self._plan.header.files:
            self._report.notes.append(
                f"{token_shard.CARD}: the plan of an older version has no digest of it; only its fingerprint is "
                "verified"
            )

    def _verify_shard(self, index: int, shard: str, table: pa.Table) -> Iterator[str]:
        try:
            commit = read_commit(self._folder, shard)
        except UsageError as error:
            yield str(error)
            return
        if commit is None:
            yield "is not committed; run the same command again"
            return
        self._without_digest += DIGEST_KEY not in read_json(record_path(self._folder, shard))
        self._made_by[self._plan.file_of(index)][commit.plan_id].append(index)
        self._report.ok += commit.ok
        self._report.failed += len(commit.failed)
        self._report.filtered += len(commit.filtered)
        self._report.bytes += commit.bytes
        self._sum.add(commit)
        yield from _check_keys(commit, keys_of(table))
        yield from _check_planned(commit, table)
        yield from self._check_tar(commit)

    def _check_tar(self, commit: Commit) -> Iterator[str]:
        shard, path = commit.shard, safe_join(self._folder, commit.shard)
        redo = f"remove {shard} and {FOLDER}/{shard}.json, then run the same command again"
        if commit.sha256 is None:
            if path.exists():
                yield f"exists, but its record says it is empty; {redo}"
            return
        if not path.is_file():
            yield f"is missing; {redo}"
            return
        if path.stat().st_size != commit.bytes:
            yield f"has {path.stat().st_size} bytes, its record has {commit.bytes}; {redo}"
        damage = find_damage(path, list(commit.members))
        if sha256_file(path) != commit.sha256:
            yield from (f"{found}; {redo}" for found in damage or ["its bytes differ from the record"])
        elif damage:
            remedy = f"remove {FOLDER}/{shard}.json, then run the same command again"
            yield from (f"its record does not match the tar: {found}; {remedy}" for found in damage)
        else:
            yield from self._check_content(path, commit)

    def _check_content(self, path: Path, commit: Commit) -> Iterator[str]:
        stats: Counter[str] = Counter()
        try:
            for key, files in read_samples(path):
                stats.update(self._check_sample(files, f"{path}: {key}"))
        except UsageError as error:
            yield str(error)
            return
        remedy = f"remove {FOLDER}/{commit.shard}.json, then run the same command again"
        for name in sorted(stats.keys() | (commit.stats.keys() if stats else ())):
            if stats[name] != commit.stats.get(name, 0):
                yield f"has {stats[name]} {name}, its record has {commit.stats.get(name, 0)}; {remedy}"

    def _check_sample(self, files: dict[str, bytes], where: str) -> dict[str, int]:
        """Check one sample, and return its statistics; stages other than `shard` and `tokenize` have their own."""
        prefix, stage = self._plan.header.prefix, self._plan.stage
        if self._card:
            _, info = token_shard.parse_tokens(files, self._card, where)
            return sample_stats(info.num_frames, info.grid, info.quality) if stage == "tokenize" else {}
        if prefix == clip_shard.PREFIX:
            clip_shard.media_of(files, where)
            info = clip_shard.parse_clip_info(files["json"], where)
            return {"frames": info.num_frames} if stage == "shard" else {}
        if prefix == columns.PREFIX:
            columns.parse_columns(files, where)
        return {}

    def _other_plans(self) -> Iterator[str]:
        """Describe shards of other plans. If all shards of a generation agree on another plan, the plan was edited."""
        ids = {self._plan.file_of(index): self._plan.id_of(index) for index in range(self._plan.num_shards)}
        for name, found in self._made_by.items():
            others = {plan_id: shards for plan_id, shards in found.items() if plan_id != ids[name]}
            if others and len(found) == 1:
                ((plan_id, shards),) = others.items()
                yield (
                    f"{name}: was edited after planning: it is plan {ids[name][:12]}, but its {len(shards)} committed "
                    f"shards were made from plan {plan_id[:12]}; restore it from a copy, and keep the shards"
                )
                continue
            for plan_id, shards in others.items():
                for shard in map(self._plan.shard_name, shards):
                    yield (
                        f"{shard}: was made from another plan ({plan_id[:12]}, not {ids[name][:12]}); remove {shard} "
                        f"and {FOLDER}/{shard}.json, then run the same command again"
                    )

    def _check_summary(self) -> None:
        path = self._folder / SUMMARY
        if self._problems or not path.is_file():
            return
        expected = encode_summary(self._sum.summary(self._plan))
        if path.read_bytes() != expected:
            self._problems.append(f"{SUMMARY}: differs from the sum of the records; run the same command again")

    def _strays(self, names: set[str]) -> Iterator[str]:
        plan, folder = self._plan, self._folder
        older = {name: plan.shard_name(index) for index in plan.touched for name in plan.superseded(index)}
        for stray in sorted(path.name for path in folder.glob("*.tar") if path.name not in names):
            if stray in older:
                yield f"{stray}: is superseded by {older[stray]}; run the same command again"
            else:
                yield f"{stray}: is not in the plan; move it elsewhere"
        records = (path.name for path in (folder / FOLDER).glob("*.json"))
        for stray in sorted(name for name in records if name.removesuffix(".json") not in {*names, *older}):
            yield f"{FOLDER}/{stray}: is the record of a shard that is not in the plan; move it elsewhere"
        for stray in sorted((*folder.glob("*.tmp.*"), *(folder / FOLDER).glob("*.tmp.*"))):
            yield f"{stray.name}: was left by a killed job; run the same command again, or remove it"


def _check_keys(commit: Commit, planned: list[str]) -> Iterator[str]:
    """Compare the keys in a record with those of the plan.

    No two shards of a plan have a key in common, so that a key of another shard is found here too.
    """
    accounted = list(dict.fromkeys(member.key for member in commit.members))
    if len(accounted) != commit.ok:
        yield f"has {len(accounted)} keys, its record has {commit.ok}"
    counts = Counter((*accounted, *(outcome.key for outcome in (*commit.failed, *commit.filtered))))
    wanted = set(planned)
    yield from (f"{key} occurs twice" for key, count in counts.items() if count > 1)
    yield from (f"{key} was planned but is not accounted for" for key in planned if key not in counts)
    yield from (f"{key} is not in the plan" for key in counts if key not in wanted)


def _check_planned(commit: Commit, table: pa.Table) -> Iterator[str]:
    """Compare the outcomes in a record with those decided in planning."""
    found = {outcome.key: ("failed", outcome) for outcome in commit.failed}
    found |= {outcome.key: ("filtered", outcome) for outcome in commit.filtered}
    wrong: list[str] = []
    names = [name for name in ("key", "verdict", "reason", "detail") if name in table.column_names]
    rows: list[dict[str, Any]] = table.select(names).to_pylist() if "reason" in names else []
    for row in rows:
        verdict = row["verdict"] if "verdict" in row else verdict_of(row["reason"])
        if verdict:
            got, outcome = found.get(row["key"], ("ok", None))
            detail = outcome.detail if outcome else ""
            if (
                got != verdict
                or not outcome
                or outcome.reason != row["reason"]
                or redact(row.get("detail") or "") not in redact(detail)
            ):
                wrong.append(f"{row['key']} is {got} in the record, {verdict}({row['reason']}) in the plan")
    yield from wrong[:_SHOWN]
    if len(wrong) > _SHOWN:
        yield f"and {len(wrong) - _SHOWN} more items differ from the plan"
