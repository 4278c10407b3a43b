"""Token shards: WebDataset tars of ``KEY.tokens.npy`` and ``KEY.json``, with one ``tokenizer.json`` per directory."""

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import Field, SkipValidation

from vidvq.arguments import check_type
from vidvq.codebook import Codebook
from vidvq.errors import UsageError
from vidvq.formats.checkpoint import checkpoint_name
from vidvq.formats.frame_times import from_runs, to_runs
from vidvq.formats.npy import read_npy
from vidvq.formats.schema import Count, Label, Pixels, Text, Ticks, TimeBase, parse
from vidvq.formats.tar import read_samples
from vidvq.formats.token_bits import pack_codes, unpack_codes
from vidvq.storage import (
    canonical_json,
    file_exists,
    is_remote,
    parse_json,
    pretty_json,
    read_json,
    require_file,
    resolve_path,
)

FORMAT = "vidvq.tokens/2"
TOKENIZER_FORMAT = "vidvq.tokenizer/1"
PREFIX = "tokens"
CARD = "tokenizer.json"
MEDIA = "tokens.npy"
PACKED = "tokens.bits.zst"
_MAX_CODES = 1 << 32
_Latents: TypeAlias = Annotated[int, Field(ge=1, le=1 << 32)]
# A score of a sample. Commit records hold sums of them as integers.
Score: TypeAlias = Annotated[float, Field(ge=-1e6, le=1e6)]
# Special tokens of exported sequences, in the order of their ids, which follow those of all codes.
SPECIALS = ("clip_start", "clip_end", "group_start")


@dataclass(frozen=True)
class TokenizerCard:
    """``tokenizer.json``: which weights made the tokens, and how to read the grids.

    Attributes:
        token_fingerprint: fingerprint of encoder, quantizer and preprocessing. Tokens with different ones do not mix.
        decoder_fingerprint: fingerprint of the decoder of that checkpoint. Tokens stay valid with another decoder.
        codebooks: the codebooks, in the order of their offsets.
        temporal_factor: frames per latent frame, after the first one.
        spatial_factor: pixels per latent, in height and width.
        preprocessing: transform of pixels before the encoder.
        tail_policy: padding of an incomplete last group of frames.
        raster_order: order of the axes of a grid.
        execution: fields of :class:`vidvq.formats.execution.Execution`, which the rounding of the tokens depends on.
            None, and not in the JSON, for the default on CPUs.
    """

    token_fingerprint: Text
    decoder_fingerprint: Text
    codebooks: Annotated[tuple[Codebook, ...], Field(min_length=1, max_length=2)]
    temporal_factor: Annotated[int, Field(ge=1, le=4096)]
    spatial_factor: Annotated[int, Field(ge=1, le=4096)]
    preprocessing: dict[str, Any]
    tail_policy: Literal["replicate"] = "replicate"
    raster_order: Literal["t h w"] = "t h w"
    execution: dict[str, Any] | None = None

    @property
    def vocabulary(self) -> int:
        """Size of the flat vocabulary over all codebooks."""
        return sum(codebook.size for codebook in self.codebooks)

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """uint16 if the flat vocabulary fits, else uint32."""
        return np.uint16 if self.vocabulary <= 1 << 16 else np.uint32

    def codebook_of(self, t: int) -> Codebook:
        """The codebook of latent frame ``t``."""
        return self.codebooks[0] if t == 0 or len(self.codebooks) == 1 else self.codebooks[1]

    def offsets(self, latents: Iterable[int]) -> np.ndarray:
        """Offset of the codebook of each latent frame, int64 ``n 1 1``."""
        return np.array([self.codebook_of(t).offset for t in latents], dtype=np.int64)[:, None, None]


@dataclass(frozen=True)
class TokenInfo:
    """The JSON of a token sample: the size and times of the frames that it decodes to.

    Attributes:
        source: uri of the video.
        clip_index: index of the sample in the video, from 0.
        grid: shape ``lt lh lw`` of the codes.
        num_frames: number of frames, before padding to whole groups.
        height: height of a frame before padding (pixels).
        width: width of a frame before padding (pixels).
        fps: mean frame rate (frames per second).
        time_base: length of a tick (seconds), as a fraction such as ``"1/15360"``.
        pts: presentation time of each frame on the timeline of the source (ticks). The JSON stores it as
            :mod:`vidvq.formats.frame_times` does.
        duration: time from the first frame to the end of the last one (ticks).
        quality: scores by metric (``psnr`` in dB) of a sample that was scored; None, and not in the JSON, otherwise.
    """

    source: Text
    clip_index: Count
    grid: tuple[_Latents, _Latents, _Latents]
    num_frames: Annotated[int, Field(ge=1)]
    height: Pixels
    width: Pixels
    fps: Annotated[float, Field(ge=0)]
    time_base: TimeBase
    pts: Annotated[tuple[int, ...], SkipValidation]
    duration: Ticks
    quality: dict[Label, Score] | None = None

    @property
    def seconds_per_tick(self) -> Fraction:
        """The time base as an exact fraction."""
        return Fraction(self.time_base)


def encode_tokenizer_card(card: TokenizerCard) -> bytes:
    """The content of ``tokenizer.json``."""
    fields = {name: value for name, value in asdict(card).items() if (name, value) != ("execution", None)}
    return pretty_json(fields | {"format": TOKENIZER_FORMAT})


def read_tokenizer_card(folder: str | Path) -> TokenizerCard:
    """Read ``tokenizer.json``.

    Args:
        folder: directory of token shards, or its URL.

    Raises:
        UsageError: it is missing or damaged.
    """
    folder = resolve_path(folder)
    path = folder / CARD
    if not file_exists(path):
        missing = not is_remote(folder) and not folder.exists()
        fault = "does not exist" if missing else f"has no {CARD}"
        raise UsageError(f"{folder} {fault}; give a directory that vidvq tokenize or vidvq generate wrote")
    return parse_tokenizer_card(read_json(path), f"{path}")


def parse_tokenizer_card(data: Any, where: str) -> TokenizerCard:
    """Parse the JSON of ``tokenizer.json``, with its format.

    Raises:
        UsageError: it is damaged; ``where`` names the file in the message.
    """
    card = parse(TokenizerCard, data, TOKENIZER_FORMAT, where)
    if fault := codebook_fault(card.codebooks):
        raise UsageError(f"{where}: {fault}; restore it from a copy")
    return card


def codebook_fault(books: Sequence[Codebook]) -> str:
    """Describe what is wrong with the codebooks of a tokenizer; "" if they are valid."""
    names, sizes, offsets = zip(*((book.name, book.size, book.offset) for book in books), strict=True)
    if names not in {("joint",), ("spatial", "temporal")}:
        return f"the codebooks are {', '.join(names)[:80]}; they must be joint, or spatial and temporal"
    if min(sizes) < 1 or sum(sizes) > _MAX_CODES:
        return f"the codebooks have {list(sizes)} codes; each must have at least 1, and all at most {_MAX_CODES}"
    if list(offsets) != [0, *sizes[:-1]]:
        return f"the codebooks of {list(sizes)} codes have offsets {list(offsets)}; each must start where the last ends"
    return ""


def token_files(codes: np.ndarray, info: TokenInfo, card: TokenizerCard, pack: bool = False) -> dict[str, bytes]:
    """The files of one sample by extension.

    Args:
        codes: local codes ``lt lh lw``, integers.
        pack: whether to pack the codes (:mod:`vidvq.formats.token_bits`) instead of writing npy.

    Raises:
        UsageError: a code is out of range.
    """
    check_codes(codes, card, info.source)
    text = canonical_json(info_fields(info))
    if pack:
        return {PACKED: pack_codes(codes, card.codebook_of), "json": text}
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(codes, dtype=card.dtype), allow_pickle=False)
    return {MEDIA: buffer.getvalue(), "json": text}


def info_fields(info: TokenInfo) -> dict[str, Any]:
    """The JSON of a sample."""
    fields = vars(info) | {"format": FORMAT, "pts": to_runs(info.pts)}
    return {name: value for name, value in fields.items() if (name, value) != ("quality", None)}


def parse_info(files: dict[str, bytes], where: str) -> TokenInfo:
    """Parse the JSON of a sample.

    Raises:
        UsageError: it is missing or damaged; ``where`` names the sample in the message.
    """
    if "json" not in files:
        raise UsageError(f"{where} is not a readable token sample: it has no json")
    try:
        found = parse(TokenInfo, parse_json(files["json"], "its JSON"), FORMAT, "its JSON", "restore the shard")
        # Until here ``pts`` are the runs of the JSON.
        return replace(found, pts=from_runs(found.pts, found.num_frames))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where} is not a readable token sample: {error}") from error


def parse_tokens(files: dict[str, bytes], card: TokenizerCard, where: str) -> tuple[np.ndarray, TokenInfo]:
    """Parse the codes ``lt lh lw`` and the JSON of a sample, and check them against the tokenizer.

    Raises:
        UsageError: a member is missing or damaged, the shapes disagree, or a code is out of range; ``where`` names the
            sample in the message.
    """
    if files.keys() not in ({MEDIA, "json"}, {PACKED, "json"}):
        raise UsageError(f"{where} has {sorted(files)}; a token sample has ['json', '{MEDIA}']")
    info = parse_info(files, where)
    try:
        if PACKED in files:
            codes = unpack_codes(files[PACKED], info.grid, card.codebook_of, card.dtype)
        else:
            codes = _read_npy(files[MEDIA], info.grid, card.dtype)
    except UsageError as error:
        raise UsageError(f"{where} is not a readable token sample: {error}") from error
    if codes.dtype.kind != "u" or codes.shape != info.grid:
        raise UsageError(f"{where}: tokens are {codes.dtype} {codes.shape}, its JSON says unsigned {info.grid}")
    check_codes(codes, card, where)
    return codes, info


def _read_npy(data: bytes, grid: tuple[int, ...], dtype: type[np.unsignedinteger]) -> np.ndarray:
    header = _npy_header(grid, dtype)
    if data.startswith(header) and len(data) - len(header) == math.prod(grid) * dtype().itemsize:
        return np.frombuffer(data, dtype, offset=len(header)).reshape(grid).copy()
    return read_npy(data).copy()


@lru_cache(maxsize=64)
def _npy_header(grid: tuple[int, ...], dtype: type[np.unsignedinteger]) -> bytes:
    # Parsing a header takes longer than the rest of a sample, and a shard has few different grids.
    buffer = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": grid}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def check_codes(
    codes: np.ndarray,
    card: TokenizerCard,
    where: str,
    remedy: str = "The shard is damaged or belongs to another tokenizer",
) -> None:
    """Refuse codes that are out of range.

    Args:
        codes: local codes ``lt lh lw``.
        where: name of the codes in the message.

    Raises:
        UsageError: names the first such code, its position and its codebook.
    """
    if codes.dtype.kind == "u" and codes.size:
        later = codes[1:].max(initial=0)
        if codes[0].max() < card.codebook_of(0).size and later < card.codebook_of(1).size:
            return
    sizes = np.array([card.codebook_of(t).size for t in range(codes.shape[0])])
    bad = np.argwhere((codes >= sizes[:, None, None]) | (codes < 0))
    if len(bad):
        t, h, w = (int(index) for index in bad[0])
        book = card.codebook_of(t)
        raise UsageError(
            f"{where}: code {int(codes[t, h, w])} at t={t} h={h} w={w} is out of range; the {book.name} codebook has "
            f"codes 0 to {book.size - 1}. {remedy}".rstrip(". ")
        )


def check_fingerprint(folder: Path, written: TokenizerCard, checkpoint: Path, card: TokenizerCard) -> None:
    """Refuse a checkpoint that did not make the tokens, and a card that is not of its own tokenizer.

    Raises:
        UsageError: the token fingerprints differ, or the codebooks or the compression in the card were changed.
    """
    if card.token_fingerprint != written.token_fingerprint:
        raise UsageError(
            f"{folder} was made by tokenizer {written.token_fingerprint[:12]}, but {checkpoint_name(checkpoint)} is "
            f"tokenizer {card.token_fingerprint[:12]}; set --checkpoint to the one that made the tokens"
        )
    for name in ("codebooks", "temporal_factor", "spatial_factor"):
        if getattr(written, name) != getattr(card, name):
            raise UsageError(f"{folder / CARD}: {name} is not that of its tokenizer; restore it from a copy")


def read_tokens(path: str | Path, card: TokenizerCard) -> Iterator[tuple[str, np.ndarray, TokenInfo]]:
    """Yield ``(key, codes lt lh lw, info)`` of each sample in a shard, with one in memory at a time.

    Args:
        path: a token shard, or its URL.
        card: card of its directory (:func:`read_tokenizer_card`).

    Raises:
        UsageError: the file does not exist or is not a readable tar, or a sample is damaged.
    """
    check_type("card", card, TokenizerCard)
    path = require_file(path, "token shard")
    for key, files in read_samples(path):
        codes, info = parse_tokens(files, card, f"{path}: {key}")
        yield key, codes, info
