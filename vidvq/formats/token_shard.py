"""Token shards: WebDataset tars of ``KEY.tokens.npy`` and ``KEY.json``, with one ``tokenizer.json`` per data set."""

import io
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vidvq.codebook import Codebook
from vidvq.config import is_mapping, validate
from vidvq.errors import UsageError
from vidvq.formats.frame_times import from_runs, to_runs
from vidvq.formats.tar import read_samples
from vidvq.formats.token_bits import pack_codes, unpack_codes
from vidvq.storage import canonical_json, create_once, pretty_json, read_json, remove_attempts

FORMAT = "vidvq.tokens/2"
TOKENIZER_FORMAT = "vidvq.tokenizer/1"
PREFIX = "tokens"
MEDIA = "tokens.npy"
PACKED = "tokens.bits.zst"
RASTER_ORDER = "t h w"
_MAX_CODES = 1 << 32


@dataclass(frozen=True)
class TokenizerCard:
    """``tokenizer.json``: which weights made the tokens, and how to read the grids.

    Attributes:
        token_fingerprint: of encoder, quantizer and preprocessing; another one means other tokens.
        decoder_fingerprint: of the decoder that went with them; a better decoder leaves the tokens valid.
        codebooks: in the order of their offsets.
        temporal_factor, spatial_factor: frames (after the first) and pixels per latent.
        preprocessing: what is done to pixels before the encoder.
        tail_policy: how a last group that is not full was filled.
    """

    token_fingerprint: str
    decoder_fingerprint: str
    codebooks: tuple[Codebook, ...]
    temporal_factor: int
    spatial_factor: int
    preprocessing: dict[str, Any]
    tail_policy: str = "replicate"
    raster_order: str = RASTER_ORDER

    @property
    def vocabulary(self) -> int:
        """Size of the flat vocabulary over all codebooks."""
        return sum(codebook.size for codebook in self.codebooks)

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """uint16 where the flat vocabulary fits, else uint32."""
        return np.uint16 if self.vocabulary <= 1 << 16 else np.uint32

    def codebook_of(self, t: int) -> Codebook:
        """The codebook of the latents at latent time ``t``."""
        return self.codebooks[0] if t == 0 or len(self.codebooks) == 1 else self.codebooks[1]


@dataclass(frozen=True)
class TokenInfo:
    """The JSON beside a token grid: what decodes it to exactly the frames that came in, at their times.

    ``num_frames``, ``height`` and ``width`` are of the pixels before padding; ``pts`` in ticks of ``time_base`` on the
    source's timeline, as in :class:`vidvq.formats.clip_shard.ClipInfo`; the JSON has them as
    :mod:`vidvq.formats.frame_times` writes them. ``quality`` is what decoding scored, by metric
    (``psnr`` in dB), where the sample was among those scored; otherwise the JSON has no such key.
    """

    source: str
    clip_index: int
    grid: tuple[int, ...]
    num_frames: int
    height: int
    width: int
    fps: float
    time_base: str
    pts: tuple[int, ...]
    duration: int
    quality: dict[str, float] | None = None

    @property
    def seconds_per_tick(self) -> Fraction:
        """The time base as an exact fraction."""
        return Fraction(self.time_base)


def write_tokenizer_card(folder: Path, card: TokenizerCard) -> None:
    """Write ``tokenizer.json`` once."""
    create_once(folder / "tokenizer.json", pretty_json(asdict(card) | {"format": TOKENIZER_FORMAT}))
    remove_attempts(folder, "tokenizer.json")


def read_tokenizer_card(folder: Path) -> TokenizerCard:
    """Read ``tokenizer.json``.

    Raises:
        ValueError: it is missing or is not one.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UsageError(f"{folder} has no tokenizer.json; give a directory that vidvq tokenize wrote")
    try:
        fields = read_json(path)
        if fields.pop("format") != TOKENIZER_FORMAT:
            raise UsageError(f"its format is not {TOKENIZER_FORMAT}")
        validate(TokenizerCard, fields, "its content")
        card = TokenizerCard(**(fields | {"codebooks": tuple(Codebook(**book) for book in fields["codebooks"])}))
        if any(type(book.size) is not int or book.size < 1 for book in card.codebooks):
            raise UsageError("a codebook has no size")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{path} is not readable: {error}") from error
    if not 1 <= len(card.codebooks) <= 2 or not 0 < card.vocabulary <= _MAX_CODES:
        raise UsageError(
            f"{path} has {len(card.codebooks)} codebooks of {card.vocabulary} codes; rule: 1 or 2, below 2^32"
        )
    return card


def token_files(codes: np.ndarray, info: TokenInfo, card: TokenizerCard, pack: bool = False) -> dict[str, bytes]:
    """The members of one sample by extension.

    Args:
        codes: local codes, integers, ``lt lh lw``.
        pack: as :mod:`vidvq.formats.token_bits` does, instead of as npy.
    """
    check_codes(codes, card, info.source)
    fields = asdict(info) | {"format": FORMAT, "pts": to_runs(info.pts)}
    text = canonical_json({name: value for name, value in fields.items() if (name, value) != ("quality", None)})
    if pack:
        return {PACKED: pack_codes(codes, card.codebook_of), "json": text}
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(codes, dtype=card.dtype), allow_pickle=False)
    return {MEDIA: buffer.getvalue(), "json": text}


def parse_info(files: dict[str, bytes], where: str) -> TokenInfo:
    """Read one sample's JSON.

    Raises:
        ValueError: it is missing or damaged; names ``where``.
    """
    try:
        fields = json.loads(files["json"])
        if fields.pop("format") != FORMAT:
            raise UsageError(f"its format is not {FORMAT}")
        quality = fields.get("quality", {})
        if not is_mapping(quality) or any(type(value) not in (int, float) for value in quality.values()):
            raise UsageError("its quality is not a number by metric")
        pts = from_runs(fields["pts"], fields["num_frames"])
        validate(TokenInfo, fields | {"pts": ()}, "its content")
        return TokenInfo(**(fields | {"grid": tuple(fields["grid"]), "pts": pts}))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{where} is not a readable token sample: {error}") from error


def parse_tokens(files: dict[str, bytes], card: TokenizerCard, where: str) -> tuple[np.ndarray, TokenInfo]:
    """Read one sample's grid and JSON, and check them against the tokenizer.

    Raises:
        ValueError: a member is missing or damaged, the shapes disagree, or a code is out of range; names ``where``.
    """
    if files.keys() not in ({MEDIA, "json"}, {PACKED, "json"}):
        raise UsageError(f"{where} has {sorted(files)}; a token sample has ['json', '{MEDIA}']")
    info = parse_info(files, where)
    try:
        if PACKED in files:
            codes = unpack_codes(files[PACKED], info.grid, card.codebook_of, card.dtype)
        else:
            codes = _read_npy(files[MEDIA], info.grid, card.dtype)
    except (KeyError, TypeError, ValueError, AttributeError, EOFError, MemoryError) as error:
        raise UsageError(f"{where} is not a readable token sample: {error}") from error
    if codes.dtype.kind != "u" or codes.ndim != 3 or codes.shape != info.grid or 0 in codes.shape:
        raise UsageError(f"{where}: tokens are {codes.dtype} {codes.shape}, its JSON says unsigned {info.grid}")
    check_codes(codes, card, where)
    return codes, info


def _read_npy(data: bytes, grid: tuple[int, ...], dtype: type[np.unsignedinteger]) -> np.ndarray:
    header = _npy_header(grid, dtype)
    if data.startswith(header) and len(data) - len(header) == math.prod(grid) * dtype().itemsize:
        return np.frombuffer(data, dtype, offset=len(header)).reshape(grid).copy()
    return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)


@lru_cache(maxsize=64)
def _npy_header(grid: tuple[int, ...], dtype: type[np.unsignedinteger]) -> bytes:
    # Parsing it takes longer than all else about a sample; the grids of a shard are few.
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
    """Refuse a code that its codebook does not have.

    Raises:
        ValueError: names the code, its place and the codebook.
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


def read_tokens(path: Path, card: TokenizerCard) -> Iterator[tuple[str, np.ndarray, TokenInfo]]:
    """Yield ``(key, codes lt lh lw, info)`` of each sample in a shard, one in memory at a time."""
    for key, files in read_samples(path):
        codes, info = parse_tokens(files, card, f"{path}: {key}")
        yield key, codes, info
