"""`vidvq tokenize`: clip shards or raw video to token shards."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vidvq.tokenize.config import TokenizeConfig

if TYPE_CHECKING:
    from vidvq.tokenize.amend import amend, standing_config
    from vidvq.tokenize.dry_run import estimate
    from vidvq.tokenize.job import run_tokenize

__all__ = ["TokenizeConfig", "amend", "estimate", "run_tokenize", "standing_config"]
_MODULES = {"amend": "amend", "estimate": "dry_run", "run_tokenize": "job", "standing_config": "amend"}


def __getattr__(name: str) -> Any:
    # Loaded on first use: the processes that probe and decode import this package, and torch takes seconds to load.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _MODULES[name]
    module = import_module(f"{__name__}.{home}")
    # Kept, all at once: the module `amend` is by now in the place of its function.
    globals().update({each: getattr(module, each) for each, other in _MODULES.items() if other == home})
    return globals()[name]
