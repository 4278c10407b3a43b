"""`vidvq shard`: videos to clip shards."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vidvq.shard.config import ShardConfig

if TYPE_CHECKING:
    from vidvq.shard.amend import amend, standing_config
    from vidvq.shard.dry_run import estimate
    from vidvq.shard.job import run_shard

__all__ = ["ShardConfig", "amend", "estimate", "run_shard", "standing_config"]
_MODULES = {"amend": "amend", "estimate": "dry_run", "run_shard": "job", "standing_config": "amend"}


def __getattr__(name: str) -> Any:
    # Loaded on first use: the processes that probe and decode import this package, and need little of it.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _MODULES[name]
    module = import_module(f"{__name__}.{home}")
    # Kept, all at once: the module `amend` is by now in the place of its function.
    globals().update({each: getattr(module, each) for each, other in _MODULES.items() if other == home})
    return globals()[name]
