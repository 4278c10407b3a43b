"""Updates of a finished corpus: more inputs, inputs removed, failures retried.

Each writes the plan's next generation (see :mod:`vidvq.formats.plan`); the job then makes the shards it touches, and
copies the samples that are still valid.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa

from vidvq.corpus.inputs import Fingerprint
from vidvq.corpus.source import Source, source_at, uri_of
from vidvq.errors import UsageError
from vidvq.formats.commit import read_commits
from vidvq.formats.keys import SCHEME
from vidvq.formats.plan import Plan, extend_plan, has_plan, newer_generation, read_plan
from vidvq.formats.rows import GONE, REMOVED, RowCodec
from vidvq.formats.summary import refuse_older_plan
from vidvq.jobs.listing import Listing, probe_listing, remove_parts
from vidvq.jobs.plan_videos import number_shards, sources_of
from vidvq.jobs.reasons import FAILURES, kind_of
from vidvq.jobs.stage import AnyRow, AnyVideoRow, ClipStage, ListedStage, Stage, VideoStage
from vidvq.jobs.unique_keys import assign_keys
from vidvq.log import counted, info
from vidvq.runtime import Runtime
from vidvq.storage import differences, resolve_path
from vidvq.video.limits import Limits

ANY_REASON = "*"
# These decide only whether an item fails, so that higher ones leave what was made as it is.
_RAISABLE_LIMITS = ("max_pixels", "max_frames", "max_bytes", "deadline_s", "max_side")


@dataclass(frozen=True)
class CorpusUpdate:
    """One update of a corpus; exactly one field is set.

    Attributes:
        add: inputs to add; those that the corpus already has are skipped.
        remove: uris of inputs to remove; their items stay in the plan as ``removed``.
        retry: a reason, or :data:`ANY_REASON`: items that failed for it are tried again. Where probing failed or the
            file has changed, the video is probed again. Limits may be higher than those of the plan; its next
            generation records them.
    """

    add: tuple[str, ...] | None = None
    remove: tuple[str, ...] = ()
    retry: str | None = None


def check_update(plan: Plan, stage: str, inputs: list[str], update: CorpusUpdate, out: Path) -> None:
    """Check that the corpus supports an update, before any work.

    Args:
        stage: name of the stage that runs now.
        inputs: inputs on the command line.

    Raises:
        UsageError: another stage wrote the corpus, or the arguments do not go together.
    """
    if plan.stage != stage:
        raise UsageError(f"{out} was written by vidvq {plan.stage}; give a directory that vidvq {stage} wrote")
    over_videos = "inputs" in plan.made_from
    if not over_videos and update.retry is None:
        raise UsageError(
            f"{out} is made from clip shards; change those with vidvq shard --add, --remove or --retry-failed, then "
            f"run vidvq {stage} CLIPS --out {out} again"
        )
    if not over_videos and len(inputs) != 1:
        raise UsageError(f"{out} is made from clip shards; give their directory: vidvq {stage} CLIPS --out {out} ...")
    if over_videos and inputs and update.add is None:
        raise UsageError(f"{inputs[0]} is an extra argument; --remove and --retry-failed take no videos")
    for given in update.add or ():
        if has_plan(resolve_path(given)):
            raise UsageError(f"{given} is a directory of shards; --add takes videos, as {out} was made from")


def update_videos(stage: VideoStage[AnyVideoRow], update: CorpusUpdate, out: Path, runtime: Runtime) -> Plan:
    """Write the next generation of a plan over videos, unless the plan already contains the update.

    Raises:
        UsageError: an input cannot be listed, was changed since it was planned, or is not there to be removed; or the
            corpus was made by another tokenizer, or under other limits.
        JobStopped: another driver has changed the corpus in the meantime.
    """
    plan = read_plan(out)
    _refuse_other_identity(stage, plan, update, out)
    try:
        if update.add is not None:
            return _add(stage, plan, list(update.add), out, runtime)
        if update.remove:
            return _remove(stage, plan, {_as_listed(uri) for uri in update.remove}, out)
        return _retry(stage, plan, update.retry, out, runtime)
    except FileNotFoundError:
        if newer_generation(out, plan):
            # Another driver has finished an update, and deleted the saved parts of this one.
            remove_parts(out)
            refuse_older_plan(out, plan)
        raise


def retry_rows(stage: ClipStage | ListedStage[Any], update: CorpusUpdate, out: Path) -> Plan:
    """Write the next generation of a plan over clip shards or listed items, which retries its failed items.

    Raises:
        UsageError: the corpus was made by another tokenizer or function, or from something else.
    """
    plan = read_plan(out)
    _refuse_other_identity(stage, plan, update, out)
    failed = _failed_keys(plan, stage.row, update.retry, out)
    rows = [row for row in plan.rows(stage.row) if row.key in failed]
    info(f"{counted(len(failed), 'failed items')} to retry")
    return extend_plan(out, plan, plan.made_from, RowCodec(stage.row).to_table(rows)) if rows else plan


def _refuse_other_identity(stage: Stage[Any], plan: Plan, update: CorpusUpdate, out: Path) -> None:
    identity = {name: value for name, value in stage.identity().items() if name in plan.made_from}
    planned = {name: plan.made_from[name] for name in identity}
    if update.retry and "limits" in planned:
        planned["limits"] = planned["limits"] | _raised(planned["limits"], identity["limits"])
    if found := list(differences("", planned, identity)):
        remedy = "Give the --checkpoint or the function that made it, or another --out"
        if all(each.startswith("limits.") for each in found):
            remedy = f"Keep these limits; --retry-failed may raise {', '.join(_RAISABLE_LIMITS)}"
        raise UsageError(f"{out} was made with other weights or settings: {'; '.join(found)}. {remedy}")


def _raised(planned: dict[str, Any], limits: dict[str, Any]) -> dict[str, Any]:
    """The limits that are higher than the planned ones. Plans leave out some that are default."""
    return {
        name: limits[name]
        for name in _RAISABLE_LIMITS
        if name in limits and limits[name] > planned.get(name, getattr(Limits, name))
    }


def _add(stage: VideoStage[AnyVideoRow], plan: Plan, inputs: list[str], out: Path, runtime: Runtime) -> Plan:
    known = {source.identity: source for source in sources_of(plan, stage.row)}
    listing = Listing(_new(stage.sources(inputs), known))
    if not listing.parts:
        info(f"every input is in {out} already")
        return plan
    fingerprint = Fingerprint(plan.made_from["inputs"])
    for source in listing.sources():
        fingerprint.add(source)
    rows = _probe_again(stage, plan, listing, plan.rows(stage.row), out, runtime)
    return _extend(stage, plan, fingerprint, rows, out)


def _remove(stage: VideoStage[AnyVideoRow], plan: Plan, uris: set[str], out: Path) -> Plan:
    fingerprint = Fingerprint(plan.made_from["inputs"])
    found: set[str] = set()
    rows: list[AnyVideoRow] = []
    for source, old in _by_source(plan, stage.row):
        if source.uri in uris:
            found.add(source.uri)
            present = [row for row in old if row.reason != REMOVED]
            rows += [row.leave_out(REMOVED, "was removed from the corpus") for row in present]
            if present:
                fingerprint.add(source, -1)
    if missing := sorted(uris - found):
        name = PurePath(missing[0]).name
        near = next((source.uri for source in sources_of(plan, stage.row) if PurePath(source.uri).name == name), None)
        remedy = f"did you mean {near}?" if near else "give a URI of the plan (vidvq inspect SHARD lists them)"
        raise UsageError(f"{out} has no input {missing[0]}; {remedy}")
    return _extend(stage, plan, fingerprint, rows, out) if rows else plan


def _retry(stage: VideoStage[AnyVideoRow], plan: Plan, reason: str | None, out: Path, runtime: Runtime) -> Plan:
    failed = _failed_keys(plan, stage.row, reason, out)
    fingerprint = Fingerprint(plan.made_from["inputs"])
    rows: list[AnyVideoRow] = []
    probe: list[Source] = []
    # Rows of the videos to probe again, by key: current rows, and rows with the current source.
    old: dict[str, AnyVideoRow] = {}
    unclaimed: dict[str, AnyVideoRow] = {}
    listed: dict[str, dict[str, Source]] = {}
    for source, there in _by_source(plan, stage.row):
        if not any(row.key in failed for row in there):
            continue
        now = _refresh(stage, source, listed)
        if now == source and not any(row.key in failed and row.reason for row in there):
            # The file is unchanged and was probed successfully: retry only its failed items.
            rows += [row for row in there if row.key in failed]
            continue
        fingerprint.add(source, -1)
        fingerprint.add(now)
        probe.append(now)
        old |= {row.key: row for row in there}
        unclaimed |= {row.key: replace(row, source=now) for row in there}
    others = (row for row in plan.rows(stage.row) if row.key not in old)
    for row in _probe_again(stage, plan, Listing(probe), others, out, runtime) if probe else ():
        unclaimed.pop(row.key, None)
        before = old.get(row.key)
        unchanged = before is not None and replace(row, shard=before.shard) == before
        if not unchanged or (row.key in failed and not row.reason):
            rows.append(row)
    # Items that the file no longer contains stay in the plan, unless an earlier update has removed them.
    gone = (row for row in unclaimed.values() if row.reason not in {REMOVED, GONE})
    rows += [row.leave_out(GONE, "is no longer in the file") for row in gone]
    # A video that is planned again may have other items than before, or fail as it did.
    again = f": {counted(sum(not row.reason for row in rows), 'items')} to make" if probe else ""
    info(f"{counted(len(failed), 'failed items')} to retry{again}")
    if not rows:
        # Else the next retry would take the failures that these parts hold.
        remove_parts(out)
        return plan
    return _extend(stage, plan, fingerprint, rows, out)


def _probe_again(
    stage: VideoStage[AnyVideoRow],
    plan: Plan,
    listing: Listing,
    others: Iterable[AnyVideoRow],
    out: Path,
    runtime: Runtime,
) -> list[AnyVideoRow]:
    made_from = stage.identity() | {"inputs": listing.inputs.value(), "key_scheme": SCHEME}
    rows = probe_listing(stage, listing, made_from, out, runtime)
    return list(assign_keys(stage.select(rows, others), plan.rows(stage.row)))


def _extend(
    stage: VideoStage[AnyVideoRow], plan: Plan, inputs: Fingerprint, rows: list[AnyVideoRow], out: Path
) -> Plan:
    """Write a generation: rows whose keys are in the plan replace those rows, all others go into new shards."""
    keys = {row.key for row in rows}
    shards = {row.key: row.shard for row in plan.rows(stage.row) if row.key in keys}
    replaced = [replace(row, shard=shards[row.key]) for row in rows if row.key in shards]
    replaced.sort(key=lambda row: row.shard)
    new = number_shards(stage, (row for row in rows if row.key not in shards), plan.num_shards)
    table = pa.concat_tables([RowCodec(stage.row).to_table(replaced), new])
    made_from = plan.made_from | stage.identity() | {"inputs": inputs.value()}
    extended = extend_plan(out, plan, made_from, table)
    remove_parts(out)
    return extended


def _failed_keys(plan: Plan, row: type[AnyRow], reason: str | None, out: Path) -> set[str]:
    """Keys of the failed items to retry, without those that an unfinished update has retried: it is resumed."""
    failed: set[str] = set()
    found = Counter[str]()
    newest, unfinished, complete = len(plan.headers) - 1, False, True
    for index, commit in enumerate(read_commits(out, plan.shard_names())):
        if commit is None:
            unfinished, complete = unfinished or newest in plan.touched.get(index, ()), False
            continue
        found.update(outcome.reason for outcome in commit.failed)
        failed.update(
            outcome.key for outcome in commit.failed if reason in {ANY_REASON, outcome.reason, kind_of(outcome.reason)}
        )
    # A shard without a record may yet fail for a reason of the user's own code.
    if complete and not failed and reason and kind_of(reason) not in {ANY_REASON, *FAILURES}:
        raise UsageError(f"no item fails for the reason {reason}; {_known_reasons(found, out)}")
    if failed and unfinished:
        failed -= {item.key for item in plan.rows(row) if item.generation == newest}
    return failed


def _known_reasons(found: Counter[str], out: Path) -> str:
    if not found:
        return f"{out} has no failed items; the reasons of vidvq are {', '.join(sorted(FAILURES))}"
    return f"give one for which items of {out} failed: {', '.join(f'{name} ({found[name]})' for name in sorted(found))}"


def _new(sources: Iterator[Source], known: dict[str, Source]) -> Iterator[Source]:
    for source in sources:
        there = known.get(source.identity)
        if there is None:
            yield source
        elif there != source:
            raise UsageError(f"{source.uri} has changed since it was planned; remove it first: --remove {source.uri}")


def _by_source(plan: Plan, row: type[AnyVideoRow]) -> Iterator[tuple[Source, list[AnyVideoRow]]]:
    """Yield every source with its rows. Rows that later generations added to a source are in the same list."""
    together: dict[str, tuple[Source, list[AnyVideoRow]]] = {}
    later = {item.source.uri for item in plan.rows(row) if item.generation}
    for source, rows in groupby(plan.rows(row), key=lambda item: item.source):
        if source.uri not in later:
            yield source, list(rows)
            continue
        together.setdefault(source.identity, (source, []))[1].extend(rows)
    yield from together.values()


def _refresh(stage: VideoStage[AnyVideoRow], source: Source, listed: dict[str, dict[str, Source]]) -> Source:
    """The source with the current size and version of its file, and its current place in a tar or table.

    Args:
        listed: the sources in the last tar or table that has changed, by identity.
    """
    is_inside = source.offset >= 0
    if source.failure and not is_inside:
        return source
    container = source.container
    now = source_at(container) if "://" not in container or source.version else Source(container)
    if not is_inside or now.version in ("", source.version):
        return replace(source, size=source.size if is_inside else now.size, version=now.version)
    if container not in listed:
        listed.clear()
        listed[container] = {each.identity: each for each in stage.sources([container])}
    gone = replace(source, version=f"!missing: is no longer in {PurePath(container).name}")
    return listed[container].get(source.identity, gone)


def _as_listed(uri: str) -> str:
    return uri if "://" in uri else uri_of(resolve_path(uri))
