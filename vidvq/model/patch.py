"""Groups of frames to channels and back, without loss: plain unshuffling, or an orthonormal Haar transform.

The full-resolution stage of a convolutional codec is its dearest. An orthonormal transform of each ``t x s x s`` block
into channels removes it. After a Haar transform the first channels are the block's mean and the rest its details (Haar
1910; Cosmos-Tokenizer uses it the same way). The first and the last convolution could turn the one into the other, so
the two differ in how training goes: details are a hundredth of the mean, while an optimizer such as Adam moves the
weights of all channels alike. `make ablate` compares them.
"""

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from vidvq.errors import UsageError

PatchKind = Literal["haar", "unshuffle"]


def haar_matrix(size: int) -> Tensor:
    """The orthonormal Haar basis of ``size`` points (a power of two), one basis vector a row, the mean first."""
    if size < 1 or size & (size - 1):
        raise UsageError(f"size={size} must be a power of two")
    basis = torch.ones(1, 1)
    while len(basis) < size:
        mean = torch.kron(basis, torch.tensor([1.0, 1.0]))
        detail = torch.kron(torch.eye(len(basis)), torch.tensor([1.0, -1.0]))
        basis = torch.cat([mean, detail]) / 2**0.5
    return basis


class Patch(nn.Module):
    """``b c (g t) (h s) (w s)`` to ``b g h w (t s s c)`` by an orthonormal transform of each block.

    Args:
        kind: ``haar`` or ``unshuffle`` (the identity basis).
        time: frames in a block.
        space: height and width of a block, pixels.
    """

    basis: Tensor

    def __init__(self, kind: PatchKind, time: int, space: int) -> None:
        super().__init__()
        make = haar_matrix if kind == "haar" else torch.eye
        self.time, self.space = time, space
        basis = torch.kron(make(time), torch.kron(make(space), make(space)))
        self.register_buffer("basis", basis, persistent=False)

    @property
    def channels(self) -> int:
        """Channels of a block of RGB."""
        return 3 * self.time * self.space**2

    def forward(self, video: Tensor) -> Tensor:
        """``b c (g t) (h s) (w s)`` -> ``b g h w (t s s c)``; the first ``s s c`` channels are constant in time."""
        t, s = self.time, self.space
        blocks = rearrange(video, "b c (g t) (h p) (w q) -> b g h w c (t p q)", t=t, p=s, q=s)
        # A flat block of ones has length sqrt(t) s; dividing by it keeps the network's input in [-1, 1].
        coefficients = blocks @ (self.basis.to(video.dtype).T / (t**0.5 * s))
        return rearrange(coefficients, "b g h w c k -> b g h w (k c)")

    def inverse(self, channels: Tensor) -> Tensor:
        """``b g h w (t s s c)`` -> ``b c (g t) (h s) (w s)``."""
        t, s = self.time, self.space
        coefficients = rearrange(channels, "b g h w (k c) -> b g h w c k", c=3)
        blocks = coefficients @ (self.basis.to(channels.dtype) * (t**0.5 * s))
        return rearrange(blocks, "b g h w c (t p q) -> b c (g t) (h p) (w q)", t=t, p=s, q=s)
