"""Losses of the generator and the discriminator on one micro-batch."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vidvq.metrics.perceptual import PerceptualDistance
from vidvq.model.compilation import compile_graph
from vidvq.model.enlarge import shrink
from vidvq.model.tokenizer import Reconstruction
from vidvq.train.config import LossConfig, MaskConfig, TrainConfig
from vidvq.train.degrade import degrade
from vidvq.train.losses import (
    LeCam,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    mask_blocks,
    perturb,
    wavelet_l1,
)
from vidvq.training.schedule import is_used, weight_at

Discriminate = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class GeneratorTerms:
    """Loss of the generator on a micro-batch.

    Attributes:
        total: loss to minimize, a scalar with gradient.
        terms: unweighted loss terms by name, detached.
        guarded: weighted sum of all terms except the adversarial one, detached; input of the spike guard. The loss of
            the quantizer counts as 0 if it is negative, as an entropy loss may be: the guard compares by a ratio.
    """

    total: Tensor
    terms: dict[str, Tensor]
    guarded: Tensor


class Objective:
    """Loss functions of a run.

    Args:
        config: config of the run.
        block: frames, height and width that one latent covers; unit of the mask size.
        perceptual: network of the perceptual and Gram losses; None omits both terms.
        perceptual_type: type of the network of ``perceptual``; None for fp32.

    Attributes:
        lecam: regularizer of the discriminator, with running means of its logits.
    """

    def __init__(
        self,
        config: TrainConfig,
        block: tuple[int, int, int],
        perceptual: PerceptualDistance | None,
        perceptual_type: torch.dtype | None = None,
    ) -> None:
        self._loss: LossConfig = config.loss
        self._mask: MaskConfig = config.mask
        self._adversarial = config.adversarial
        self._upscale, self._degrade = config.model.decoder.upscale, config.degrade
        self.lecam = LeCam()
        self._perceptual_type = perceptual_type
        # The evaluation uses the network in fp32.
        self._perceptual = perceptual.half_copy(perceptual_type) if perceptual and perceptual_type else perceptual
        self._distances: Callable[[Tensor, Tensor], dict[str, Tensor]] = self._measure_distances
        along = zip(block, config.mask.size, strict=True)
        self._block: tuple[int, int, int] = tuple(latent * size for latent, size in along)  # type: ignore[assignment]

    def tokenizer_input(self, video: Tensor, generators: Iterable[torch.Generator]) -> Tensor:
        """Reduce a micro-batch by the factor of the decoder, degrade it, and append masked copies of some clips.

        Args:
            video: ``b c t h w`` in [-1, 1].
            generators: source of randomness of each clip, for its degradation and its mask.

        Returns:
            The clips followed by their masked copies; the clips alone without ``loss.masked``.
        """
        masked = is_used(self._loss.masked)
        sources = list(generators) if masked or self._degrade.is_used else []
        video = degrade(shrink(video, self._upscale), self._degrade, sources)
        if not masked:
            return video
        count = self._mask.count(len(video))
        return torch.cat([video, mask_blocks(video[:count], self._mask.blocks, self._block, sources[:count])])

    def compile(self) -> None:
        """Compile the terms that compare pixels: uncompiled, each reads all of them several times."""
        self._distances = compile_graph(self._measure_distances)

    def generator(self, step: int, video: Tensor, out: Reconstruction, discriminate: Discriminate) -> GeneratorTerms:
        """Compute the loss of the generator.

        Args:
            step: step of the run, for weight schedules.
            video: clips ``b c t h w`` in [-1, 1].
            out: output of the tokenizer for :meth:`tokenizer_input`.
            discriminate: maps video to logits; must not accumulate gradients of the discriminator.
        """
        weights = self._loss
        reconstruction = out.reconstruction[: len(video)].float()
        masked_output = out.reconstruction[len(video) :].float()
        terms = {"commitment": out.commitment_loss}
        commitment = weight_at(weights.commitment, step) * out.commitment_loss
        total = commitment
        if len(masked_output):
            terms["masked"] = F.l1_loss(masked_output, video[: len(masked_output)])
            total = total + weight_at(weights.masked, step) * terms["masked"]
        distances = self._distances(video, reconstruction)
        terms |= distances
        total = total + self._weighted_sum(step, distances)
        guarded = (total - commitment.clamp(max=0)).detach()
        if self._adversarial and step >= weights.adversarial_start:
            terms["adversarial"] = generator_loss(weights.adversarial_kind, discriminate(reconstruction))
            weight = weight_at(weights.adversarial, step)
            if weights.adaptive:
                terms["adaptive_weight"] = self._adaptive_weight(step, video, reconstruction, discriminate)
                weight = weight * terms["adaptive_weight"]
            total = total + weight * terms["adversarial"]
        detached = {name: value.detach() for name, value in terms.items()}
        return GeneratorTerms(total, detached | {"loss": total.detach()}, guarded)

    def discriminator(
        self, step: int, real: Tensor, fake: Tensor, discriminate: Discriminate
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of the discriminator.

        Args:
            step: step of the run, for weight schedules.
            real: clips ``b c t h w`` in [-1, 1].
            fake: their reconstructions, detached; in the type of autocast, if it is on.
            discriminate: maps video to logits.

        Returns:
            The loss, a scalar with gradient, and its terms and metrics by name, detached.
        """
        weights = self._loss
        penalized = is_used(weights.r1)
        videos = [real, fake, perturb(real)] if penalized else [real, fake]
        # Autocast would cast them later, after they were concatenated in fp32.
        batch = torch.cat([clips.to(fake.dtype) for clips in videos])
        real_logits, fake_logits, *perturbed_logits = discriminate(batch).float().chunk(len(videos))
        terms = {"discriminator": discriminator_loss(weights.adversarial_kind, real_logits, fake_logits)}
        total = terms["discriminator"] + weight_at(weights.lecam, step) * self.lecam(real_logits, fake_logits)
        if penalized:
            terms["r1"] = gradient_penalty(real_logits, *perturbed_logits)
            total = total + weight_at(weights.r1, step) * terms["r1"]
        terms |= {"logits_real": real_logits.mean(), "logits_fake": fake_logits.mean()}
        terms["accuracy"] = 0.5 * ((real_logits > 0).float().mean() + (fake_logits < 0).float().mean())
        return total, {name: value.detach() for name, value in terms.items()}

    def _weighted_sum(self, step: int, distances: dict[str, Tensor]) -> Tensor:
        weighted = [weight_at(getattr(self._loss, name), step) * value for name, value in distances.items()]
        return torch.stack(weighted).sum()

    def _measure_distances(self, video: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Compare clips ``b c t h w`` with their reconstructions; returns unweighted loss terms by name."""
        # The squared error is always measured, for the PSNR. If it is no loss, it needs no backward pass.
        squared = reconstruction if is_used(self._loss.l2) else reconstruction.detach()
        terms = {"l1": F.l1_loss(reconstruction, video), "l2": F.mse_loss(squared, video)}
        if is_used(self._loss.wavelet):
            terms["wavelet"] = wavelet_l1(reconstruction, video)
        if self._perceptual is not None:
            half = self._perceptual_type
            frames = self._compared_frames(reconstruction, video)
            with torch.autocast(video.device.type, dtype=half, enabled=half is not None):
                if is_used(self._loss.gram):
                    terms["perceptual"], terms["gram"] = self._perceptual.with_gram(*frames)
                else:
                    terms["perceptual"] = self._perceptual(*frames)
        return terms

    def _compared_frames(self, reconstruction: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
        """Return the frames ``n c h w`` to compare: all, or a random subset of the configured size."""
        count, t = self._loss.perceptual_net.frames, video.shape[2]
        if count is not None and count < t:
            chosen = torch.randperm(t, device=video.device)[:count].sort().values
            reconstruction, video = reconstruction[:, :, chosen], video[:, :, chosen]
        return reconstruction.transpose(1, 2).flatten(0, 1), video.transpose(1, 2).flatten(0, 1)

    def _adaptive_weight(self, step: int, video: Tensor, reconstruction: Tensor, discriminate: Discriminate) -> Tensor:
        weights, leaf = self._loss, reconstruction.detach().requires_grad_()
        distances = self._distances(video, leaf)
        adversarial = generator_loss(weights.adversarial_kind, discriminate(leaf))
        return adaptive_weight(self._weighted_sum(step, distances), adversarial, leaf, weights.adaptive_limit)
