"""Calls of the networks in inference: consecutive groups of a fixed number of streams, and their cached past."""

from collections.abc import Callable

import torch
from torch import Tensor

from vidvq.model.encoder import Decoder, Encoder
from vidvq.model.layers import TemporalCache

# State of streams between two calls, batch first: cached frames of each layer, then the state of the quantizer.
Past = tuple[Tensor, ...]
# Function of whether the groups start a stream, their input, and their past (None at the start of a stream). Returns
# the output, and the past of the next groups.
Call = Callable[[bool, Tensor, Past | None], tuple[Tensor, Past]]


def run_network(network: Encoder | Decoder, x: Tensor, past: Past | None) -> tuple[Tensor, Past]:
    """Process consecutive groups of all samples or tiles as one batch.

    Args:
        network: encoder or decoder.
        x: frames or latents of the groups, batch first.
        past: cached frames returned for the previous groups; None at the start of a stream.

    Returns:
        The output of the network, and the cached frames for the next groups.
    """
    cache = TemporalCache(past)
    return network(x, cache), tuple(cache.updated)


def run_in_blocks(
    call: Callable[[Tensor, Past | None], tuple[Tensor, Past]], x: Tensor, past: Past | None, size: int
) -> tuple[Tensor, Past]:
    """Process a batch in calls of ``size`` samples or tiles, so that the result does not depend on the batch size.

    Kernels round differently for different batch sizes: latents differ in their last bits, and a latent midway between
    two codes can be assigned to either. The last call is padded with zeros.

    Args:
        call: function of a block and its past; returns the output and the past of the next block.
        x: input of all samples or tiles, batch first.
        past: past of all samples or tiles; None at the start of a stream.
        size: samples or tiles per call.
    """
    if len(x) == size:
        return call(x, past)
    outputs, pasts = [], []
    for start in range(0, len(x), size):
        count = min(size, len(x) - start)
        block = _rows(x, start, count, size)
        own = tuple(_rows(tensor, start, count, size) for tensor in past) if past is not None else None
        output, after = call(block, own)
        outputs.append(output[:count])
        pasts.append(tuple(tensor[:count] for tensor in after))
    return torch.cat(outputs), tuple(torch.cat(tensors) for tensors in zip(*pasts, strict=True))


def split_past(past: Past | None, count: int) -> tuple[Past | None, Past]:
    """Split the past of a stream into the cached frames of the network and the state of the quantizer.

    Args:
        past: past of a stream; None at its start.
        count: number of tensors of the quantizer, which are the last ones (0 or more).
    """
    return (past, ()) if past is None or not count else (past[:-count], past[-count:])


def copy_past(past: Past, groups: int) -> Past:
    """Copy cached frames: as views they would keep the activations of all groups of a call alive."""
    return tuple(tensor.clone() for tensor in past) if groups > 1 else past


def _rows(tensor: Tensor, start: int, count: int, size: int) -> Tensor:
    """Return ``count`` rows from ``start``, followed by rows of zeros up to ``size``."""
    rows = tensor[start : start + count]
    return rows if count == size else torch.cat([rows, rows.new_zeros(size - count, *rows.shape[1:])])
