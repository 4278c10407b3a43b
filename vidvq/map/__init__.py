"""`vidvq map`: a user's function over the clips of clip shards, its results as columns beside them."""

from vidvq.map.config import MapConfig
from vidvq.map.stage import MapStage

__all__ = ["MapConfig", "MapStage"]
