"""Conversion between a grid of codes and a flat sequence of ids."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vidvq.arguments import as_integer, check_type
from vidvq.errors import UsageError
from vidvq.formats.token_shard import SPECIALS, TokenizerCard, check_codes

AXES = {"raster": "t h w", "temporal": "h w t"}
_SPECIALS = {"none": (), "clip": SPECIALS[:2], "group": SPECIALS}


@dataclass(frozen=True)
class SequenceConfig:
    """Order and special tokens of the sequences.

    Attributes:
        order: order of the ids of a clip: ``raster`` (``t h w``) or ``temporal`` (``h w t``, all times of one position
            first).
        specials: special tokens: ``clip`` (a start and an end token around each clip), ``group`` (in addition a start
            token before each latent frame; raster order only) or ``none``.
    """

    order: Literal["raster", "temporal"] = "raster"
    specials: Literal["none", "clip", "group"] = "clip"

    def __post_init__(self) -> None:
        for name, known in (("order", AXES), ("specials", _SPECIALS)):
            if getattr(self, name) not in known:
                raise UsageError(f"{name}={getattr(self, name)!r} must be one of {', '.join(known)}")
        if self.specials == "group" and self.order != "raster":
            raise UsageError("specials=group needs order=raster; temporal order interleaves the groups")


def specials_setting(names: Iterable[str]) -> Literal["none", "clip", "group"]:
    """The setting ``specials`` of a layout with these special tokens."""
    count = len(set(names))
    return "group" if count == len(SPECIALS) else "clip" if count else "none"


def special_names(names: Iterable[str]) -> tuple[str, ...]:
    """The special tokens of the layout that has these, in the order of their ids; none if there is no such layout."""
    wanted = set(names)
    return next((found for found in _SPECIALS.values() if set(found) == wanted), ())


@dataclass(frozen=True)
class Layout:
    """Mapping from codes to ids: codebook offset plus local code, with special tokens after all codes.

    Attributes:
        card: card of the tokenizer.
        config: order and special tokens.
    """

    card: TokenizerCard
    config: SequenceConfig

    def __post_init__(self) -> None:
        check_type("card", self.card, TokenizerCard)
        check_type("config", self.config, SequenceConfig)

    @property
    def specials(self) -> dict[str, int]:
        """Id of each special token; there is no padding id."""
        return {name: self.card.vocabulary + index for index, name in enumerate(_SPECIALS[self.config.specials])}

    @property
    def vocabulary(self) -> int:
        """Number of ids: codes and special tokens."""
        return self.card.vocabulary + len(self.specials)

    def offsets(self, times: int) -> np.ndarray:
        """Codebook offset of each latent frame, int64 ``t 1 1``."""
        return self.card.offsets(range(times))


def _as_integers(name: str, values: Any, rank: int, axes: str) -> np.ndarray:
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{name} is a {type(values).__name__}; it must be a NumPy array on the CPU") from error
    if array.dtype.kind not in "iu" or array.ndim != rank:
        raise UsageError(f"{name} is {array.dtype} {array.shape}; it must be integers, {axes}")
    return array


def grid_to_sequence(codes: np.ndarray, layout: Layout) -> np.ndarray:
    """Flatten local codes ``lt lh lw`` to int64 ids: ``[clip_start] ([group_start] ids...) [clip_end]``.

    Raises:
        UsageError: the codes are not integers ``lt lh lw``, or one is out of range.
    """
    check_type("layout", layout, Layout)
    codes = _as_integers("codes", codes, 3, "lt lh lw")
    if not codes.size:
        raise UsageError(f"codes has shape {codes.shape}; it must not be empty")
    check_codes(codes, layout.card, "codes", "They belong to another tokenizer")
    ids = codes.astype(np.int64) + layout.offsets(codes.shape[0])
    specials = layout.specials
    if "group_start" in specials:
        flat = np.pad(ids.reshape(len(ids), -1), ((0, 0), (1, 0)), constant_values=specials["group_start"]).ravel()
    elif layout.config.order == "temporal":
        flat = ids.transpose(1, 2, 0).ravel()
    else:
        flat = ids.ravel()
    return np.pad(flat, 1, constant_values=(specials["clip_start"], specials["clip_end"])) if specials else flat


def sequence_to_grid(sequence: np.ndarray, grid: tuple[int, ...], layout: Layout) -> np.ndarray:
    """Restore local codes ``lt lh lw``; the inverse of :func:`grid_to_sequence`.

    Args:
        sequence: ids of one clip, special tokens included.
        grid: shape ``lt lh lw``.

    Raises:
        UsageError: an argument is of another type or rank, the length does not match the grid, a special token is
            misplaced, or a code is out of range.
    """
    check_type("layout", layout, Layout)
    flat, specials = _as_integers("sequence", sequence, 1, "n").astype(np.int64), layout.specials
    try:
        times, height, width = grid
    except (TypeError, ValueError) as error:
        raise UsageError(f"grid={grid!r} must be three integers, lt lh lw") from error
    times, height, width = (as_integer("grid", side, 1) for side in (times, height, width))
    grid = times, height, width
    groups = times if "group_start" in specials else 0
    length = times * height * width + groups + (2 if specials else 0)
    if len(flat) != length:
        raise UsageError(f"a grid of {grid} is a sequence of {length} ids; got {len(flat)}")
    if specials:
        if flat[0] != specials["clip_start"] or flat[-1] != specials["clip_end"]:
            raise UsageError(f"the sequence must be between clip_start and clip_end; got {flat[0]} ... {flat[-1]}")
        flat = flat[1:-1]
    if groups:
        rows = flat.reshape(times, -1)
        if (rows[:, 0] != specials["group_start"]).any():
            raise UsageError("a group does not start with group_start")
        ids = rows[:, 1:].reshape(grid)
    elif layout.config.order == "temporal":
        ids = flat.reshape(height, width, times).transpose(2, 0, 1)
    else:
        ids = flat.reshape(grid)
    codes = ids - layout.offsets(times)
    check_codes(codes, layout.card, "sequence")
    return codes.astype(layout.card.dtype)
