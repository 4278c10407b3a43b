"""Metadata of an export: ``export.json``, and a record per finished part."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from vidvq.codebook import Codebook
from vidvq.config import to_dict
from vidvq.errors import UsageError
from vidvq.formats.commit import FOLDER, record_path
from vidvq.formats.schema import Count, Digest, FileName, Label, Text, parse
from vidvq.formats.sequence import AXES, special_names
from vidvq.formats.token_shard import TokenInfo, codebook_fault, info_fields
from vidvq.storage import add_digest, canonical_json, file_exists, pretty_json, read_json, resolve_path, sha256_bytes

FORMAT = "vidvq.export/1"
PART_FORMAT = "vidvq.export-part/1"
# Suffix of the file with the metadata of the clips of a part.
SAMPLES = ".samples.jsonl"


@dataclass(frozen=True)
class PartFile:
    """One file of a part.

    Attributes:
        name: file name.
        bytes: size (bytes).
        sha256: SHA-256 (hex).
    """

    name: FileName
    bytes: Count
    sha256: Digest


@dataclass(frozen=True)
class Part:
    """The record of one exported token shard.

    Attributes:
        shard: file name of the token shard.
        shard_sha256: SHA-256 of the token shard (hex).
        clips: number of clips.
        ids: number of ids, special tokens included.
        files: exported files, in the order of the target's suffixes.
    """

    shard: FileName
    shard_sha256: Digest
    clips: Count
    ids: Count
    files: Annotated[tuple[PartFile, ...], Field(min_length=1)]


@dataclass(frozen=True)
class ExportHeader:
    """The content of ``export.json``.

    Attributes:
        target: name of the target, a key of ``vidvq.export.TARGETS``.
        dtype: dtype of the ids, such as ``uint16``.
        token_fingerprint: token fingerprint of the tokenizer.
        tokens_sha256: SHA-256 (hex) of the SHA-256 sums of the token shards, one per line.
        codebooks: codebooks, sorted by offset.
        vocabulary: number of ids, special tokens included.
        specials: id of each special token.
        order: order of the ids, as in :class:`vidvq.formats.sequence.SequenceConfig`.
        axes: axes of a sequence, slowest first: ``t h w`` or ``h w t``.
        parts: stems of the file names of the parts.
        samples: whether each part has a file with the metadata of its clips, and the directory a tokenizer card. Not in
            the JSON if false.
        padding: always None; there is no padding id.
    """

    target: Label
    dtype: Label
    token_fingerprint: Text
    tokens_sha256: Digest
    codebooks: Annotated[tuple[Codebook, ...], Field(min_length=1, max_length=2)]
    vocabulary: Count
    specials: dict[Label, Count]
    order: Literal["raster", "temporal"]
    axes: Label
    parts: Annotated[tuple[FileName, ...], Field(min_length=1)]
    samples: bool = False
    padding: None = None

    def to_json(self) -> dict[str, Any]:
        """The header as JSON types, with the format identifier and a digest."""
        fields = {name: value for name, value in to_dict(self).items() if (name, value) != ("samples", False)}
        return add_digest(fields | {"format": FORMAT})


def is_export(folder: str | Path) -> bool:
    """Whether a directory was written by ``vidvq export``."""
    return file_exists(resolve_path(folder) / "export.json")


def read_header(folder: Path) -> ExportHeader:
    """Read ``export.json``.

    Raises:
        UsageError: the file is damaged, or of another format.
    """
    path = folder / "export.json"
    header = parse(ExportHeader, read_json(path), FORMAT, f"{path}", "export again")
    if fault := _contradiction(header):
        raise UsageError(f"{path} is damaged: {fault}; export again")
    return header


def _contradiction(header: ExportHeader) -> str:
    """Describe the first inconsistency of a header; "" if there is none."""
    if fault := codebook_fault(header.codebooks):
        return fault
    names = list(header.specials)
    codes = sum(book.size for book in header.codebooks)
    if header.specials != {name: codes + index for index, name in enumerate(special_names(names))}:
        return f"specials={header.specials} do not follow its {codes} codes"
    if header.vocabulary != codes + len(names):
        return f"vocabulary={header.vocabulary} is not {codes} codes and {len(names)} special tokens"
    if header.axes != AXES[header.order]:
        return f"axes={header.axes} do not match order={header.order}"
    twice = next((stem for stem, count in Counter(header.parts).items() if count > 1), "")
    return f"part {twice} occurs twice" if twice else ""


def tokens_digest(shards_sha256: list[str]) -> str:
    """SHA-256 of the SHA-256 sums of the token shards, one per line (``tokens_sha256``)."""
    return sha256_bytes("\n".join(shards_sha256).encode())


def encode_part(part: Part) -> bytes:
    """Encode the record of a part."""
    return pretty_json(add_digest(to_dict(part) | {"format": PART_FORMAT}))


def read_part(folder: Path, stem: str) -> Part | None:
    """Read the record of a part; None if the part is unfinished.

    Raises:
        UsageError: the record is damaged.
    """
    path = record_path(folder, stem)
    if not file_exists(path):
        return None
    part = parse(Part, read_json(path), PART_FORMAT, f"{path}", redo_hint(stem))
    names = [file.name for file in part.files]
    if part.shard != f"{stem}.tar" or any(not name.startswith(f"{stem}.") for name in names):
        raise UsageError(f"{path} is the record of {part.shard} with {', '.join(names)[:200]}; {redo_hint(stem)}")
    return part


def redo_hint(stem: str) -> str:
    """The remedy for a damaged part, for error messages."""
    return f"remove {FOLDER}/{stem}.json, then run the same command again"


def encode_sample(key: str, info: TokenInfo) -> bytes:
    """Encode the metadata of a clip as a line: its key, and the JSON that its token sample has."""
    return canonical_json({"key": key, "sample": info_fields(info)}) + b"\n"
