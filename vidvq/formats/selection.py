"""Selection of clips by an expression over their columns and the fields that every clip has."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vidvq.config import is_mapping
from vidvq.errors import UsageError
from vidvq.formats.clip_shard import ClipInfo, parse_clip_info
from vidvq.formats.columns import INTRINSIC, ColumnSet, read_table
from vidvq.formats.commit import Commit
from vidvq.formats.plan import Plan
from vidvq.formats.where import Where, look_up

_CARRIED = "carried"


class ClipSelection:
    """An expression over the clips of a directory.

    The columns are those of the sets in ``CLIPS/columns/``, and for every clip ``key``, ``source``, ``num_frames``,
    ``height`` and ``width`` (pixels), ``fps``, ``duration_s`` (seconds) and ``carried.NAME``. A clip that a column's
    function failed on has null there.

    Args:
        text: the expression.

    Attributes:
        sets: the column sets that it needs.

    Raises:
        UsageError: it is not an expression, names an unknown column, or needs columns that are unfinished or older than
            the clips.
    """

    def __init__(self, clips: Path, plan: Plan, text: str, setting: str) -> None:
        self._clips, self._where, self._setting = clips, Where(text, setting), setting
        names = set(self._where.columns)
        self._carried = {name for name in names if name.startswith(f"{_CARRIED}.")}
        self._carried_seen: set[str] = set()
        of_info = {*INTRINSIC} - {_CARRIED}
        wanted = names - of_info - self._carried
        self._needs_info = bool(names & (of_info - {"key"}) or self._carried)
        table = read_table(clips, wanted) if wanted else None
        self._rows = table.rows if table else {}
        known = table.names if table else set[str]()
        self._where.check_columns({*known, *of_info, *self._carried})
        self.sets: dict[str, ColumnSet] = {}
        for name, each in table.sets.items() if table else ():
            if wanted & each.names:
                _refuse_unusable(each, clips, plan)
                self.sets[name] = each

    @property
    def text(self) -> str:
        """The expression."""
        return self._where.text

    def identity(self) -> dict[str, Any]:
        """Everything except the clips that the selection depends on, as JSON types."""
        sets = {name: {"plan_id": each.plan.plan_id, "sha256": each.sha256} for name, each in self.sets.items()}
        return {"where": self.text, "columns": sets}

    def keys(self, commit: Commit) -> set[str]:
        """Keys of the selected clips of one clip shard; its clips' JSON is read only if the expression needs it."""
        if not self._needs_info:
            return {key for key in dict.fromkeys(member.key for member in commit.members) if self.selects(key, None)}
        return {key for key, info in _read_infos(self._clips, commit) if self.selects(key, info)}

    def selects(self, key: str, info: ClipInfo | None) -> bool:
        """Whether a clip is selected.

        Raises:
            UsageError: values of different types are compared.
        """
        row: dict[str, Any] = {**self._rows.get(key, {}), "key": key}
        if info and self._needs_info:
            row |= {name: getattr(info, name) for name in ("source", "num_frames", "height", "width", "fps", _CARRIED)}
            row["duration_s"] = float(info.duration * info.seconds_per_tick)
            self._carried_seen.update(f"{_CARRIED}.{name}" for name in info.carried)
            # In place: threads select clips of several shards at a time.
            self._carried -= {name for name in tuple(self._carried) if look_up(row, name) is not None}
        return self._where.selects(row)

    def finish(self) -> None:
        """Refuse a carried column that no clip had, after all clips were seen.

        Raises:
            UsageError: names it.
        """
        if self._carried:
            self._where.check_columns({*self._where.columns} - self._carried | self._carried_seen)


def _refuse_unusable(columns: ColumnSet, clips: Path, plan: Plan) -> None:
    if columns.unfinished:
        raise UsageError(f"{columns.folder}: {columns.unfinished} is not committed; finish vidvq {columns.plan.stage}")
    made_from: Any = columns.plan.made_from.get("clips")
    if not is_mapping(made_from) or made_from.get("plan_id") != plan.plan_id:
        raise UsageError(
            f"{columns.folder} was made from an earlier state of {clips}; run vidvq {columns.plan.stage} {clips} again"
        )


def _read_infos(clips: Path, commit: Commit) -> Iterator[tuple[str, ClipInfo]]:
    path = clips / commit.shard
    with path.open("rb") as file:
        for member, offset in commit.member_offsets():
            if member.name.endswith(".json"):
                file.seek(offset)
                yield member.key, parse_clip_info(file.read(member.size), f"{path}: {member.key}")
