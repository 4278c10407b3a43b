"""Tiny text encoders and a tiny CLIP with random weights, as transformers saves them."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

WORDS = ("<pad>", "</s>", "<unk>", "a", "video", "red", "green", "blue", "odd", "even", "clip")


def write_text_encoder(folder: Path, kind: str = "t5", seed: int = 0) -> Path:
    """Write an encoder of a kind, ``t5`` or ``clip``, with its tokenizer."""
    _write_words(folder)
    torch.manual_seed(seed)
    if kind == "t5":
        config = T5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        T5EncoderModel(config).save_pretrained(folder)
    else:
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        CLIPTextModel(CLIPTextConfig(vocab_size=len(WORDS), eos_token_id=1, **sizes)).save_pretrained(folder)
    return folder


def write_clip(folder: Path) -> Path:
    """Write a CLIP for images of 16x16 pixels, with its tokenizer."""
    _write_words(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text, vision = sizes | {"vocab_size": len(WORDS), "eos_token_id": 1}, sizes | {"image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    return folder


def _write_words(folder: Path) -> None:
    words = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
