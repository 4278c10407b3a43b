"""The terms of the generator's and the discriminator's loss."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator (Lim and Ye 2017, "Geometric GAN", eq. 10).

    Args:
        real, fake: logits on real and on reconstructed video, any shape.
    """
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def hinge_generator(fake: Tensor) -> Tensor:
    """Hinge loss of the generator: minus the mean logit on reconstructed video."""
    return -fake.mean()


@dataclass
class LeCam:
    """LeCAM regulariser (Tseng et al. 2021, "Regularizing GANs under Limited Data", eq. 4).

    Holds running means of the discriminator's logits and pulls new logits towards the other side's mean, which keeps
    a discriminator with little data from growing sure of itself.
    """

    decay: float = 0.99
    real: float = 0.0
    fake: float = 0.0

    def __call__(self, real: Tensor, fake: Tensor) -> Tensor:
        """Update the means and return the penalty."""
        self.real = self.decay * self.real + (1 - self.decay) * float(real.detach().mean())
        self.fake = self.decay * self.fake + (1 - self.decay) * float(fake.detach().mean())
        return F.relu(real - self.fake).square().mean() + F.relu(self.real - fake).square().mean()


def code_usage(codes: Tensor, size: int) -> tuple[float, float]:
    """How much of a codebook is in use.

    Args:
        codes: local codes, any shape.
        size: of the codebook.

    Returns:
        ``(share of codes that occur, perplexity of their distribution)``; perplexity is 1 to ``size``.
    """
    counts = torch.bincount(codes.flatten(), minlength=size).double()
    shares = counts / counts.sum().clamp(min=1)
    entropy = -(shares * shares.clamp(min=1e-12).log()).sum()
    return float((counts > 0).double().mean()), float(entropy.exp())
