"""The sources of a plan that stands: whether they are still the same, and which were taken out.

Rows of such a plan have, beside :data:`vidvq.corpus.inputs.SOURCE_COLUMNS`, a ``reason``: "" for an item to make.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from vidvq.corpus.inputs import Fingerprint, Source, source_of
from vidvq.formats.plan import Plan, ensure_plan, read_plan, table_of
from vidvq.log import progress

REMOVED = "removed"
Row = dict[str, Any]


def confirm_plan(
    out: Path,
    stage: str,
    prefix: str,
    sources: Callable[[], Iterable[Source]],
    made_from: Callable[[Fingerprint], dict[str, Any]],
) -> Plan:
    """The plan that is in a directory, if it was made from the same; what was taken out since is passed over.

    Args:
        out: the output directory.
        stage: as of :func:`vidvq.formats.plan.ensure_plan`, as is ``prefix``.
        prefix: of the shards' names.
        sources: lists the inputs, from their beginning at each call.
        made_from: what a plan of such inputs says it was made from.

    Raises:
        ValueError: it was made from other inputs or settings.
    """
    gone = removed_uris(read_plan(out))
    inputs = Fingerprint()

    def standing() -> Iterator[Source]:
        return (source for source in sources() if source.uri not in gone)

    with progress("list", None, "videos") as bar:
        for source in standing():
            inputs.add(source)
            bar.advance()

    def build() -> pa.Table:
        raise AssertionError("the plan is there")

    def explain(plan: Plan) -> list[str]:
        return _explain(plan, standing())

    return ensure_plan(out, stage, prefix, made_from(inputs), build, explain)


def rows_of(plan: Plan) -> Iterator[Row]:
    """The rows of a plan; never are many of them in memory as Python objects."""
    for batch in plan.table.to_batches(max_chunksize=4096):
        yield from batch.to_pylist()


def sources_of(plan: Plan) -> Iterator[Source]:
    """The sources a plan was made from, without those removed since."""
    if "uri" not in plan.table.column_names:
        return
    before = None
    for row in rows_of(plan):
        source = source_of(row)
        if source != before and row["reason"] != REMOVED:
            before = source
            yield source


def removed_uris(plan: Plan) -> set[str]:
    """The sources that were taken out of a plan, and not taken in again."""
    if len(plan.headers) == 1 or "uri" not in plan.table.column_names:
        return set()
    columns = (plan.table.column(name).to_pylist() for name in ("uri", "reason"))
    pairs = set(zip(*columns, strict=True))
    return {uri for uri, reason in pairs if reason == REMOVED} - {uri for uri, reason in pairs if reason != REMOVED}


def number_shards(rows: Iterable[Row], first_shard: int, per_shard: int, schema: pa.Schema) -> pa.Table:
    """A table of rows, ``per_shard`` to a shard from ``first_shard`` on."""
    numbered = (row | {"shard": first_shard + index // per_shard} for index, row in enumerate(rows))
    return table_of(numbered, schema)


def _explain(plan: Plan, sources: Iterable[Source]) -> list[str]:
    old = {source.identity: source for source in sources_of(plan)}
    new = {source.identity: source for source in sources}
    added = [f"{name} was added" for name in sorted(new.keys() - old.keys())]
    removed = [f"{name} was removed" for name in sorted(old.keys() - new.keys())]
    changed = [f"{name} was changed" for name in sorted(old.keys() & new.keys()) if old[name] != new[name]]
    return added + removed + changed
