"""`vidvq evaluate`: reconstruction quality of decoded clips or of tokenizers, and bit rate of their tokens."""

from vidvq.evaluate.config import EvaluateConfig
from vidvq.evaluate.job import run_evaluate, run_evaluate_tokenizers

__all__ = ["EvaluateConfig", "run_evaluate", "run_evaluate_tokenizers"]
