"""The adversarial losses of generator and discriminator, and regularisers of the discriminator."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["hinge", "non_saturating"]
_NUDGE = 0.01
_TINY = 1e-8


def discriminator_loss(kind: Kind, real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss.

    Args:
        kind: hinge (Lim and Ye 2017, "Geometric GAN", eq. 10), or non-saturating (Goodfellow et al. 2014, eq. 1).
        real, fake: logits on real and on reconstructed video, any shape.
    """
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def generator_loss(kind: Kind, fake: Tensor) -> Tensor:
    """The generator's loss: minus the mean logit on reconstructed video, or minus the log of being taken for real."""
    return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()


def nudge(video: Tensor) -> Tensor:
    """Video moved a little in a random direction; what :func:`gradient_penalty` compares with."""
    return video + _NUDGE * torch.randn_like(video)


def gradient_penalty(logits: Tensor, nudged: Tensor) -> Tensor:
    """R1, the squared norm of the discriminator's gradient at real video (Mescheder et al. 2018, eq. 9), estimated.

    By a finite difference along a random direction e, ``|D(x + s e) - D(x)|^2 / s^2``, whose mean over directions is
    the squared norm (Lin et al. 2025, "Diffusion Adversarial Post-Training", section 3.3, without the division). It
    needs no second derivative, which ZeRO would not let through.

    Args:
        logits: of real video.
        nudged: of what :func:`nudge` made of it.
    """
    return ((nudged - logits) / _NUDGE).square().mean()


def adaptive_weight(other: Tensor, adversarial: Tensor, reconstruction: Tensor, limit: float) -> Tensor:
    """How much heavier the adversarial loss would have to be to pull as hard as the others do.

    Esser et al. 2021, "Taming Transformers", eq. 7, with the gradient taken at the reconstruction instead of at the
    decoder's last layer: a gradient with respect to a weight does not pass ZeRO.

    Args:
        other, adversarial: scalars computed from ``reconstruction``.
        reconstruction: a leaf that requires a gradient.
        limit: the most it can be.

    Returns:
        a scalar without gradient.
    """
    (pull,) = torch.autograd.grad(other, reconstruction, retain_graph=True)
    (push,) = torch.autograd.grad(adversarial, reconstruction, retain_graph=True)
    return (pull.norm() / (push.norm() + _TINY)).clamp(0, limit).detach()


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
        """The penalty on these logits."""
        return F.relu(real - self.fake).square().mean() + F.relu(self.real - fake).square().mean()

    def update(self, real: float, fake: float) -> None:
        """Take the mean logits of a step, over all ranks, into the running means."""
        self.real = self.decay * self.real + (1 - self.decay) * real
        self.fake = self.decay * self.fake + (1 - self.decay) * fake
