"""Writing of samples in plan order, independent of the order in which they are ready."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from vidvq.formats.commit import Outcome, ShardDraft


@dataclass(frozen=True)
class Sample:
    """A sample to write: its files by extension, and its contribution to the statistics of the shard."""

    key: str
    files: dict[str, bytes]
    stats: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class Rejected:
    """An item that is not in its shard: ``failed`` or ``filtered``, and the outcome."""

    verdict: str
    outcome: Outcome

    @property
    def key(self) -> str:
        """Key of the item."""
        return self.outcome.key


Item: TypeAlias = Sample | Rejected


class OrderedShardWriter:
    """Buffers items until all items before them have been added.

    Args:
        keys: keys of the items to come, in the order of the plan.
    """

    def __init__(self, draft: ShardDraft, keys: Iterable[str]) -> None:
        self._draft = draft
        self._keys = deque(keys)
        self._early: dict[str, Item] = {}

    def put(self, item: Item) -> None:
        """Add one item; each key must be added once, in any order."""
        self._early[item.key] = item
        while self._keys and (ready := self._early.pop(self._keys[0], None)):
            self._keys.popleft()
            self._write(ready)

    def _write(self, item: Item) -> None:
        if isinstance(item, Sample):
            self._draft.add(item.key, item.files, **item.stats)
        elif item.verdict == "failed":
            self._draft.failed.append(item.outcome)
        else:
            self._draft.filtered.append(item.outcome)
