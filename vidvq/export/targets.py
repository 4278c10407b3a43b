"""All targets by name."""

from vidvq.export.energon import ENERGON
from vidvq.export.flat import BIN, MEGATRON
from vidvq.export.litdata import LITDATA
from vidvq.export.mds import MDS
from vidvq.export.parquet import PARQUET

TARGETS = {
    "megatron": MEGATRON,
    "bin": BIN,
    "parquet": PARQUET,
    "litdata": LITDATA,
    "mds": MDS,
    "energon": ENERGON,
}
