"""`vidvq evaluate`: how close decoded clips are to their originals, and what the tokens cost."""

from vidvq.evaluate.job import run_evaluate

__all__ = ["run_evaluate"]
