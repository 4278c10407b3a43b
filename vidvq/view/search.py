"""Which clips are meant, by words of their keys and sources, over a whole directory."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from vidvq.formats.arrow import compute as pc
from vidvq.formats.commit import read_commit
from vidvq.formats.plan import Plan, read_plan
from vidvq.formats.token_index import index_shard


class Search:
    """The names of all clips, packed: those of millions fit into memory.

    Args:
        shards: token shards, in their order.
        clips: the plan of the clips that they were made from, or None.

    Raises:
        UsageError: a damaged shard.
    """

    def __init__(self, shards: list[Path], clips: Plan | None) -> None:
        keys = pa.array((key for shard in shards for key in _keys(shard)), pa.string())
        plans = [clips] if clips else []
        if shards and (shards[0].parent / "plan.json").is_file():
            plans.append(read_plan(shards[0].parent))
        table = next((plan.table for plan in plans if "uri" in plan.table.column_names), None)
        if table is None:
            # Only the samples themselves tell.
            sources = pa.array(
                (place.read_info().source for shard in shards for place in index_shard(shard)), pa.string()
            )
        else:
            planned = table["key"].combine_chunks()
            sources = table["uri"].combine_chunks().take(pc.index_in(keys, value_set=planned))
        self._columns = keys, pc.fill_null(sources, "")

    def find(self, text: str) -> list[int]:
        """The clips, by their places, that have every word of ``text`` in their key or source, whatever its case."""
        found = None
        for word in text.split():
            key, source = (pc.match_substring(column, word, ignore_case=True) for column in self._columns)
            has = pc.or_(key, source)
            found = has if found is None else pc.and_(found, has)
        return list(range(len(self._columns[0]))) if found is None else pc.indices_nonzero(found).to_pylist()


def _keys(shard: Path) -> Iterable[str]:
    commit = read_commit(shard.parent, shard.name)
    if commit is None:
        return [place.key for place in index_shard(shard)]
    return dict.fromkeys(member.key for member in commit.members)
