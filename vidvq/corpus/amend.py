"""Changes to a finished corpus: more inputs, inputs taken out, failures tried again.

Each writes the plan's next generation (see :mod:`vidvq.formats.plan`); then the stage makes the shards it touched, of
what stands and what is new.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from vidvq.corpus.inputs import Fingerprint, Source, list_sources, source_at, source_of
from vidvq.corpus.listing import Listing, remove_parts
from vidvq.corpus.lists import ListPolicy
from vidvq.corpus.planned import REMOVED, Row, number_shards, rows_of, sources_of
from vidvq.errors import UsageError
from vidvq.formats.commit import read_commits
from vidvq.formats.plan import Plan, extend_plan
from vidvq.log import info
from vidvq.storage import place

# Why an item that was planned once is not to be made; it stays in the plan, and counts as filtered.
GONE = "gone"
LEFT_OUT = frozenset({REMOVED, GONE})
ANY_REASON = "*"


@dataclass(frozen=True)
class Corpus:
    """A corpus as it stands, and how its stage plans.

    Attributes:
        out: its directory.
        plan: with rows as :mod:`vidvq.corpus.planned` says.
        schema: of the rows.
        per_shard: items in a new shard.
        lists: what the columns of a list mean.
        made_from: what a plan of such inputs says it was made from.
        look: yields the rows of all sources of a listing, given those rows that stand beside them.
    """

    out: Path
    plan: Plan
    schema: pa.Schema
    per_shard: int
    lists: ListPolicy
    made_from: Callable[[Fingerprint], dict[str, Any]]
    look: Callable[[Listing, Iterable[Row]], Iterable[Row]]


@dataclass(frozen=True)
class Change:
    """One change to a corpus.

    Attributes:
        add: inputs, of which those that are new join it.
        remove: uris of inputs to take out: their items stay in the plan as ``removed``.
        retry: a reason, or :data:`ANY_REASON`: what failed for it is tried again, from probing on where that failed or
            the file has changed.
    """

    add: tuple[str, ...] | None = None
    remove: tuple[str, ...] = ()
    retry: str | None = None

    def extend(self, corpus: Corpus) -> Plan:
        """Write the plan's next generation, unless the plan says all of it already.

        Raises:
            ValueError: an input cannot be listed, was changed since it was planned, or is not there to be taken out.
        """
        if self.add is not None:
            return _add(corpus, list(self.add))
        return _remove(corpus, set(map(_as_listed, self.remove))) if self.remove else _retry(corpus, self.retry)


def _add(corpus: Corpus, inputs: list[str]) -> Plan:
    known = {source.identity: source for source in sources_of(corpus.plan)}
    listing = Listing(_new(list_sources(inputs, corpus.lists), known))
    if not listing.parts:
        info(f"every input is in {corpus.out} already")
        return corpus.plan
    rows = list(corpus.look(listing, rows_of(corpus.plan)))
    fingerprint = _fingerprint(corpus)
    for part in listing.parts:
        for row in part.to_pylist():
            fingerprint.add(Source(**row))
    return _extend(corpus, fingerprint, rows)


def _remove(corpus: Corpus, uris: set[str]) -> Plan:
    fingerprint = _fingerprint(corpus)
    found: set[str] = set()
    rows: list[Row] = []
    for source, old in _by_source(corpus.plan):
        if source.uri in uris:
            found.add(source.uri)
            standing = [row for row in old if row["reason"] != REMOVED]
            rows += [row | _left_out(REMOVED, "was taken out of the corpus") for row in standing]
            if standing:
                fingerprint.add(source, -1)
    if missing := sorted(uris - found):
        raise UsageError(
            f"{corpus.out} has no input {missing[0]}; give it as the plan has it, see vidvq inspect {corpus.out}"
        )
    return _extend(corpus, fingerprint, rows) if rows else corpus.plan


def _retry(corpus: Corpus, reason: str | None) -> Plan:
    failed = {
        outcome.key
        for commit in read_commits(corpus.out, corpus.plan.shard_names())
        if commit
        for outcome in commit.failed
        if reason in {ANY_REASON, outcome.reason}
    }
    fingerprint = _fingerprint(corpus)
    rows: list[Row] = []
    again: list[Source] = []
    # Rows of the sources that are looked at again, by key; and the same as of the source as it is now.
    old: dict[str, Row] = {}
    moved: dict[str, Row] = {}
    for source, there in _by_source(corpus.plan):
        if not any(row["key"] in failed for row in there):
            continue
        now = _as_now(source)
        if now == source and not any(row["key"] in failed and row["reason"] for row in there):
            rows += [row for row in there if row["key"] in failed]
            continue
        fingerprint.add(source, -1)
        fingerprint.add(now)
        again.append(now)
        old |= {row["key"]: row for row in there}
        moved |= {row["key"]: row | asdict(now) for row in there}
    standing = (row for row in rows_of(corpus.plan) if row["key"] not in old)
    for row in corpus.look(Listing(again), standing) if again else ():
        moved.pop(row["key"], None)
        before = old.get(row["key"])
        if before is None or _differ(corpus, row, before) or (row["key"] in failed and not row["reason"]):
            rows.append(row)
    gone = _left_out(GONE, "is not in the file as it is now")
    rows += [row | gone for row in moved.values() if row["reason"] not in LEFT_OUT]
    info(f"{len(failed)} failed items, {len(rows)} to try again")
    return _extend(corpus, fingerprint, rows) if rows else corpus.plan


def _fingerprint(corpus: Corpus) -> Fingerprint:
    return Fingerprint(corpus.plan.header["made_from"]["inputs"])


def _new(sources: Iterator[Source], known: dict[str, Source]) -> Iterator[Source]:
    for source in sources:
        there = known.get(source.identity)
        if there is None:
            yield source
        elif there != source:
            raise UsageError(f"{source.uri} was changed since it was planned; take it out first: --remove {source.uri}")


def _extend(corpus: Corpus, inputs: Fingerprint, rows: list[Row]) -> Plan:
    """Write a generation: rows whose key is there take that row's place, all others go into new shards."""
    plan, schema = corpus.plan, corpus.schema
    keys = {row["key"] for row in rows}
    shards = {row["key"]: row["shard"] for row in rows_of(plan) if row["key"] in keys}
    over = [row | {"shard": shards[row["key"]]} for row in rows if row["key"] in shards]
    over.sort(key=lambda row: row["shard"])
    fresh = (row for row in rows if row["key"] not in shards)
    new = number_shards(fresh, plan.num_shards, corpus.per_shard, schema)
    table = pa.concat_tables([pa.Table.from_pylist(over, schema=schema), new])
    extended = extend_plan(corpus.out, plan, corpus.made_from(inputs), table)
    remove_parts(corpus.out)
    return extended


def _by_source(plan: Plan) -> Iterator[tuple[Source, list[Row]]]:
    """Every source with its rows. Rows of one source that later generations added come as another group."""
    together: dict[str, tuple[Source, list[Row]]] = {}
    later = {row["uri"] for row in rows_of(plan) if row["generation"]}
    for source, rows in groupby(rows_of(plan), key=source_of):
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


def _left_out(reason: str, detail: str) -> Row:
    # Only a plan of clips has a verdict beside the reason.
    return {"verdict": "filtered", "reason": reason, "detail": detail}


def _differ(corpus: Corpus, row: Row, before: Row) -> bool:
    return any(row[name] != before[name] for name in corpus.schema.names if name != "shard")
