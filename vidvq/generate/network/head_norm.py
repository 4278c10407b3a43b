"""Norm of the queries and keys of attention. Imports torch alone."""

from torch import Tensor, nn
from torch.nn import functional as F


class HeadNorm(nn.RMSNorm):
    """RMSNorm of queries and keys, which autocast leaves in half precision."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``... d`` over the last axis."""
        # With a weight of another type, torch would run several kernels instead of one.
        assert self.weight is not None
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)
