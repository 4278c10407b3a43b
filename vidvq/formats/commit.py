"""The commit record: a shard exists once, and only once, ``commits/SHARD.json`` says so.

A writer makes the shard under an attempt name, gives it its final name, then creates the record. Both steps happen
at most once per shard whoever tries, so two drivers on one output do not corrupt it, and a kill between any two
instructions leaves either a committed shard or one that the next run makes again.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import ClassVar

from vidvq.config import validate
from vidvq.errors import UsageError
from vidvq.formats.tar import BLOCK_BYTES, Member, TarWriter
from vidvq.storage import (
    attempt_file,
    create_once,
    is_remote,
    pretty_json,
    publish_once,
    publish_over,
    read_json,
    remove_attempts,
    sha256_file,
)

FORMAT = "vidvq.commit/1"
FOLDER = "commits"
_OTHER_WRITER_S = 5.0
_READERS = 16
_MEMBER = tuple(member.name for member in fields(Member))


@dataclass(frozen=True)
class Outcome:
    """Why an item is not in its shard: its key, a short reason (``too_short``), and a sentence for a person."""

    key: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Commit:
    """What one shard holds. ``sha256`` is None, and there is no tar, where not one item was ok.

    ``stats`` are stage-specific totals over the shard's ok items (frames, tokens), the same whoever made the shard.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    shard: str
    plan_id: str
    sha256: str | None
    bytes: int
    ok: int
    failed: tuple[Outcome, ...]
    filtered: tuple[Outcome, ...]
    members: tuple[Member, ...] = ()
    stats: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def items(self) -> int:
        """How many planned items this record accounts for."""
        return self.ok + len(self.failed) + len(self.filtered)

    def places(self) -> Iterator[tuple[Member, int]]:
        """Each member of the tar, and the offset of its content in bytes: nothing of the tar is read for it."""
        offset = 0
        for member in self.members:
            offset += BLOCK_BYTES
            yield member, offset
            offset += -(-member.size // BLOCK_BYTES) * BLOCK_BYTES


class ShardDraft:
    """What a stage fills while it makes a shard: members in key order, and a reason for each item left out."""

    def __init__(self, tar: TarWriter) -> None:
        self._tar = tar
        self.ok = 0
        self.failed: list[Outcome] = []
        self.filtered: list[Outcome] = []
        self.stats: dict[str, int] = {}

    def add(self, key: str, files: dict[str, bytes], **stats: int) -> None:
        """Add an ok item: ``{extension: content}`` under its key; ``stats`` are summed over the shard."""
        for extension in sorted(files):
            self._tar.add(f"{key}.{extension}", files[extension])
        self.ok += 1
        for name, count in stats.items():
            self.stats[name] = self.stats.get(name, 0) + count


def read_commit(folder: Path, shard: str) -> Commit | None:
    """The record of a shard, or None where it is not committed.

    Raises:
        ValueError: the record is damaged.
    """
    try:
        return _read(_record(folder, shard))
    except FileNotFoundError:
        return None


def read_commits(folder: Path, shards: Iterable[str]) -> Iterator[Commit | None]:
    """The records of shards, in their order, as :func:`read_commit` gives each.

    An object store is asked once which there are, and for many of them at a time. One that was not there then is asked
    for when its turn comes: another driver may have committed it meanwhile.

    Raises:
        ValueError: a record is damaged.
    """
    if not is_remote(folder):
        yield from (read_commit(folder, shard) for shard in shards)
        return
    there = {path.name for path in (folder / FOLDER).iterdir()} if (folder / FOLDER).is_dir() else set[str]()
    shards = iter(shards)
    with ThreadPoolExecutor(_READERS) as readers:
        ahead: deque[tuple[str, Future[Commit] | None]] = deque()
        while True:
            for shard in islice(shards, 2 * _READERS - len(ahead)):
                path = _record(folder, shard)
                ahead.append((shard, readers.submit(_read, path) if path.name in there else None))
            if not ahead:
                return
            shard, reading = ahead.popleft()
            yield reading.result() if reading else read_commit(folder, shard)


def commit_shard(folder: Path, shard: str, plan_id: str, fill: Callable[[ShardDraft], None]) -> Commit:
    """Make a shard and commit it, or find that another writer has.

    Args:
        folder: the output directory.
        shard: the tar's name, ``clips-000000.tar``.
        plan_id: of the plan that the shard belongs to.
        fill: adds the shard's items to a draft; what it adds depends on the plan alone.

    Returns:
        The record that stands: this writer's, or that of the one who was first.

    Raises:
        OSError: the disk is full or not writable; nothing is left under a final name.
    """
    try:
        record = _write(folder, shard, plan_id, fill)
        create_once(_record(folder, shard), _encode(record))
    except FileNotFoundError:
        # A writer that was first has swept away the attempts of the others, this one's among them.
        if not _record(folder, shard).exists():
            raise
    remove_attempts(folder, shard)
    remove_attempts(folder / FOLDER, shard + ".json")
    standing = read_commit(folder, shard)
    assert standing is not None
    return standing


def _read(path: Path) -> Commit:
    data = read_json(path)
    try:
        if data.pop("format") != FORMAT:
            raise UsageError("another format")
        members = [dict(zip(_MEMBER, item, strict=True)) for item in data["members"]]
        return validate(Commit, data | {"members": members}, "its content")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{path} is not a commit record of {FORMAT} ({error}); remove it and run again") from error


def _write(folder: Path, shard: str, plan_id: str, fill: Callable[[ShardDraft], None]) -> Commit:
    with attempt_file(folder / shard) as (file, attempt):
        tar = TarWriter(file)
        draft = ShardDraft(tar)
        fill(draft)
        tar.close()
    digest, size = sha256_file(attempt), attempt.stat().st_size
    if draft.ok:
        _publish(attempt, folder, shard, digest)
    attempt.unlink(missing_ok=True)
    return Commit(
        shard=shard,
        plan_id=plan_id,
        sha256=digest if draft.ok else None,
        bytes=size if draft.ok else 0,
        ok=draft.ok,
        failed=tuple(draft.failed),
        filtered=tuple(draft.filtered),
        members=tuple(tar.members),
        stats=draft.stats,
    )


def _publish(attempt: Path, folder: Path, shard: str, digest: str) -> None:
    path = folder / shard
    if _record(folder, shard).exists() or publish_once(attempt, path) or sha256_file(path) == digest:
        return
    # Other content under the final name without a record: its writer is about to record it, or was killed.
    deadline = time.monotonic() + _OTHER_WRITER_S
    while time.monotonic() < deadline:
        if _record(folder, shard).exists():
            return
        time.sleep(0.1)
    publish_over(attempt, path)


def _record(folder: Path, shard: str) -> Path:
    return folder / FOLDER / f"{shard}.json"


def _encode(record: Commit) -> bytes:
    data = asdict(record) | {"format": FORMAT}
    data["members"] = [[member.name, member.size, member.crc32] for member in record.members]
    return pretty_json(data)
