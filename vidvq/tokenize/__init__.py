"""`vidvq tokenize`: clip shards or raw video to token shards."""

from vidvq.tokenize.amend import amend, standing_config
from vidvq.tokenize.config import TokenizeConfig
from vidvq.tokenize.dry_run import estimate
from vidvq.tokenize.job import run_tokenize

__all__ = ["TokenizeConfig", "amend", "estimate", "run_tokenize", "standing_config"]
