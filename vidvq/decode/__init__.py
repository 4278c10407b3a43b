"""`vidvq decode`: token shards, stretches of videos and a generator's codes to video."""

from vidvq.decode.config import DecodeConfig, Stretch
from vidvq.decode.generated import Generated
from vidvq.decode.job import run_decode, run_decode_generated
from vidvq.decode.stream import frames

__all__ = ["DecodeConfig", "Generated", "Stretch", "frames", "run_decode", "run_decode_generated"]
