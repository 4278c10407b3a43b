"""Byte offsets of the samples in token shards, for random access.

For a finished directory they come from the commit records, for a single shard from its tar headers.
"""

import tarfile
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path

from vidvq.errors import UsageError
from vidvq.formats.commit import finished_shards
from vidvq.formats.export_index import index_export
from vidvq.formats.export_records import is_export
from vidvq.formats.plan import read_plan
from vidvq.formats.tar import BLOCK_BYTES, MAX_MEMBER_BYTES, check_member, is_plain, read_headers
from vidvq.formats.token_location import TokenLocation
from vidvq.storage import resolve_path


def index_tokens(tokens: str | Path) -> list[TokenLocation]:
    """The samples of a directory of token shards, of a ``megatron`` export of one, or of one shard, in order.

    Args:
        tokens: the directory or shard, or its URL.

    Raises:
        UsageError: the job is unfinished, or a shard is missing, torn or not a readable tar.
    """
    tokens = resolve_path(tokens)
    if tokens.is_file():
        return index_shard(tokens)
    if is_export(tokens):
        return index_export(tokens)
    finished = finished_shards(tokens, read_plan(tokens))
    return list(
        _locate(
            (shard, member.name, offset, member.size)
            for shard, commit in finished
            for member, offset in commit.member_offsets()
        )
    )


def committed_shards(folder: Path) -> list[Path]:
    """The token shards of a finished directory that are not empty.

    Raises:
        UsageError: a shard of its plan is not committed, or its file is missing or of another size.
    """
    return [shard for shard, _ in finished_shards(folder, read_plan(folder))]


def index_shard(shard: Path) -> list[TokenLocation]:
    """The samples of one shard, in order, found without reading their content.

    Raises:
        UsageError: the file is not a readable tar of regular files.
    """
    found: list[tuple[Path, str, int, int]] = []
    names: set[str] = set()
    try:
        with shard.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(0)
            for member in read_headers(file):
                check_member(member.name)
                if not is_plain(member) or member.size > MAX_MEMBER_BYTES or member.offset_data + member.size > end:
                    raise UsageError(f"member {member.name} is not a plain file, or the file ends within it")
                if member.name in names:
                    raise UsageError(f"member {member.name!r} occurs twice")
                names.add(member.name)
                found.append((shard, member.name, member.offset_data, member.size))
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise UsageError(f"{shard} is not a readable shard: {error}") from error
    return list(_locate(found))


def _locate(members: Iterable[tuple[Path, str, int, int]]) -> Iterator[TokenLocation]:
    """Yield the samples of consecutive members: shard, name, offset (bytes) and size (bytes) of each."""
    layouts: dict[tuple[tuple[str, int, int], ...], tuple[tuple[str, int, int], ...]] = {}
    for (shard, key), group in groupby(members, lambda member: (member[0], member[1].partition(".")[0])):
        parts = list(group)
        start = parts[0][2] - BLOCK_BYTES
        layout = tuple((name.partition(".")[2], offset - start, size) for _, name, offset, size in parts)
        # A corpus has few layouts, and many samples.
        yield TokenLocation(shard, key, start, layouts.setdefault(layout, layout))


def suggest_nearest(name: str, names: list[str]) -> str:
    """``; nearest: NAME`` if one of ``names`` is similar to ``name``, else an empty string."""
    found = get_close_matches(name, names[:20_000], n=1, cutoff=0.5)
    return f"; nearest: {found[0]}" if found else ""
