"""`vidvq evaluate`: reconstruction quality of decoded clips and bit rate of their tokens."""

from vidvq.evaluate.job import run_evaluate

__all__ = ["run_evaluate"]
