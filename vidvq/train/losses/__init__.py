"""Loss terms of the generator and the discriminator."""

from vidvq.train.losses.adversarial import (
    LeCam,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    perturb,
)
from vidvq.train.losses.masking import mask_blocks
from vidvq.train.losses.wavelet import wavelet_l1

__all__ = [
    "LeCam",
    "adaptive_weight",
    "discriminator_loss",
    "generator_loss",
    "gradient_penalty",
    "mask_blocks",
    "perturb",
    "wavelet_l1",
]
