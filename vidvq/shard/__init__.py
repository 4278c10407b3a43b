"""`vidvq shard`: videos to clip shards."""

from vidvq.shard.config import ShardConfig
from vidvq.shard.job import run_shard

__all__ = ["ShardConfig", "run_shard"]
