"""The tokenizer. Importing it needs torch and einops alone."""

from vidvq.model.discriminator import Discriminator, DiscriminatorConfig
from vidvq.model.interface import Tokenizer
from vidvq.model.tokenizer import Reconstruction, StreamState, TokenizerConfig, VideoTokenizer

__all__ = [
    "Discriminator",
    "DiscriminatorConfig",
    "Reconstruction",
    "StreamState",
    "Tokenizer",
    "TokenizerConfig",
    "VideoTokenizer",
]
