"""Training data: clip shards as batches of video."""

from vidvq.data.config import BucketConfig, DataConfig
from vidvq.data.dataset import ClipDataset, iter_micro_batches

__all__ = ["BucketConfig", "ClipDataset", "DataConfig", "iter_micro_batches"]
