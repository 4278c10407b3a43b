"""Typed plan rows, and their conversion to and from Arrow tables.

A stage describes its rows as a frozen dataclass derived from :class:`PlanRow`. Fields become columns in their order; a
field that is itself a dataclass becomes one column for each of its fields. ``reason`` and ``detail`` come last.
"""

from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from functools import lru_cache
from itertools import islice
from operator import attrgetter
from types import UnionType
from typing import Annotated, Any, Generic, Self, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

import pyarrow as pa

from vidvq.errors import UsageError

Int32: TypeAlias = Annotated[int, pa.int32()]
_ROWS_PER_BATCH = 4096
_RESTORE = "restore the plan from a copy"
_KINDS = (pa.types.is_string, pa.types.is_integer, pa.types.is_floating)
_ARROW_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64()}
# Items that were planned once and are no longer wanted; they stay in the plan, and count as filtered.
REMOVED = "removed"
GONE = "gone"
NOT_SELECTED = "not_selected"
_FILTER_REASONS = frozenset({REMOVED, GONE, NOT_SELECTED})


def verdict_of(reason: str) -> str:
    """``""`` without a reason, else ``failed`` or ``filtered``."""
    if not reason:
        return ""
    return "filtered" if reason in _FILTER_REASONS else "failed"


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One planned item.

    Attributes:
        key: unique in its plan.
        shard: index of the shard that the item goes into; -1 until it is assigned.
        reason: why the item cannot be made, as a short name; "" for an item to make.
        detail: the reason as a sentence.
        generation: number of the plan's generation that wrote the row; not a column of its own table.
    """

    key: str
    shard: Int32 = -1
    reason: str = ""
    detail: str = ""
    generation: int = field(default=0, compare=False)

    @property
    def outcome(self) -> str:
        """``""`` for an item to make, else ``failed`` or ``filtered``."""
        return verdict_of(self.reason)

    def leave_out(self, reason: str, detail: str) -> Self:
        """A copy of the row that is filtered for a reason."""
        return replace(self, reason=reason, detail=detail)

    @property
    def origin(self) -> str:
        """Where the item comes from, for messages: the uri of its source, or the name of its clip shard."""
        raise NotImplementedError


Row = TypeVar("Row", bound=PlanRow)
Record = TypeVar("Record")
_LAST = ("reason", "detail")
_NOT_STORED = ("generation",)


class RowCodec(Generic[Record]):
    """Converts dataclasses of one type to Arrow tables and back.

    Attributes:
        schema: Arrow schema of the columns.
    """

    def __init__(self, row: type[Record]) -> None:
        self._row = row
        columns = _columns(row)
        self.schema = pa.schema([(path.rpartition(".")[2], kind) for path, kind in columns])
        self._values = [attrgetter(path) for path, _ in columns]

    def to_table(self, rows: Iterable[Record]) -> pa.Table:
        """Build a table; only a few thousand rows are held as Python objects at a time."""
        rows = iter(rows)
        batches: list[pa.RecordBatch] = []
        while some := list(islice(rows, _ROWS_PER_BATCH)):
            arrays = [pa.array(map(get, some), kind) for get, kind in zip(self._values, self.schema.types, strict=True)]
            batches.append(pa.RecordBatch.from_arrays(arrays, schema=self.schema))  # pyright: ignore[reportUnknownMemberType]
        return pa.Table.from_batches(batches, schema=self.schema)

    def from_table(self, table: pa.Table) -> Iterator[Record]:
        """Yield the rows of a table. A column that an older vidvq did not write has its field's default.

        Raises:
            UsageError: a column is of another kind than its field, or lacks a value without a default.
        """
        there = dict(zip(table.column_names, table.schema.types, strict=True))
        for name, kind in zip(self.schema.names, self.schema.types, strict=True):
            found = there.get(name, kind)
            if found != kind and not any(is_kind(found) and is_kind(kind) for is_kind in _KINDS):
                raise UsageError(f"column {name} of a plan is {found}, not {kind}; {_RESTORE}")
        for batch in table.to_batches(max_chunksize=_ROWS_PER_BATCH):
            names = set(batch.schema.names)
            columns: dict[str, list[Any]] = {
                name: batch.column(name).to_pylist() for name in (*self.schema.names, "generation") if name in names
            }
            for index in range(batch.num_rows):
                yield _build(self._row, {name: column[index] for name, column in columns.items()})


def _columns(kind: type[Any], prefix: str = "") -> list[tuple[str, pa.DataType]]:
    """The dotted path of each column in a row, and its type."""
    hints = get_type_hints(kind, include_extras=True)
    found: list[tuple[str, pa.DataType]] = []
    for name in _field_order(kind):
        path, hint = f"{prefix}{name}", hints[name]
        group = hint if is_dataclass(hint) and isinstance(hint, type) else None
        found += _columns(group, f"{path}.") if group else [(path, _arrow_type(hint))]
    return found


def _field_order(kind: type[Any]) -> list[str]:
    names = [each.name for each in fields(kind) if each.name not in _NOT_STORED]
    if not issubclass(kind, PlanRow):
        return names
    return [name for name in names if name not in _LAST] + list(_LAST)


def _arrow_type(hint: Any) -> pa.DataType:
    if get_origin(hint) is Annotated:
        return next(mark for mark in get_args(hint) if isinstance(mark, pa.DataType))
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (arm for arm in get_args(hint) if arm is not type(None))
        return _arrow_type(hint)
    return _ARROW_TYPES[hint]


def _build(kind: type[Any], values: dict[str, Any]) -> Any:
    arguments: dict[str, Any] = {}
    for each, nested in _nested(kind):
        if nested:
            arguments[each.name] = _build(nested, values)
        elif (value := values.get(each.name)) is not None:
            arguments[each.name] = value
        elif each.default is MISSING:
            raise UsageError(f"a row of a plan has no {each.name}; {_RESTORE}")
    return kind(**arguments)


@lru_cache(maxsize=64)
def _nested(kind: type[Any]) -> list[tuple[Field[Any], type[Any] | None]]:
    hints = get_type_hints(kind)
    return [(each, hints[each.name] if is_dataclass(hints[each.name]) else None) for each in fields(kind)]
