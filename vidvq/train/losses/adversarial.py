"""Adversarial losses, and regularizers of the discriminator."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vidvq.training.distributed import all_reduce_sum

Kind = Literal["hinge", "non_saturating"]
_PERTURBATION = 0.01
_TINY = 1e-8


def discriminator_loss(kind: Kind, real: Tensor, fake: Tensor) -> Tensor:
    """Compute the loss of the discriminator.

    Args:
        kind: ``hinge`` (Lim and Ye 2017, "Geometric GAN", eq. 10) or ``non_saturating`` (Goodfellow et al. 2014, eq.
            1).
        real: logits on real video, any shape.
        fake: logits on reconstructed video, any shape.

    Returns:
        A scalar.
    """
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def generator_loss(kind: Kind, fake: Tensor) -> Tensor:
    """Compute the adversarial loss of the generator.

    Args:
        kind: ``hinge`` (negative mean logit) or ``non_saturating`` (negative log-likelihood of "real").
        fake: logits on reconstructed video, any shape.

    Returns:
        A scalar.
    """
    return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()


def perturb(video: Tensor) -> Tensor:
    """Add a small random perturbation to a video, for :func:`gradient_penalty`."""
    return video + _PERTURBATION * torch.randn_like(video)


def gradient_penalty(logits: Tensor, perturbed: Tensor) -> Tensor:
    """Estimate the R1 penalty: the squared gradient norm of the discriminator at real video.

    R1 is defined by Mescheder et al. 2018, eq. 9. The estimate is a finite difference along a random direction e,
    ``|D(x + s e) - D(x)|^2 / s^2``, whose expectation over directions is the squared norm (Lin et al. 2025, "Diffusion
    Adversarial Post-Training", section 3.3, without the division). It needs no second derivatives, which ZeRO does not
    support.

    Args:
        logits: logits on real video.
        perturbed: logits on the video that :func:`perturb` returned.

    Returns:
        A scalar.
    """
    return ((perturbed - logits) / _PERTURBATION).square().mean()


def adaptive_weight(other: Tensor, adversarial: Tensor, reconstruction: Tensor, limit: float) -> Tensor:
    """Compute the ratio of the gradient norms of the other losses and the adversarial loss. Collective.

    Esser et al. 2021, "Taming Transformers", eq. 7, except that gradients are taken at the reconstruction instead of
    the last layer of the decoder: ZeRO does not support gradients with respect to a single weight. The norms are those
    of the micro-batches of all ranks together.

    Args:
        other: weighted sum of the other losses, a scalar computed from ``reconstruction``; its graph is freed.
        adversarial: adversarial loss, a scalar computed from ``reconstruction``; its graph is freed.
        reconstruction: leaf tensor that requires a gradient.
        limit: maximum of the ratio.

    Returns:
        The ratio, a scalar without gradient.
    """
    gradients = [torch.autograd.grad(loss, reconstruction)[0] for loss in (other, adversarial)]
    norms = all_reduce_sum(torch.stack([gradient.square().sum() for gradient in gradients])).sqrt()
    return (norms[0] / (norms[1] + _TINY)).clamp(0, limit)


@dataclass
class LeCam:
    """LeCAM regularizer (Tseng et al. 2021, "Regularizing GANs under Limited Data", eq. 4).

    Pulls logits on real and reconstructed video towards the running mean of each other, which prevents an
    overconfident discriminator on little data.

    Attributes:
        decay: decay of the running means per update.
        real: running mean of the logits on real video.
        fake: running mean of the logits on reconstructed video.
    """

    decay: float = 0.99
    real: float = 0.0
    fake: float = 0.0

    def __call__(self, real: Tensor, fake: Tensor) -> Tensor:
        """Compute the penalty for logits on real and on reconstructed video, a scalar."""
        return F.relu(real - self.fake).square().mean() + F.relu(self.real - fake).square().mean()

    def update(self, real: float, fake: float) -> None:
        """Update the running means with the mean logits of a micro-batch over all ranks."""
        self.real = self.decay * self.real + (1 - self.decay) * real
        self.fake = self.decay * self.fake + (1 - self.decay) * fake
