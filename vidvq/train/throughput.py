"""Training throughput: step time, data wait, frames per second, FLOP/s and MFU."""

from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from vidvq.model import Discriminator, VideoTokenizer
from vidvq.model.layers import TemporalCache
from vidvq.train.config import TrainConfig
from vidvq.training.distributed import DistributedContext
from vidvq.training.schedule import is_used

# Peak dense TFLOP/s by precision (fp32 without TF32), from vendor data sheets; the first name that fits counts.
_PEAKS = {
    "H200 NVL": {"bf16": 835, "fp16": 835, "fp32": 60},
    "H100 NVL": {"bf16": 835, "fp16": 835, "fp32": 60},
    "H100 PCIe": {"bf16": 756, "fp16": 756, "fp32": 51},
    "H200": {"bf16": 989, "fp16": 989, "fp32": 67},
    "H100": {"bf16": 989, "fp16": 989, "fp32": 67},
    "A100": {"bf16": 312, "fp16": 312, "fp32": 19.5},
    "L40S": {"bf16": 362, "fp16": 362, "fp32": 91.6},
}
# Share of the time that training may wait for data.
_MAX_WAIT = 0.05
# Less is not worth a change of the settings (seconds over the whole run).
_MIN_LOST_S = 60
# Forward passes that training a network costs, and those that a gradient to its input costs if it is frozen.
_FORWARD_BACKWARD = 3
_FORWARD_BACKWARD_FROZEN = 2


class Throughput:
    """Measures the steps since the last :meth:`reset`.

    A micro-batch costs three forward passes of the tokenizer (forward, backward to inputs, backward to weights; one of
    a frozen encoder), two of the frozen discriminator in the adversarial loss (forward, backward to inputs) and in its
    adaptive weight, and three to train the discriminator on each of real, reconstructed and, with R1, perturbed video.
    MFU excludes the quantizer and the perceptual network.

    Args:
        config: config of the run.
        context: this process in the job.
    """

    def __init__(self, config: TrainConfig, context: DistributedContext) -> None:
        self._config, self._context = config, context
        self._forward: dict[tuple[int, ...], _ForwardFlops] = {}
        self._measurements = 0
        self.reset()

    def record(self, shape: tuple[int, ...], wait_s: float, step: int) -> None:
        """Record a micro-batch.

        Args:
            shape: shape ``b c t h w`` on this rank.
            wait_s: time spent waiting for data (seconds).
            step: step of the run.
        """
        self._waited_s += wait_s
        self._flops += self.flops(shape, step)
        self._frames += shape[0] * shape[2] * self._context.size

    def finish_step(self) -> None:
        """Record the end of a step."""
        self._steps += 1

    def measure(self) -> dict[str, float]:
        """Return metrics by name, including MFU on devices with a known peak and peak memory on GPUs."""
        elapsed_s = max(monotonic() - self._started, 1e-9)
        self._measurements += 1
        metrics = {
            "step_s": elapsed_s / max(self._steps, 1),
            "data_wait": self._waited_s / elapsed_s,
            "frames_per_s": self._frames / elapsed_s,
            "tflops": self._flops / elapsed_s / 1e12,
        }
        if peak := self._peak():
            metrics["mfu"] = self._flops / elapsed_s / peak
        if self._context.device.type == "cuda":
            metrics["memory_gib"] = torch.cuda.max_memory_allocated(self._context.device) / 2**30
        return metrics

    def alarms(self, metrics: dict[str, float]) -> dict[str, str]:
        """Return the messages of active alarms by name. The first measurement includes the start of the data workers.

        Args:
            metrics: the last measurement.
        """
        lost_s = metrics["data_wait"] * metrics["step_s"] * self._config.steps
        if self._measurements < 2 or metrics["data_wait"] <= _MAX_WAIT or lost_s < _MIN_LOST_S:
            return {}
        return {
            "data": f"{metrics['data_wait']:.0%} of the time is spent waiting for data; the data workers reach "
            f"{metrics['frames_per_s']:.0f} frames/s; raise data.workers, or data.cache_mib if all clips fit in memory"
        }

    def reset(self) -> None:
        """Start a new measurement."""
        self._started, self._steps, self._frames, self._waited_s, self._flops = monotonic(), 0, 0, 0.0, 0

    def flops(self, shape: tuple[int, ...], step: int) -> int:
        """Return the FLOPs of a micro-batch of shape ``b c t h w`` at a step, forward and backward."""
        if shape not in self._forward:
            self._forward[shape] = _forward_flops(self._config, shape)
        forward, loss = self._forward[shape], self._config.loss
        frozen = self._config.train_only == "decoder"
        total = forward.encoder * (1 if frozen else _FORWARD_BACKWARD) + forward.decoder * _FORWARD_BACKWARD
        if self._config.adversarial and step >= self._config.discriminator_start:
            total += (3 if is_used(loss.r1) else 2) * _FORWARD_BACKWARD * forward.discriminator
        if self._config.adversarial and step >= loss.adversarial_start:
            total += (2 if loss.adaptive else 1) * _FORWARD_BACKWARD_FROZEN * forward.discriminator
        return total

    def _peak(self) -> float | None:
        if self._context.device.type != "cuda":
            return None
        name = torch.cuda.get_device_name(self._context.device)
        return next((peaks[self._config.precision] * 1e12 for gpu, peaks in _PEAKS.items() if gpu in name), None)


class _ForwardFlops(NamedTuple):
    encoder: int
    decoder: int
    discriminator: int


@torch.no_grad()
def _forward_flops(config: TrainConfig, shape: tuple[int, ...]) -> _ForwardFlops:
    """Count the forward FLOPs of each network on the meta device."""
    clips = shape[0] + (config.mask.count(shape[0]) if is_used(config.loss.masked) else 0)
    with torch.device("meta"):
        tokenizer, discriminator = VideoTokenizer(config.model), Discriminator(config.discriminator)
        video, upscale = torch.empty(shape), config.model.decoder.upscale
        sides = (side // upscale for side in shape[3:])
        groups = torch.empty(clips, shape[1], shape[2] + config.model.temporal_factor - 1, *sides)
        latents = tokenizer.decoder.extend(tokenizer.encoder(groups, TemporalCache()))
    return _ForwardFlops(
        count_flops(lambda: tokenizer.encoder(groups, TemporalCache())),
        count_flops(lambda: tokenizer.decoder(latents, TemporalCache())),
        count_flops(lambda: discriminator(video)),
    )


def count_flops(call: Callable[[], object]) -> int:
    """Count the FLOPs of convolutions and matrix products in a call; a multiply-add counts as two operations."""
    # PyTorch counts torch.addmm, but not its in-place variant, with which temporal convolutions sum their taps.
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _addmm_in_place}) as counter:
        call()
    return counter.get_total_flops()


def _addmm_in_place(_: Any, left: tuple[int, ...], right: tuple[int, ...], **__: Any) -> int:
    return 2 * left[0] * left[1] * right[1]
