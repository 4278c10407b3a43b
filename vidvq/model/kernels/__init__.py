"""Triton kernels of the encoder, with which every bit of a latent depends on its receptive field only.

Libraries choose a kernel, and thus the order of summation, by the shape of a call. These kernels have one tile size and
one order of summation per layer, so that neither the streams and groups of a call nor the frame size changes a token.
The modules are imported only where they are used: Triton comes with torch for CUDA.

:mod:`~vidvq.model.kernels.norm` and :mod:`~vidvq.model.kernels.group_norm` are for training; no tokens depend on them.

Attributes:
    HAS_TRITON: whether Triton is installed.
"""

from importlib.util import find_spec

HAS_TRITON = find_spec("triton") is not None
