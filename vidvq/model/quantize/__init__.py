"""Latents to codes and back."""

from vidvq.model.quantize.spatiotemporal import Quantized, QuantizerConfig, SpatiotemporalQuantizer
from vidvq.model.quantize.vq import VectorQuantizer, VQConfig

__all__ = ["Quantized", "QuantizerConfig", "SpatiotemporalQuantizer", "VQConfig", "VectorQuantizer"]
