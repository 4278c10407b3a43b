"""vidvq turns a corpus of video into discrete tokens.

>>> from vidvq import load_pretrained
>>> tokenizer = load_pretrained("runs/demo/train")  # doctest: +SKIP
>>> codes = tokenizer.encode(video)  # b c t h w in [-1, 1]  ->  b lt lh lw  # doctest: +SKIP
>>> frames = tokenizer.decode(codes)  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidvq.model import VideoTokenizer
    from vidvq.pretrained import load_pretrained, save_pretrained

__version__ = "0.1.0"
__all__ = ["VideoTokenizer", "__version__", "load_pretrained", "save_pretrained"]

_MODULES = {
    "VideoTokenizer": "vidvq.model",
    "load_pretrained": "vidvq.pretrained",
    "save_pretrained": "vidvq.pretrained",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `import vidvq` and `vidvq --help` stay free of torch.
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'vidvq' has no attribute {name!r}")
