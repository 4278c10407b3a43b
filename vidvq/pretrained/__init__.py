"""Tokenizers with their weights: from and to checkpoint folders, the Hugging Face hub, other libraries' folders.

The networks themselves (:mod:`vidvq.model`) know no storage.
"""

from vidvq.pretrained.api import load_pretrained, save_pretrained
from vidvq.pretrained.checkpoint import find_tokenizer, load_tokenizer, save_tokenizer

__all__ = ["find_tokenizer", "load_pretrained", "load_tokenizer", "save_pretrained", "save_tokenizer"]
