"""The tokenizer network. Depends only on torch and einops; :mod:`vidvq.pretrained` loads and saves weights."""

from vidvq.model.config import TokenizerConfig
from vidvq.model.discriminator import Discriminator, DiscriminatorConfig
from vidvq.model.interface import Tokenizer
from vidvq.model.step_shape import StepShape
from vidvq.model.stream_state import StreamState
from vidvq.model.streaming import iter_decode, iter_decode_batch, iter_encode
from vidvq.model.tokenizer import Reconstruction, VideoTokenizer

__all__ = [
    "Discriminator",
    "DiscriminatorConfig",
    "Reconstruction",
    "StepShape",
    "StreamState",
    "Tokenizer",
    "TokenizerConfig",
    "VideoTokenizer",
    "iter_decode",
    "iter_decode_batch",
    "iter_encode",
]
