"""Loading and saving of tokenizers: checkpoint folders, the Hugging Face hub, and models of other libraries.

The networks (:mod:`vidvq.model`) do not depend on storage.
"""

from vidvq.pretrained.api import load_pretrained, save_pretrained
from vidvq.pretrained.checkpoint import find_tokenizer, load_tokenizer, save_tokenizer

__all__ = ["find_tokenizer", "load_pretrained", "load_tokenizer", "save_pretrained", "save_tokenizer"]
