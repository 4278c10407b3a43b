"""Quantizers: latents to codes and back."""

from vidvq.model.quantize.differential import DifferentialConfig
from vidvq.model.quantize.fsq import FiniteScalarQuantizer, FSQConfig
from vidvq.model.quantize.interface import Quantizer
from vidvq.model.quantize.lfq import LFQConfig, LookupFreeQuantizer
from vidvq.model.quantize.residual import ResidualConfig, ResidualQuantizer
from vidvq.model.quantize.simvq import SimVectorQuantizer, SimVQConfig
from vidvq.model.quantize.spatiotemporal import Quantized, QuantizerConfig, SpatiotemporalQuantizer
from vidvq.model.quantize.vq import VectorQuantizer, VQConfig

__all__ = [
    "DifferentialConfig",
    "FSQConfig",
    "FiniteScalarQuantizer",
    "LFQConfig",
    "LookupFreeQuantizer",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "ResidualConfig",
    "ResidualQuantizer",
    "SimVQConfig",
    "SimVectorQuantizer",
    "SpatiotemporalQuantizer",
    "VQConfig",
    "VectorQuantizer",
]
