"""Changes to a finished corpus: more inputs, inputs taken out, failures tried again.

Each writes the plan's next generation (see :mod:`vidvq.formats.plan`); then the shards it touched are made, from the
clips that stand and what is new.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from vidvq.config import validate
from vidvq.corpus.inputs import Fingerprint, Source, list_sources, source_at, source_of
from vidvq.corpus.listing import Listing, remove_parts
from vidvq.formats.commit import read_commits
from vidvq.formats.plan import Plan, extend_plan, read_plan
from vidvq.formats.summary import JobSummary
from vidvq.log import info
from vidvq.runtime import Pool, RuntimeConfig
from vidvq.shard.config import ShardConfig
from vidvq.shard.job import make_shards
from vidvq.shard.plan import (
    REMOVED,
    SCHEMA,
    deduplicate,
    made_from,
    number_shards,
    probe_sources,
    sources_of,
)
from vidvq.storage import place

Rows = list[dict[str, Any]]


def add_inputs(inputs: list[str], out: Path, runtime: RuntimeConfig) -> JobSummary:
    """Shard what is new among the inputs, into new shards, by the settings of the corpus.

    Raises:
        ValueError: there is no corpus, an input cannot be listed, or one was changed since it was sharded.
    """
    plan, config = _standing(out, runtime)

    def extend(pool: Pool) -> Plan:
        known = {source.identity: source for source in sources_of(plan)}
        listing = Listing(_new(list_sources(inputs, config.lists), known))
        if not listing.parts:
            info(f"every input is in {out} already")
            return plan
        probed = list(deduplicate(probe_sources(out, listing, config, pool), _hashes(_rows(plan)), config))
        fingerprint = Fingerprint(plan.header["made_from"]["inputs"])
        for part in listing.parts:
            for row in part.to_pylist():
                fingerprint.add(Source(**row))
        extended = _extend(out, plan, config, fingerprint, probed)
        remove_parts(out)
        return extended

    return make_shards(out, config, extend)


def remove_inputs(uris: list[str], out: Path, runtime: RuntimeConfig) -> JobSummary:
    """Take inputs out by uri: their clips go from the shards that held them, and their items stay as ``removed``.

    Raises:
        ValueError: there is no corpus, or it has no such input.
    """
    plan, config = _standing(out, runtime)
    wanted = {_as_listed(uri) for uri in uris}

    def extend(_: Pool) -> Plan:
        fingerprint = Fingerprint(plan.header["made_from"]["inputs"])
        found: set[str] = set()
        rows: Rows = []
        for source, old in _by_source(plan):
            if source.uri in wanted:
                found.add(source.uri)
                standing = [row for row in old if row["reason"] != REMOVED]
                gone = {"verdict": "filtered", "reason": REMOVED, "detail": "was taken out of the corpus"}
                rows += [row | gone for row in standing]
                if standing:
                    fingerprint.add(source, -1)
        if missing := sorted(wanted - found):
            raise ValueError(f"{out} has no input {missing[0]}; give it as the plan has it, see vidvq inspect {out}")
        return _extend(out, plan, config, fingerprint, rows) if rows else plan

    return make_shards(out, config, extend)


def retry_failed(reason: str | None, out: Path, runtime: RuntimeConfig) -> JobSummary:
    """Try failed items again, all or those of one reason: from probing on where that failed or the file has changed.

    Raises:
        ValueError: there is no corpus.
    """
    plan, config = _standing(out, runtime)
    failed = {
        outcome.key
        for commit in read_commits(out, plan.shard_names())
        if commit
        for outcome in commit.failed
        if reason in {None, outcome.reason}
    }

    def extend(pool: Pool) -> Plan:
        fingerprint = Fingerprint(plan.header["made_from"]["inputs"])
        rows: Rows = []
        again: list[Source] = []
        old: dict[str, dict[str, Any]] = {}
        for source, there in _by_source(plan):
            if not any(row["key"] in failed for row in there):
                continue
            now = _as_now(source)
            if now == source and not any(row["key"] in failed and row["verdict"] for row in there):
                rows += [row for row in there if row["key"] in failed]
                continue
            fingerprint.add(source, -1)
            fingerprint.add(now)
            again.append(now)
            old |= {row["key"]: row for row in there}
        probed = probe_sources(out, Listing(again), config, pool) if again else ()
        hashes = _hashes(row for row in _rows(plan) if row["key"] not in old)
        for row in deduplicate(probed, hashes, config):
            before = old.pop(row["key"], None)
            if before is None or _differ(row, before) or (row["key"] in failed and not row["verdict"]):
                rows.append(row)
        gone = {"verdict": "filtered", "reason": "gone", "detail": "is not in the file as it is now"}
        rows += [row | gone for row in old.values() if row["verdict"] == ""]
        remove_parts(out)
        info(f"{len(failed)} failed items, {len(rows)} to try again")
        return _extend(out, plan, config, fingerprint, rows) if rows else plan

    return make_shards(out, config, extend)


def _standing(out: Path, runtime: RuntimeConfig) -> tuple[Plan, ShardConfig]:
    plan = read_plan(out)
    if plan.header["stage"] != "shard":
        raise ValueError(f"{out} was written by vidvq {plan.header['stage']}; give a directory of clip shards")
    settings = {name: value for name, value in plan.header["made_from"].items() if name != "inputs"}
    config = validate(ShardConfig, settings | {"runtime": runtime}, f"{out}/plan.json")
    return plan, config


def _new(sources: Iterator[Source], known: dict[str, Source]) -> Iterator[Source]:
    for source in sources:
        there = known.get(source.identity)
        if there is None:
            yield source
        elif there != source:
            raise ValueError(f"{source.uri} was changed since it was sharded; take it out first: --remove {source.uri}")


def _extend(out: Path, plan: Plan, config: ShardConfig, inputs: Fingerprint, rows: Rows) -> Plan:
    """Write a generation: rows whose key is there take that row's place, all others go into new shards."""
    keys = {row["key"] for row in rows}
    shards = {row["key"]: row["shard"] for row in _rows(plan) if row["key"] in keys}
    over = [row | {"shard": shards[row["key"]]} for row in rows if row["key"] in shards]
    over.sort(key=lambda row: row["shard"])
    new = number_shards((row for row in rows if row["key"] not in shards), plan.num_shards, config.clips_per_shard)
    table = pa.concat_tables([pa.Table.from_pylist(over, schema=SCHEMA), new])
    return extend_plan(out, plan, made_from(config, inputs), table)


def _rows(plan: Plan) -> Iterator[dict[str, Any]]:
    for batch in plan.table.to_batches(max_chunksize=4096):
        yield from batch.to_pylist()


def _hashes(rows: Iterable[dict[str, Any]]) -> dict[str, str]:
    return {row["sha256"]: row["uri"] for row in rows if row["sha256"] and row["reason"] not in {REMOVED, "duplicate"}}


def _by_source(plan: Plan) -> Iterator[tuple[Source, Rows]]:
    """Every source with its rows. Rows of one source that later generations added come as another group."""
    together: dict[str, tuple[Source, Rows]] = {}
    later = {row["uri"] for row in _rows(plan) if row["generation"]}
    for source, rows in groupby(_rows(plan), key=source_of):
        if source.uri not in later:
            yield source, list(rows)
            continue
        there = together.setdefault(source.identity, (source, []))[1]
        there.extend(rows)
    yield from together.values()


def _as_now(source: Source) -> Source:
    container = source.uri.rpartition("#")[0] if source.offset >= 0 else source.uri
    now = source_at(container) if "://" not in container or source.version else Source(container)
    size = source.size if source.offset >= 0 else now.size
    return Source(source.uri, size, now.version, source.offset, source.start_s, source.end_s, source.carried)


def _as_listed(uri: str) -> str:
    return uri if "://" in uri else str(place(uri).absolute())


def _differ(row: dict[str, Any], before: dict[str, Any]) -> bool:
    return any(row[name] != before[name] for name in SCHEMA.names if name != "shard")
