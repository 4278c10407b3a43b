"""Lossless transform between pixel patches and channels: pixel unshuffle or an orthonormal Haar transform.

The full-resolution stage is the most expensive one of a convolutional codec. An orthonormal transform of each
``t x s x s`` patch into channels removes it. After a Haar transform the first channels are the mean of the patch and
the rest its details (Haar 1910; Cosmos-Tokenizer does the same). The first and last convolutions can express either
basis, so the choice affects optimization only: details are a hundredth of the mean, while optimizers such as Adam
update the weights of all channels equally. `make ablate` compares both.
"""

from collections.abc import Callable
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from vidvq.errors import UsageError

PatchKind = Literal["haar", "unshuffle"]


def haar_matrix(size: int) -> Tensor:
    """Return the orthonormal Haar basis, one basis vector per row, the mean first.

    Args:
        size: number of points (a power of two).

    Raises:
        UsageError: ``size`` is not a power of two.
    """
    if size < 1 or size & (size - 1):
        raise UsageError(f"size={size} must be a power of two")
    basis = torch.ones(1, 1)
    while len(basis) < size:
        mean = torch.kron(basis, torch.tensor([1.0, 1.0]))
        detail = torch.kron(torch.eye(len(basis)), torch.tensor([1.0, -1.0]))
        basis = torch.cat([mean, detail]) / 2**0.5
    return basis


class Patch(nn.Module):
    """Transforms video ``b c (g t) (h s) (w s)`` to channels ``b g h w (t s s c)``, patch by patch.

    Args:
        kind: ``haar`` or ``unshuffle`` (the identity basis).
        time: frames of a patch.
        space: height and width of a patch (pixels).
    """

    basis: Tensor

    def __init__(self, kind: PatchKind, time: int, space: int) -> None:
        super().__init__()
        make = haar_matrix if kind == "haar" else torch.eye
        self.kind, self.time, self.space = kind, time, space
        basis = torch.kron(make(time), torch.kron(make(space), make(space)))
        self.register_buffer("basis", basis, persistent=False)

    @property
    def channels(self) -> int:
        """Channels of an RGB patch."""
        return 3 * self.time * self.space**2

    def forward(self, video: Tensor, multiply: Callable[[Tensor, Tensor], Tensor] = torch.matmul) -> Tensor:
        """Map ``b c (g t) (h s) (w s)`` to ``b g h w (t s s c)``; the first ``s s c`` channels are constant in time.

        Args:
            video: the pixels.
            multiply: product of vectors ``... k`` and a matrix ``k k``.
        """
        t, s = self.time, self.space
        # A patch of ones has norm sqrt(t) s; dividing by it keeps the input of the network in [-1, 1].
        basis = self.basis.to(video.dtype) / (t**0.5 * s)
        if self.kind == "unshuffle":
            # The product with an identity would cost as much as a convolution.
            return rearrange(video, "b c (g t) (h p) (w q) -> b g h w (t p q c)", t=t, p=s, q=s) * basis[0, 0]
        blocks = rearrange(video, "b c (g t) (h p) (w q) -> b g h w c (t p q)", t=t, p=s, q=s)
        return rearrange(multiply(blocks, basis.T), "b g h w c k -> b g h w (k c)")

    def inverse(self, channels: Tensor) -> Tensor:
        """Map ``b g h w (t s s c)`` to ``b c (g t) (h s) (w s)``, the inverse of :meth:`forward`."""
        t, s = self.time, self.space
        basis = self.basis.to(channels.dtype) * (t**0.5 * s)
        if self.kind == "unshuffle":
            frames = rearrange(channels, "b g h w (t p q c) -> b c (g t) (h p) (w q)", t=t, p=s, q=s)
            return frames * basis[0, 0]
        blocks = rearrange(channels, "b g h w (k c) -> b g h w c k", c=3) @ basis
        return rearrange(blocks, "b g h w c (t p q) -> b c (g t) (h p) (w q)", t=t, p=s, q=s)
