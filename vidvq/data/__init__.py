"""Clips as training batches."""

from vidvq.data.clips import ClipBatches, clip_batches
from vidvq.data.config import BucketConfig, DataConfig

__all__ = ["BucketConfig", "ClipBatches", "DataConfig", "clip_batches"]
