"""Clip shards as training batches."""

from vidvq.data.clips import ClipBatches, DataConfig, clip_batches, list_shards

__all__ = ["ClipBatches", "DataConfig", "clip_batches", "list_shards"]
