"""`vidvq decode`: token shards to video."""

from vidvq.decode.config import DecodeConfig
from vidvq.decode.job import run_decode

__all__ = ["DecodeConfig", "run_decode"]
