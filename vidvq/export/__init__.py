"""`vidvq export`: token shards to the dataset formats of language-model trainers."""

from vidvq.export.config import ExportConfig
from vidvq.export.job import ExportSummary, run_export
from vidvq.export.targets import TARGETS
from vidvq.export.verify import verify_export
from vidvq.formats.export_records import is_export
from vidvq.formats.sequence import Layout, grid_to_sequence, sequence_to_grid

__all__ = [
    "TARGETS",
    "ExportConfig",
    "ExportSummary",
    "Layout",
    "grid_to_sequence",
    "is_export",
    "run_export",
    "sequence_to_grid",
    "verify_export",
]
