"""Commit records: a shard is finished once ``commits/SHARD.json`` exists.

A writer makes the shard under a temporary name, renames it, then creates the record. Both steps succeed at most once
per shard, whichever driver tries, so several drivers can share an output directory. A kill at any point leaves either
a committed shard or one that the next run makes again.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated

from pydantic import Field

from vidvq.config import to_dict
from vidvq.errors import UsageError
from vidvq.formats.plan import Plan
from vidvq.formats.schema import MAX_LABEL, MAX_TEXT, Count, Digest, FileName, Label, Text, parse
from vidvq.formats.tar import BLOCK_BYTES, END_BYTES, RECORD_BYTES, Member, MemberName, TarWriter
from vidvq.redact import redact
from vidvq.storage import (
    add_digest,
    attempt_file,
    create_once,
    file_exists,
    is_created_soon,
    is_remote,
    pretty_json,
    publish_once,
    publish_replace,
    read_json,
    safe_join,
    sha256_file,
    unless_done,
)

FORMAT = "vidvq.commit/1"
FOLDER = "commits"
_REDO = "remove it, then run the same command again"
_READERS = 16


@dataclass(frozen=True)
class Outcome:
    """Why an item is not in its shard.

    Attributes:
        key: key of the item.
        reason: short name of the reason, such as ``too_short``.
        detail: the reason as a sentence.
    """

    key: MemberName
    reason: Label
    detail: Text = ""


@dataclass(frozen=True)
class Commit:
    """The record of one committed shard.

    Attributes:
        shard: file name of the tar.
        plan_id: ``plan_id`` of the plan it belongs to.
        sha256: SHA-256 of the tar (hex); None if no item was ok, and there is no tar.
        bytes: size of the tar.
        ok: number of items in the tar.
        failed: items that could not be made.
        filtered: items that were left out on purpose.
        members: files in the tar, in order.
        stats: totals over the ok items, such as frames and tokens. They do not depend on the worker.
    """

    shard: FileName
    plan_id: Text
    sha256: Digest | None
    bytes: Count
    ok: Count
    failed: tuple[Outcome, ...]
    filtered: tuple[Outcome, ...]
    members: tuple[Member, ...] = ()
    stats: dict[Label, Annotated[int, Field(ge=-(1 << 62), le=1 << 62)]] = field(default_factory=dict[str, int])

    @property
    def items(self) -> int:
        """Number of planned items that this record accounts for."""
        return self.ok + len(self.failed) + len(self.filtered)

    def member_offsets(self) -> Iterator[tuple[Member, int]]:
        """Yield each member of the tar and the offset of its content (bytes), without reading the tar."""
        offset = 0
        for member in self.members:
            offset += BLOCK_BYTES
            yield member, offset
            offset += -(-member.size // BLOCK_BYTES) * BLOCK_BYTES


_on_item: ContextVar[Callable[[], None]] = ContextVar("on_item", default=lambda: None)


@contextmanager
def observe_items(observer: Callable[[], None]) -> Generator[None]:
    """Call ``observer`` after each item that this thread adds to a shard in the block, before its commit."""
    token = _on_item.set(observer)
    try:
        yield
    finally:
        _on_item.reset(token)


class ShardDraft:
    """A shard in the making.

    Args:
        tar: receives the members.

    Attributes:
        ok: number of items added.
        failed: items that could not be made.
        filtered: items that were left out on purpose.
        stats: totals over the added items.
    """

    def __init__(self, tar: TarWriter) -> None:
        self._tar = tar
        self.ok = 0
        self.failed: list[Outcome] = []
        self.filtered: list[Outcome] = []
        self.stats: dict[str, int] = {}

    def add(self, key: str, files: dict[str, bytes], **stats: int) -> None:
        """Add an item.

        Args:
            files: content by extension.
            stats: statistics, which are summed over the shard.
        """
        for extension in sorted(files):
            self._tar.add(f"{key}.{extension}", files[extension])
        self.ok += 1
        _on_item.get()()
        for name, count in stats.items():
            self.stats[name] = self.stats.get(name, 0) + count


def read_commit(folder: Path, shard: str) -> Commit | None:
    """The record of a shard; None if it is not committed.

    Raises:
        UsageError: the record is damaged.
    """
    try:
        return _read(record_path(folder, shard))
    except FileNotFoundError:
        return None


def read_commits(folder: Path, shards: Iterable[str]) -> Iterator[Commit | None]:
    """Yield the record of each shard as :func:`read_commit` does, in order.

    In an object store, records are listed once and read in parallel. A record that was not listed is requested again
    when its turn comes, since another driver may have committed it in the meantime.

    Raises:
        UsageError: a record is damaged.
    """
    if not is_remote(folder):
        yield from (read_commit(folder, shard) for shard in shards)
        return
    there = {path.name for path in (folder / FOLDER).iterdir()} if (folder / FOLDER).is_dir() else set[str]()
    shards = iter(shards)
    with ThreadPoolExecutor(_READERS) as readers:
        ahead: deque[tuple[str, Future[Commit | None] | None]] = deque()
        while True:
            for shard in islice(shards, 2 * _READERS - len(ahead)):
                is_there = record_path(folder, shard).name in there
                ahead.append((shard, readers.submit(read_commit, folder, shard) if is_there else None))
            if not ahead:
                return
            shard, reading = ahead.popleft()
            yield reading.result() if reading else read_commit(folder, shard)


def read_finished(folder: Path, plan: Plan) -> Iterator[Commit]:
    """Yield the records of the shards of a finished directory that are not empty, in order.

    Raises:
        UsageError: a shard is not committed, or its record is damaged.
    """
    for name, commit in zip(plan.shard_names(), read_commits(folder, plan.shard_names()), strict=True):
        if commit is None:
            raise UsageError(f"{folder}: {name} is not committed; finish vidvq {plan.stage} first")
        if commit.sha256 is not None:
            yield commit


def finished_shards(folder: Path, plan: Plan) -> Iterator[tuple[Path, Commit]]:
    """Yield the file and the record of each shard of a finished directory that is not empty, in order.

    Raises:
        UsageError: a shard is not committed, its record is damaged, or its file is missing or of another size.
    """
    finished = read_finished(folder, plan)
    # An object store takes a request for each size.
    with ThreadPoolExecutor(_READERS) as readers:
        while some := list(islice(finished, _READERS)):
            yield from readers.map(partial(_find_shard, folder), some)


def _find_shard(folder: Path, commit: Commit) -> tuple[Path, Commit]:
    path = safe_join(folder, commit.shard)
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise UsageError(f"{path} is missing; run vidvq verify {folder}") from None
    if size != commit.bytes:
        raise UsageError(f"{path} has {size} bytes, not the {commit.bytes} of its record; run vidvq verify {folder}")
    return path, commit


def commit_shard(folder: Path, shard: str, plan_id: str, fill: Callable[[ShardDraft], None]) -> Commit:
    """Make a shard and commit it, unless another writer commits it first.

    Args:
        shard: file name of the tar, such as ``clips-000000.tar``.
        plan_id: ``plan_id`` of the plan that the shard belongs to.
        fill: adds the items to a draft. What it adds must depend on the plan alone.

    Returns:
        The committed record, of this writer or of the one that was first.

    Raises:
        OSError: the disk is full or not writable; nothing is left under a final name.
    """
    path = record_path(folder, shard)
    with unless_done(lambda: file_exists(path)):
        create_once(path, _encode(_write(folder, shard, plan_id, fill)))
    committed = read_commit(folder, shard)
    assert committed is not None
    return committed


def _read(path: Path) -> Commit:
    found = parse(Commit, read_json(path), FORMAT, f"{path}", _REDO)
    fault = _contradiction(found) if path.name == f"{found.shard}.json" else f"it is the record of {found.shard}"
    if fault:
        raise UsageError(f"{path} is not a record of its shard: {fault}; {_REDO}")
    return found


def _contradiction(record: Commit) -> str:
    """Describe the first inconsistency of a record; "" if there is none."""
    names = [member.name for member in record.members]
    if len(set(names)) != len(names):
        return "a member occurs twice"
    size = sum(BLOCK_BYTES + -(-member.size // BLOCK_BYTES) * BLOCK_BYTES for member in record.members)
    if record.sha256 is None and (record.bytes or record.ok or names or record.stats):
        return "it has content, but no sha256"
    whole = -(-(size + END_BYTES) // RECORD_BYTES) * RECORD_BYTES
    if record.sha256 is not None and record.bytes != whole:
        return f"bytes={record.bytes} does not match its members, which need {whole}"
    return ""


def _write(folder: Path, shard: str, plan_id: str, fill: Callable[[ShardDraft], None]) -> Commit:
    with attempt_file(folder / shard) as (file, attempt):
        tar = TarWriter(file)
        draft = ShardDraft(tar)
        fill(draft)
        tar.close()
    size = attempt.stat().st_size
    try:
        _publish(attempt if draft.ok else None, folder, shard, tar.sha256)
    finally:
        attempt.unlink(missing_ok=True)
    return Commit(
        shard=shard,
        plan_id=plan_id,
        sha256=tar.sha256 if draft.ok else None,
        bytes=size if draft.ok else 0,
        ok=draft.ok,
        failed=tuple(map(_bounded, draft.failed)),
        filtered=tuple(map(_bounded, draft.filtered)),
        members=tuple(tar.members),
        stats=draft.stats,
    )


def _publish(attempt: Path | None, folder: Path, shard: str, digest: str) -> None:
    """Give a shard its final name; None for a shard without an item, which has no file."""
    path, record = folder / shard, record_path(folder, shard)
    if attempt is None and not file_exists(path):
        return
    if attempt and (file_exists(record) or publish_once(attempt, path) or sha256_file(path) == digest):
        return
    # The final name has other content and no record: its writer is about to create the record, or was killed.
    if is_created_soon(record):
        return
    if attempt:
        publish_replace(attempt, path)
    else:
        path.unlink(missing_ok=True)


def _bounded(outcome: Outcome) -> Outcome:
    """Hide credentials in an outcome and fit it to its schema; messages of libraries may be any text of any length."""
    detail = redact(outcome.detail).encode(errors="backslashreplace").decode()
    return replace(outcome, reason=outcome.reason[:MAX_LABEL], detail=detail[:MAX_TEXT])


def record_path(folder: Path, shard: str) -> Path:
    """Path of the record of a shard."""
    return safe_join(folder / FOLDER, f"{shard}.json")


def _encode(record: Commit) -> bytes:
    return pretty_json(add_digest(to_dict(record) | {"format": FORMAT}))
