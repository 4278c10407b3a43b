"""Comparison of the tokens of a sample with those of the same networks in fp32."""

from pathlib import Path

import numpy as np
import torch

from vidvq.errors import is_gpu_full
from vidvq.formats.execution import Execution
from vidvq.model import iter_encode
from vidvq.model.step_shape import StepShape
from vidvq.pretrained import load_tokenizer
from vidvq.pretrained.device import allow_tf32

# Samples that each worker encodes again, the first ones of its run.
SAMPLES = 8


class AgreementCheck:
    """Encodes the first samples of a worker again, in fp32 and not compiled, if the job runs in another precision.

    Samples for which a GPU has no memory left are not compared, nor are any after them.
    """

    def __init__(self, checkpoint: Path, execution: Execution) -> None:
        self._execution, self._left = execution, 0
        if execution.precision == "fp32":
            return
        self._left = SAMPLES
        self._reference, _ = load_tokenizer(checkpoint)
        self._reference.to(execution.device)
        # A quarter of the pixels: fp32 doubles the activations, and the worker's own steps may fill the memory.
        self._reference.step_shape = StepShape(1, execution.groups, max(execution.max_pixels // 4, 1))
        self._reference.checks_range = False

    def take(self) -> bool:
        """Count the next sample, and return whether to compare it."""
        self._left -= 1
        return self._left >= 0

    def compare(self, codes: np.ndarray, kept: list[np.ndarray]) -> tuple[int, int]:
        """Encode the first frames of a sample again.

        Args:
            codes: codes ``lt lh lw`` of the whole sample.
            kept: its first frames, as chunks ``t h w c`` uint8.

        Returns:
            Number of compared tokens, and number of differing ones.
        """
        allow_tf32(False)
        try:
            expected = torch.cat(list(iter_encode(self._reference, kept))).cpu().numpy()
        except RuntimeError as error:
            if not is_gpu_full(error):
                raise
            # Recorded CUDA graphs keep their memory. A measurement does not end the job.
            self._left = 0
            return 0, 0
        finally:
            allow_tf32(self._execution.precision == "tf32")
        return expected.size, int((codes[: len(expected)] != expected).sum())
