"""File formats of the stages: plans, clip shards, checkpoints, token shards, commit records.

Stages never import one another; they share these formats. Files are JSON, npy, parquet, tar, mp4, mkv or safetensors,
checksummed, and readable without vidvq. Nothing is ever unpickled.
"""
