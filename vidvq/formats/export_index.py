"""Locations of the samples in a ``megatron`` export, to train on it as on the token shards that it was made from."""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidvq.config import is_mapping
from vidvq.errors import UsageError
from vidvq.formats.export_records import SAMPLES, ExportHeader, Part, read_header, read_part
from vidvq.formats.sequence import Layout, SequenceConfig, sequence_to_grid, specials_setting
from vidvq.formats.token_location import TokenLocation
from vidvq.formats.token_shard import TokenInfo, TokenizerCard, parse_info, read_tokenizer_card
from vidvq.storage import canonical_json, parse_json, read_range, safe_join

# Bytes before the lengths in an index of Megatron: magic, version, type code, sequences, documents.
_INDEX_HEAD = 9 + struct.calcsize("<QBQQ")


@dataclass(frozen=True, slots=True)
class ExportedLocation(TokenLocation):
    """The location of one sample in an export.

    Attributes:
        metadata: file with the JSON of the sample, the second of ``members``; the first is the ids in ``shard``. Their
            offsets are from the start of their files.
        dtype: dtype of the ids.
        config: order and special tokens of the ids.
    """

    metadata: Path
    dtype: str
    config: SequenceConfig

    def read_info(self) -> TokenInfo:
        """Read the JSON of the sample only; see :meth:`TokenLocation.read_info`."""
        where = f"{self.metadata}: {self.key}"
        _, offset, size = self.members[1]
        line = parse_json(read_range(self.metadata, offset, size), where)
        if not is_mapping(line) or line.get("key") != self.key or "sample" not in line:
            raise UsageError(f"{where} is not the line of this sample; run vidvq verify on its directory")
        return parse_info({"json": canonical_json(line["sample"])}, where)

    def read(self, card: TokenizerCard) -> tuple[np.ndarray, TokenInfo]:
        """Read the codes ``lt lh lw`` and the JSON; see :meth:`TokenLocation.read`."""
        info = self.read_info()
        data = read_range(self.shard, *self.members[0][1:])
        try:
            ids = np.frombuffer(data, dtype=self.dtype)
            return sequence_to_grid(ids, info.grid, Layout(card, self.config)), info
        except ValueError as error:
            raise UsageError(f"{self.shard}: {self.key}: {error}; run vidvq verify on its directory") from error


def index_export(folder: Path) -> list[TokenLocation]:
    """The samples of a ``megatron`` export with ``samples=true``, in the order of its token shards.

    Raises:
        UsageError: the export is unfinished, damaged, or holds no grids.
    """
    header = read_header(folder)
    if header.target != "megatron" or not header.samples:
        settings = f"order={header.order} specials={specials_setting(header.specials)}"
        raise UsageError(
            f"{folder} is an export (--to {header.target}) without the grids of its clips; make one with vidvq export "
            f"TOKENS --to megatron {settings} samples=true, or pass the token shards"
        )
    card = read_tokenizer_card(folder)
    if (card.token_fingerprint, card.codebooks) != (header.token_fingerprint, header.codebooks):
        raise UsageError(f"{folder}: tokenizer.json and export.json are of different tokenizers; export again")
    found: list[TokenLocation] = []
    for stem in header.parts:
        part = read_part(folder, stem)
        if part is None:
            raise UsageError(f"{folder}: {stem} is not finished; finish vidvq export first")
        for file in part.files:
            path = safe_join(folder, file.name)
            if not path.is_file() or path.stat().st_size != file.bytes:
                raise UsageError(f"{path} is missing or has another size than its record; run vidvq verify {folder}")
        found += _index_part(folder, stem, part, header)
    return found


def _index_part(folder: Path, stem: str, part: Part, header: ExportHeader) -> list[TokenLocation]:
    config = SequenceConfig(header.order, specials_setting(header.specials))
    data, metadata = safe_join(folder, f"{stem}.bin"), safe_join(folder, f"{stem}{SAMPLES}")
    index = safe_join(folder, f"{stem}.idx").read_bytes()
    # A length, a byte offset and a first sequence of each clip, and the end.
    if len(index) != _INDEX_HEAD + part.clips * (4 + 8 + 8) + 8:
        raise UsageError(f"{folder / stem}.idx is not the index of {part.clips} clips; run vidvq verify {folder}")
    lengths = np.frombuffer(index, "<i4", part.clips, _INDEX_HEAD)
    lines = metadata.read_bytes().splitlines(keepends=True)
    if len(lines) != part.clips:
        raise UsageError(f"{metadata} has {len(lines)} lines for {part.clips} clips; run vidvq verify {folder}")
    found: list[TokenLocation] = []
    first = start = 0
    for length, line in zip(lengths.tolist(), lines, strict=True):
        size = length * np.dtype(header.dtype).itemsize
        fields = parse_json(line, f"{metadata}")
        if not is_mapping(fields) or not isinstance(key := fields.get("key"), str):
            raise UsageError(f"{metadata}: a line has no key; run vidvq verify {folder}")
        members = (("ids", first, size), ("json", start, len(line)))
        found.append(ExportedLocation(data, key, 0, members, metadata, header.dtype, config))
        first, start = first + size, start + len(line)
    return found
