"""Triton kernels of the encoder. A latent depends, to the bit, on its receptive field alone.

Libraries choose a kernel, and with it the order of sums, by the shape of a call. These kernels have one tile size and
one order of summation per layer, so that neither the streams and groups of a call nor the frame size changes a token.
The modules are imported only where they are used: Triton comes with torch for CUDA.

Those of :mod:`~vidvq.model.kernels.norm` and :mod:`~vidvq.model.kernels.group_norm` are for training, where no tokens
depend on them.

Attributes:
    HAS_TRITON: whether Triton is installed.
"""

from importlib.util import find_spec

HAS_TRITON = find_spec("triton") is not None
