"""How fast a run goes, and how much of the device it uses."""

from dataclasses import dataclass, field
from functools import lru_cache
from time import monotonic

import torch
from torch.utils.flop_counter import FlopCounterMode

from vidvq.model import Discriminator, VideoTokenizer
from vidvq.model.layers import TemporalCache
from vidvq.train.config import TrainConfig

# Dense peak in TFLOP/s by precision (fp32 means TF32 matrix units off), from the makers' data sheets.
_PEAKS = {
    "H200": {"bf16": 989, "fp16": 989, "fp32": 67},
    "H100": {"bf16": 989, "fp16": 989, "fp32": 67},
    "A100": {"bf16": 312, "fp16": 312, "fp32": 19.5},
    "L40S": {"bf16": 362, "fp16": 362, "fp32": 91.6},
}


@dataclass
class Pace:
    """Times the steps between two lines of metrics.

    Attributes:
        clip_frames: frames that all ranks saw.
        flops: of the networks on this rank, forward and backward; see :func:`forward_flops`.
    """

    device: torch.device
    precision: str
    flops: float = 0.0
    started: float = field(default_factory=monotonic)
    steps: int = 0
    clip_frames: int = 0
    waited_s: float = 0.0

    def measure(self) -> dict[str, float]:
        """Seconds per step, share of them that waited for data, frames per second, and MFU where the peak is known."""
        elapsed_s = max(monotonic() - self.started, 1e-9)
        step_s = elapsed_s / max(self.steps, 1)
        metrics = {
            "step_s": step_s,
            "data_wait": self.waited_s / elapsed_s,
            "frames_per_s": self.clip_frames / elapsed_s,
            "tflops": self.flops / elapsed_s / 1e12,
        }
        if peak := self._peak():
            metrics["mfu"] = self.flops / elapsed_s / peak
        if self.device.type == "cuda":
            metrics["memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        return metrics

    def start_again(self) -> None:
        """Begin the next line's steps."""
        self.started, self.steps, self.clip_frames, self.waited_s, self.flops = monotonic(), 0, 0, 0.0, 0.0

    def _peak(self) -> float | None:
        if self.device.type != "cuda":
            return None
        name = torch.cuda.get_device_name(self.device)
        return next((peaks[self.precision] * 1e12 for model, peaks in _PEAKS.items() if model in name), None)


@lru_cache
def forward_flops(config: TrainConfig, shape: tuple[int, ...]) -> tuple[int, int]:
    """FLOPs of the tokenizer and of the discriminator forward on a batch ``b c t h w``; counted without computing.

    A step trains the tokenizer (3 forwards' worth), shows its output to the frozen discriminator (2), and trains that
    on real and reconstructed video (2 x 3). The perceptual network is left out: MFU is of the networks that learn.
    """
    with torch.device("meta"):
        tokenizer, discriminator = VideoTokenizer(config.model), Discriminator(config.discriminator)
        video = torch.empty(shape)
        groups = torch.empty(*shape[:2], shape[2] + config.model.temporal_factor - 1, *shape[3:])
    with FlopCounterMode(display=False) as generator, torch.no_grad():
        tokenizer.decoder(tokenizer.encoder(groups, TemporalCache()), TemporalCache())
    with FlopCounterMode(display=False) as critic, torch.no_grad():
        discriminator(video)
    return generator.get_total_flops(), critic.get_total_flops()
