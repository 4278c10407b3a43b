"""Clips of a shard's older form that its new form holds too: they are copied, not cut again."""

from pathlib import Path
from typing import Any
from zlib import crc32

from vidvq.formats.clip_shard import parse_clip_info
from vidvq.formats.commit import Commit, read_commit
from vidvq.formats.tar import read_samples

Reused = dict[str, tuple[dict[str, bytes], int]]


def reusable_clips(out: Path, older: list[tuple[str, int]], rows: list[dict[str, Any]]) -> Reused:
    """The files and number of frames, by key, of clips that were committed and whose rows stand as they were.

    Args:
        out: the output directory.
        older: the names a shard had before, each with the generation of the plan it was made in, oldest first.
        rows: of the shard as it is now.
    """
    for name, generation in reversed(older):
        if commit := read_commit(out, name):
            wanted = {row["key"] for row in rows if not row["verdict"] and row["generation"] <= generation}
            return _read(out / name, commit, wanted)
    return {}


def _read(path: Path, commit: Commit, wanted: set[str]) -> Reused:
    if not path.is_file():
        return {}
    sums = {member.name: member.crc32 for member in commit.members}
    found: Reused = {}
    try:
        for key, files in read_samples(path):
            whole = all(sums.get(f"{key}.{extension}") == crc32(data) for extension, data in files.items())
            if key in wanted and whole:
                found[key] = files, parse_clip_info(files["json"], key).num_frames
    except ValueError:
        # What is damaged is cut again.
        pass
    return found
