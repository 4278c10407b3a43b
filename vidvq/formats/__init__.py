"""What the stages write and read: plans, clip shards, checkpoints, token shards, commit records.

Stages never import one another; they meet here. Everything is JSON, npy, parquet, tar, mp4 or safetensors,
checksummed, and readable without vidvq. Nothing is ever unpickled.
"""
