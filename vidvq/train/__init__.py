"""`vidvq train`: trains a tokenizer on clip shards."""

from vidvq.train.config import TrainConfig
from vidvq.train.loop import run_train

__all__ = ["TrainConfig", "run_train"]
