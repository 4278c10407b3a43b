"""Byte offsets of the samples in token shards, for random access.

For a finished directory they come from the commit records, for a single shard from its tar headers.
"""

import tarfile
from difflib import get_close_matches
from pathlib import Path

from vidvq.errors import UsageError
from vidvq.formats.commit import finished_shards
from vidvq.formats.export_index import index_export
from vidvq.formats.export_records import is_export
from vidvq.formats.plan import read_plan
from vidvq.formats.tar import MAX_MEMBER_BYTES, check_member, is_plain, read_headers
from vidvq.formats.token_location import TokenLocation


def index_tokens(tokens: Path) -> list[TokenLocation]:
    """The samples of a directory of token shards, of a ``megatron`` export of one, or of one shard, in order.

    Raises:
        UsageError: the job is unfinished, or a shard is missing, torn or not a readable tar.
    """
    if tokens.is_file():
        return index_shard(tokens)
    if is_export(tokens):
        return index_export(tokens)
    found: list[TokenLocation] = []
    for shard, commit in finished_shards(tokens, read_plan(tokens)):
        samples: dict[str, list[tuple[str, int, int]]] = {}
        for member, offset in commit.member_offsets():
            samples.setdefault(member.key, []).append((member.name.partition(".")[2], offset, member.size))
        found += [TokenLocation(shard, key, tuple(members)) for key, members in samples.items()]
    return found


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
    samples: dict[str, list[tuple[str, int, int]]] = {}
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
                key, _, extension = member.name.partition(".")
                samples.setdefault(key, []).append((extension, member.offset_data, member.size))
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise UsageError(f"{shard} is not a readable shard: {error}") from error
    return [TokenLocation(shard, key, tuple(members)) for key, members in samples.items()]


def suggest_nearest(name: str, names: list[str]) -> str:
    """``; nearest: NAME`` if one of ``names`` is similar to ``name``, else an empty string."""
    found = get_close_matches(name, names[:20_000], n=1, cutoff=0.5)
    return f"; nearest: {found[0]}" if found else ""
