"""Which videos the user means."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vidvq.storage import canonical_json, sha256_bytes

SUFFIXES = frozenset(
    ".3gp .asf .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogg .ogv .qt .ts .vob .webm .wmv".split()
)


@dataclass(frozen=True, order=True)
class Source:
    """One input video: its absolute path, size in bytes, and time of last change."""

    uri: str
    size: int
    mtime_ns: int


def list_sources(videos: list[str]) -> list[Source]:
    """Every video under the given files and directories, sorted by path, each once.

    A directory counts with all below it, by suffix; a file counts whatever its name.

    Raises:
        ValueError: a path does not exist, or there is no video at all.
    """
    if not videos:
        raise ValueError("there is no input; give video files or directories")
    sources: dict[str, Source] = {}
    for given in videos:
        path = Path(given)
        if not path.exists():
            raise ValueError(f"input {given} does not exist; give video files or directories")
        for file in _walk(path):
            status = file.stat()
            uri = file.absolute().as_posix()
            sources[uri] = Source(uri, status.st_size, status.st_mtime_ns)
    if not sources:
        raise ValueError(
            f"no video under {', '.join(videos)}; a directory is searched for {' '.join(sorted(SUFFIXES))}"
        )
    return sorted(sources.values())


def fingerprint_sources(sources: list[Source]) -> dict[str, int | str]:
    """What a plan keeps of its inputs: how many, how many bytes, and a hash over every name, size and time."""
    lines = b"\n".join(canonical_json([source.uri, source.size, source.mtime_ns]) for source in sources)
    return {
        "count": len(sources),
        "bytes": sum(source.size for source in sources),
        "sha256": sha256_bytes(lines),
    }


def _walk(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for file in path.rglob("*"):
        if file.suffix.lower() in SUFFIXES and file.is_file():
            yield file
