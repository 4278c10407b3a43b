"""`vidvq shard`: videos to clip shards."""

from vidvq.shard.amend import add_inputs, remove_inputs, retry_failed
from vidvq.shard.config import ShardConfig
from vidvq.shard.dry_run import estimate
from vidvq.shard.job import run_shard

__all__ = ["ShardConfig", "add_inputs", "estimate", "remove_inputs", "retry_failed", "run_shard"]
