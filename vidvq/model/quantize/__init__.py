"""Quantizers: latents to codes and back."""

from vidvq.model.quantize.fsq import FiniteScalarQuantizer, FSQConfig
from vidvq.model.quantize.interface import Quantizer
from vidvq.model.quantize.lfq import LFQConfig, LookupFreeQuantizer
from vidvq.model.quantize.residual import ResidualConfig, ResidualQuantizer
from vidvq.model.quantize.spatiotemporal import Quantized, QuantizerConfig, SpatiotemporalQuantizer
from vidvq.model.quantize.vq import VectorQuantizer, VQConfig

__all__ = [
    "FSQConfig",
    "FiniteScalarQuantizer",
    "LFQConfig",
    "LookupFreeQuantizer",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "ResidualConfig",
    "ResidualQuantizer",
    "SpatiotemporalQuantizer",
    "VQConfig",
    "VectorQuantizer",
]
