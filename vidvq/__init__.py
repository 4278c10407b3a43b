"""vidvq turns a corpus of video into discrete tokens.

>>> from vidvq import VideoTokenizer
>>> tokenizer = VideoTokenizer.from_checkpoint("runs/demo/train")  # doctest: +SKIP
>>> codes = tokenizer.encode(video)  # b c t h w in [-1, 1]  ->  b lt lh lw  # doctest: +SKIP
>>> frames = tokenizer.decode(codes)  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidvq.model import VideoTokenizer

__version__ = "0.1.0"
__all__ = ["VideoTokenizer", "__version__"]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `import vidvq` and `vidvq --help` stay free of torch.
    if name == "VideoTokenizer":
        from vidvq.model import VideoTokenizer

        return VideoTokenizer
    raise AttributeError(f"module 'vidvq' has no attribute {name!r}")
