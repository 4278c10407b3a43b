"""Packing of samples of different grids into one sequence of fixed length, for variable-length attention."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vidvq.arguments import as_integer
from vidvq.data.tokens import TokenSample
from vidvq.errors import UsageError


class PackedTokens(NamedTuple):
    """A packed sequence: the tokens of each sample in raster order, then padding.

    Attributes:
        ids: ids in the flat vocabulary over all codebooks, ``n`` int64; 0 for padding.
        positions: latent frame, row and column of each token, ``n 3`` int64; 0 for padding.
        cu_seqlens: cumulative sequence lengths, ``samples + 1`` int32: the start of each sample, and the end of the
            last.
        keep: mask ``n`` bool, False for padding.
    """

    ids: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    keep: Tensor


def pack_samples(samples: Sequence[TokenSample], length: int) -> PackedTokens:
    """Pack samples into one sequence.

    Args:
        samples: samples of any grids.
        length: length of the sequence (tokens).

    Raises:
        UsageError: an argument is of another type, or the samples have more tokens than ``length``.
    """
    length = as_integer("length", length, 0)
    given: Any = samples
    if not isinstance(given, list | tuple) or not all(isinstance(each, TokenSample) for each in given):
        raise UsageError(f"samples is a {type(given).__name__}; it must be a list of TokenSample")
    # Tensors too, as of a batch.
    flat = [np.asarray(sample.ids).ravel() for sample in samples]
    sizes = [each.size for each in flat]
    if sum(sizes) > length:
        raise UsageError(f"{len(samples)} samples have {sum(sizes)} tokens; length={length} must be at least that")
    ids, positions = torch.zeros(length, dtype=torch.int64), torch.zeros(length, 3, dtype=torch.int64)
    ends = np.cumsum([0, *sizes])
    for sample, each, start, stop in zip(samples, flat, ends, ends[1:], strict=False):
        ids[start:stop] = torch.from_numpy(each)
        axes = (sample.latents, *(np.arange(side) for side in sample.codes.shape[1:]))
        positions[start:stop] = torch.from_numpy(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3))
    return PackedTokens(ids, positions, torch.tensor(ends, dtype=torch.int32), torch.arange(length) < int(ends[-1]))
