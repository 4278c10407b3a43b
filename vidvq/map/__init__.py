"""`vidvq map`: runs a user's function over clips and writes its results as columns."""

from vidvq.map.config import MapConfig
from vidvq.map.stage import MapStage

__all__ = ["MapConfig", "MapStage"]
