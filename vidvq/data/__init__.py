"""Clip shards as training batches."""

from vidvq.data.clips import ClipBatches, DataConfig, clip_batches

__all__ = ["ClipBatches", "DataConfig", "clip_batches"]
