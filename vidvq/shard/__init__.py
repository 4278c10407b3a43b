"""`vidvq shard`: videos to clip shards."""

from vidvq.shard.amend import amend, standing_config
from vidvq.shard.config import ShardConfig
from vidvq.shard.dry_run import estimate
from vidvq.shard.job import run_shard

__all__ = ["ShardConfig", "amend", "estimate", "run_shard", "standing_config"]
