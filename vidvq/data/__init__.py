"""Training data: clip shards as batches of video, token shards as batches of codes."""

from vidvq.data.config import BucketConfig, DataConfig, TokenDataConfig
from vidvq.data.dataset import ClipDataset
from vidvq.data.micro_batches import iter_micro_batches
from vidvq.data.packing import PackedTokenLoader, PackedTokens, pack_samples
from vidvq.data.tokens import TokenBatch, TokenDataset, TokenLoader, TokenSample

__all__ = [
    "BucketConfig",
    "ClipDataset",
    "DataConfig",
    "PackedTokenLoader",
    "PackedTokens",
    "TokenBatch",
    "TokenDataConfig",
    "TokenDataset",
    "TokenLoader",
    "TokenSample",
    "iter_micro_batches",
    "pack_samples",
]
