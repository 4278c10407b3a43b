"""The example tokenizer, and tokenizers that each break one rule of the interface."""

from pathlib import Path
from typing import Any

from vidvq.user_code import import_callable

EXAMPLE = Path(__file__).parents[2] / "examples/colour_tokenizer"
REFERENCE = f"{EXAMPLE / 'colour_tokenizer.py'}:ColourTokenizer"
ColourTokenizer: Any = import_callable(str(EXAMPLE / "colour_tokenizer.py"), "ColourTokenizer", "", "")[0]
