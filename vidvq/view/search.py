"""Full-text search of clips by key and source."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from vidvq.formats.arrow import compute as pc
from vidvq.formats.commit import read_commit
from vidvq.formats.plan import Plan, read_plan
from vidvq.formats.token_index import index_shard


class SearchIndex:
    """Keys and sources of all clips in Arrow arrays, which hold those of millions of clips in memory.

    Args:
        shards: token shards, in order.
        clips: plan of the clip shards that the tokens were made from; None if unknown.

    Raises:
        UsageError: a shard is damaged.
    """

    def __init__(self, shards: list[Path], clips: Plan | None) -> None:
        keys = pa.array((key for shard in shards for key in _keys(shard)), pa.string())
        plans = [clips] if clips else []
        if shards and (shards[0].parent / "plan.json").is_file():
            plans.append(read_plan(shards[0].parent))
        table = next((plan.table for plan in plans if "uri" in plan.table.column_names), None)
        if table is None:
            # No plan has the sources; read them from the samples.
            sources = pa.array(
                (sample.read_info().source for shard in shards for sample in index_shard(shard)), pa.string()
            )
        else:
            planned = table["key"].combine_chunks()
            sources = table["uri"].combine_chunks().take(pc.index_in(keys, value_set=planned))
        self._columns = keys, pc.fill_null(sources, "")

    def find(self, text: str) -> list[int]:
        """Indices of the clips whose key or source contains every word of ``text``, ignoring case."""
        found = None
        for word in text.split():
            key, source = (pc.match_substring(column, word, ignore_case=True) for column in self._columns)
            has = pc.or_(key, source)
            found = has if found is None else pc.and_(found, has)
        return list(range(len(self._columns[0]))) if found is None else pc.indices_nonzero(found).to_pylist()


def _keys(shard: Path) -> Iterable[str]:
    commit = read_commit(shard.parent, shard.name)
    if commit is None:
        return [sample.key for sample in index_shard(shard)]
    return dict.fromkeys(member.key for member in commit.members)
