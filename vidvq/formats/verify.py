"""Verification of an output directory."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vidvq.errors import UsageError
from vidvq.formats import clip_shard, columns, token_shard
from vidvq.formats.commit import FOLDER, Commit, read_commit
from vidvq.formats.plan import Plan, read_plan
from vidvq.formats.tar import find_damage, read_samples
from vidvq.storage import sha256_file


@dataclass
class VerifyReport:
    """The result of a verification.

    Attributes:
        problems: one line per problem.
        items: number of planned items.
        ok: number of items in the shards, by the readable records.
        failed: number of failed items.
        filtered: number of filtered items.
        shards: number of planned shards.
        bytes: size of the tars.
    """

    problems: list[str] = field(default_factory=list[str])
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
        tick: called after each shard.

    Raises:
        UsageError: the directory has no plan.
    """
    plan = read_plan(folder)
    report = VerifyReport(items=plan.num_items, shards=plan.num_shards)
    check_content = _content_check(folder, plan)
    report.problems += _check_card(folder, plan)
    seen: set[str] = set()
    names: set[str] = set()
    older = {name: plan.shard_name(index) for index in plan.touched for name in plan.superseded(index)}
    for index, (shard, keys) in enumerate(plan.shard_keys()):
        names.add(shard)
        report.problems += [
            f"{shard}: {problem}" for problem in _verify_shard(folder, shard, keys, plan.id_of(index), seen, report)
        ]
        if (folder / shard).is_file() and not any(problem.startswith(shard) for problem in report.problems):
            report.problems += check_content(folder / shard)
        tick()
    for stray in sorted(path.name for path in folder.glob("*.tar") if path.name not in names):
        if stray in older:
            report.problems.append(f"{stray}: is superseded by {older[stray]}; run the same command again")
        else:
            report.problems.append(f"{stray}: is not in the plan; move it elsewhere")
    for stray in sorted((*folder.glob("*.tmp.*"), *(folder / FOLDER).glob("*.tmp.*"))):
        report.problems.append(f"{stray.name}: was left by a killed job; run the same command again, or remove it")
    return report


def _verify_shard(
    folder: Path, shard: str, keys: list[str], plan_id: str, seen: set[str], report: VerifyReport
) -> list[str]:
    redo = f"remove {shard} and {FOLDER}/{shard}.json, then run the same command again"
    try:
        commit = read_commit(folder, shard)
    except UsageError as error:
        return [str(error)]
    if commit is None:
        return ["is not committed; run the same command again"]
    if commit.plan_id != plan_id:
        return [f"was made from another plan ({commit.plan_id[:12]}, not {plan_id[:12]}); {redo}"]
    report.ok += commit.ok
    report.failed += len(commit.failed)
    report.filtered += len(commit.filtered)
    report.bytes += commit.bytes
    problems = _account(commit, keys, seen)
    path = folder / shard
    if commit.sha256 is None:
        return problems + ([f"exists, but its record says it is empty; {redo}"] if path.exists() else [])
    if not path.is_file():
        return [*problems, f"is missing; {redo}"]
    if path.stat().st_size != commit.bytes:
        problems.append(f"has {path.stat().st_size} bytes, its record says {commit.bytes}; {redo}")
    if sha256_file(path) != commit.sha256:
        damage = find_damage(path, list(commit.members)) or ["its bytes differ from the record"]
        problems += [f"{found}; {redo}" for found in damage]
    return problems


def _account(commit: Commit, planned: list[str], seen: set[str]) -> list[str]:
    problems: list[str] = []
    accounted = list(dict.fromkeys(member.key for member in commit.members))
    if len(accounted) != commit.ok:
        problems.append(f"holds {len(accounted)} keys, its record says {commit.ok}")
    accounted += [outcome.key for outcome in (*commit.failed, *commit.filtered)]
    for key in accounted:
        if key in seen:
            problems.append(f"{key} occurs twice")
        seen.add(key)
    problems += [f"{key} was planned and is not accounted for" for key in planned if key not in set(accounted)]
    problems += [f"{key} was never planned" for key in accounted if key not in set(planned)]
    return problems


def _check_card(folder: Path, plan: Plan) -> list[str]:
    if plan.stage != "tokenize":
        return []
    card = token_shard.read_tokenizer_card(folder)
    planned = plan.made_from["token_fingerprint"]
    if card.token_fingerprint == planned:
        return []
    return [f"tokenizer.json: names tokenizer {card.token_fingerprint[:12]}, the plan {planned[:12]}; restore it"]


def _content_check(folder: Path, plan: Plan) -> Callable[[Path], list[str]]:
    if plan.stage == "tokenize":
        card = token_shard.read_tokenizer_card(folder)
        return lambda path: _first_error(token_shard.read_tokens(path, card))
    # Of what other stages wrote, the checksums tell all that can be told.
    readers = {clip_shard.PREFIX: clip_shard.read_clips, columns.PREFIX: columns.read_columns}
    read = readers.get(plan.header.prefix, read_samples)
    return lambda path: _first_error(read(path))


def _first_error(samples: Iterable[object]) -> list[str]:
    try:
        for _ in samples:
            pass
    except UsageError as error:
        return [str(error)]
    return []
