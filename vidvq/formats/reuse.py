"""Samples of an older generation of a shard that can be copied instead of made again."""

from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

from vidvq.errors import UsageError
from vidvq.formats.commit import Commit, read_commit
from vidvq.formats.rows import PlanRow
from vidvq.formats.tar import read_samples


def reusable_samples(
    out: Path, older: Sequence[tuple[str, int]], rows: Sequence[PlanRow]
) -> dict[str, dict[str, bytes]]:
    """The files, by key and extension, of committed samples whose rows have not changed.

    Args:
        older: earlier names of the shard, each with its generation of the plan, oldest first.
    """
    for name, generation in reversed(older):
        if commit := read_commit(out, name):
            wanted = {row.key for row in rows if not row.outcome and row.generation <= generation}
            return _read(out / name, commit, wanted) if wanted else {}
    return {}


def _read(path: Path, commit: Commit, wanted: set[str]) -> dict[str, dict[str, bytes]]:
    if not path.is_file():
        return {}
    sums = {member.name: member.crc32 for member in commit.members}
    found: dict[str, dict[str, bytes]] = {}
    try:
        for key, files in read_samples(path):
            whole = all(sums.get(f"{key}.{extension}") == crc32(data) for extension, data in files.items())
            if key in wanted and whole:
                found[key] = files
    except UsageError:
        # Damaged samples are made again.
        pass
    return found
