"""The terms of the generator's and the discriminator's loss."""

from vidvq.train.losses.adversarial import (
    LeCam,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    nudge,
)
from vidvq.train.losses.masking import hide_blocks
from vidvq.train.losses.pixel import wavelet_l1

__all__ = [
    "LeCam",
    "adaptive_weight",
    "discriminator_loss",
    "generator_loss",
    "gradient_penalty",
    "hide_blocks",
    "nudge",
    "wavelet_l1",
]
