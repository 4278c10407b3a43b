"""`vidvq decode`: video from token shards, from an interval of one source, or from a generator's codes."""

from vidvq.decode.config import DecodeConfig, VideoInterval
from vidvq.decode.generated import GeneratedFile
from vidvq.decode.job import run_decode, run_decode_generated
from vidvq.decode.stream import frames

__all__ = ["DecodeConfig", "GeneratedFile", "VideoInterval", "frames", "run_decode", "run_decode_generated"]
