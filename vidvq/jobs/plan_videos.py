"""The plan of a stage whose inputs are videos."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from vidvq.corpus.inputs import Fingerprint
from vidvq.corpus.source import Source
from vidvq.errors import UsageError
from vidvq.formats.keys import SCHEME
from vidvq.formats.plan import Plan, create_plan, has_plan, read_plan, refuse_foreign, refuse_other_origin
from vidvq.formats.rows import GONE, REMOVED, RowCodec
from vidvq.jobs.listing import Listing, probe_listing, remove_parts
from vidvq.jobs.rows import VideoRow
from vidvq.jobs.stage import AnyVideoRow, VideoStage
from vidvq.jobs.unique_keys import separate_keys
from vidvq.log import progress
from vidvq.runtime import Runtime
from vidvq.storage import unless_done


def plan_videos(stage: VideoStage[AnyVideoRow], inputs: list[str], out: Path, runtime: Runtime) -> Plan:
    """Read the plan of an output directory, or probe the inputs and write a new one.

    Args:
        inputs: files, folders, globs, lists, tars of videos and URLs.

    Raises:
        UsageError: an input does not exist, or the plan that is there was made from other inputs or settings.
    """
    if has_plan(out):
        return _confirm(stage, inputs, out)
    refuse_foreign(out)
    listing = Listing(stage.sources(inputs))
    if not listing.parts:
        raise UsageError("the inputs contain no videos")
    made_from = stage.identity() | {"inputs": listing.inputs.value(), "key_scheme": SCHEME}
    with unless_done(lambda: has_plan(out)):
        rows = probe_listing(stage, listing, made_from, out, runtime)
        table = separate_keys(number_shards(stage, stage.select(rows, ()), 0), stage.row)
        plan = create_plan(out, stage.name, stage.prefix, made_from, table, stage.files())
        remove_parts(out)
        refuse_other_origin(out, plan, stage.name, made_from)
        return plan
    # Those that were saved after that driver had deleted all.
    remove_parts(out)
    return _confirm(stage, inputs, out)


def number_shards(stage: VideoStage[AnyVideoRow], rows: Iterable[AnyVideoRow], first_shard: int) -> pa.Table:
    """Assign rows to shards from ``first_shard``, a fixed number to each, and return their table."""
    numbered = (replace(row, shard=first_shard + index // stage.per_shard) for index, row in enumerate(rows))
    return RowCodec(stage.row).to_table(numbered)


def sources_of(plan: Plan, row: type[AnyVideoRow]) -> Iterator[Source]:
    """Yield the sources that a plan was made from, without those removed since."""
    before = None
    for item in plan.rows(row):
        # What is gone from a file keeps the version that it was last in.
        if item.source != before and item.reason not in {REMOVED, GONE}:
            before = item.source
            yield item.source


def removed_uris(plan: Plan, row: type[VideoRow]) -> set[str]:
    """URIs of sources that were removed from a plan and not added again."""
    if len(plan.headers) == 1:
        return set()
    removed, present = set[str](), set[str]()
    for item in plan.rows(row):
        (removed if item.reason == REMOVED else present).add(item.source.uri)
    return removed - present


def _confirm(stage: VideoStage[AnyVideoRow], inputs: list[str], out: Path) -> Plan:
    plan = read_plan(out)
    removed = removed_uris(plan, stage.row) if plan.stage == stage.name else set[str]()
    fingerprint = Fingerprint()
    with progress("list", None, "videos") as bar:
        for source in _without(removed, stage.sources(inputs)):
            fingerprint.add(source)
            bar.advance()
    made_from = stage.identity() | {"inputs": fingerprint.value()}
    # Keys stay as they were planned; the scheme of older ones is not recorded.
    made_from |= {name: value for name, value in plan.made_from.items() if name == "key_scheme"}
    changes = _changes(plan, stage, inputs, removed)
    refuse_other_origin(out, plan, stage.name, made_from, changes)
    return plan


def _without(removed: set[str], sources: Iterable[Source]) -> Iterator[Source]:
    return (source for source in sources if source.uri not in removed)


def _changes(plan: Plan, stage: VideoStage[AnyVideoRow], inputs: list[str], removed: set[str]) -> Iterator[str]:
    if "uri" not in plan.table.column_names:
        return
    old = {source.identity: source for source in sources_of(plan, stage.row)}
    new = {source.identity: source for source in _without(removed, stage.sources(inputs))}
    yield from (f"{name} was added" for name in sorted(new.keys() - old.keys()))
    yield from (f"{name} was removed" for name in sorted(old.keys() - new.keys()))
    yield from (f"{name} was changed" for name in sorted(old.keys() & new.keys()) if old[name] != new[name])
