"""Sampling of latent grids, one at a time, so that a sample does not depend on the others.

Codes are revealed in few parallel steps. The order is fixed in advance by default: a Halton sequence, which spreads the
codes of a step over the grid (Besnier et al. 2025), or a random permutation. Revealing the most confident codes first
(Chang et al. 2022) is an option; it favours codes that copy the given ones.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import cos, pi
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vidvq.errors import UsageError
from vidvq.formats.generator import GeneratorCard
from vidvq.generate.blanking import BlankedVideo
from vidvq.generate.block import KVCache
from vidvq.generate.code_vectors import DigitVectors, nearest_to_mean
from vidvq.generate.previous import previous_codes
from vidvq.generate.requests import SamplingConfig
from vidvq.generate.transformer import VideoTransformer

# Halton points per position of a grid; the few positions that no point hits come last.
_POINTS_PER_POSITION = 8


@dataclass(frozen=True)
class Condition:
    """Conditions of one sample; none by default.

    Attributes:
        label: class index, from 1; 0 for none.
        actions: normalized actions ``t a`` of the latent frames; None for none.
        blanked: visible part of the video, for ``interpolate`` and ``fill``; None for other tasks.
        text: states ``n d`` of a text; None for none.
    """

    label: int = 0
    actions: Tensor | None = None
    blanked: BlankedVideo | None = None
    text: Tensor | None = None


@torch.no_grad()
def sample_codes(
    network: VideoTransformer,
    card: GeneratorCard,
    shape: tuple[int, int, int],
    given: np.ndarray | None,
    condition: Condition,
    config: SamplingConfig,
    rng: torch.Generator,
    vectors: list[DigitVectors] | None = None,
) -> np.ndarray:
    """Generate the codes of a clip.

    Beyond the length that the generator was trained on, the context slides: it holds latent frame 0 and the newest
    frames.

    Args:
        shape: shape ``lt lh lw`` of the clip.
        given: codes ``t lh lw`` of the first latent frames; None for none.
        rng: source of randomness, on the CPU.
        vectors: result of :func:`~vidvq.generate.code_vectors.code_vectors`; for ``estimate=mean`` only.

    Returns:
        Codes ``lt lh lw`` int64, of which the first are the given ones.

    Raises:
        UsageError: the grid is larger than those the generator was trained on.
    """
    total, limit = shape[0], card.limits[0]
    check_shape(card, shape, condition.blanked is not None)
    device = next(network.parameters()).device
    codes = torch.zeros(shape, dtype=torch.int64, device=device)
    done = 0 if given is None else len(given)
    if given is not None:
        codes[:done] = torch.from_numpy(given.astype(np.int64)).to(device)
    # At most half of a window that has slid is generated; the rest is context.
    stride = max(limit // 2, 1)
    while done < total:
        if done < limit:
            frames, new = list(range(min(limit, total))), min(limit, total) - done
        else:
            new = min(stride, total - done)
            frames = [0, *range(done - (limit - 1 - new), done + new)] if limit > 1 else []
        if not frames:
            raise UsageError("a generator that was trained on single latent frames cannot generate longer clips")
        part = _window_condition(condition, frames)
        window = _Window(network, codes[frames], len(frames) - new, part, config, rng, vectors)
        codes[frames] = window.decode_next() if card.objective == "next" else window.decode_masked()
        done += new
    return codes.cpu().numpy()


def check_shape(card: GeneratorCard, shape: tuple[int, int, int], fixed_length: bool = False) -> None:
    """Check that a grid is no larger than those the generator was trained on.

    Args:
        shape: shape ``lt lh lw`` of the grid.
        fixed_length: whether to limit the number of latent frames too, because the context cannot slide.

    Raises:
        UsageError: the grid is larger.
    """
    lt, lh, lw = card.limits
    s, r = card.tokenizer.spatial_factor, card.tokenizer.temporal_factor
    if shape[1] > lh or shape[2] > lw:
        raise UsageError(
            f"frames of {shape[1] * s}x{shape[2] * s} are larger than the {lh * s}x{lw * s} that this generator was "
            "trained on; use smaller frames"
        )
    if fixed_length and shape[0] > lt:
        raise UsageError(
            f"{1 + (shape[0] - 1) * r} frames are more than the {1 + (lt - 1) * r} that this generator was trained on; "
            f"use shorter clips, or train one with data.latents={shape[0]}"
        )


def given_latents(card: GeneratorCard, given: int) -> int:
    """Return the number of latent frames that hold the first ``given`` frames.

    Raises:
        UsageError: it is not a whole number.
    """
    r = card.tokenizer.temporal_factor
    if over := (given - 1) % r:
        below = given - over
        raise UsageError(f"given={given} must be 1 + a multiple of {r}; nearest {below} or {below + r}")
    return 1 + (given - 1) // r


def _window_condition(condition: Condition, frames: list[int]) -> Condition:
    """Return the conditions of some latent frames."""
    actions = None if condition.actions is None else condition.actions[frames]
    return replace(condition, actions=actions)


class _Prediction(NamedTuple):
    """Output of the network for masked codes.

    Attributes:
        vectors: hidden vectors ``b t h w c``, or flat ``b n c``.
        copies: codes that each position can copy, ``b t h w m``, or flat ``b n m``; None without copying.
    """

    vectors: Tensor
    copies: Tensor | None

    def flatten(self) -> "_Prediction":
        """Flatten the positions."""
        return _Prediction(self.vectors.flatten(1, 3), None if self.copies is None else self.copies.flatten(1, 3))

    def at(self, sample: int, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return hidden vectors and copies at flat positions of one sample."""
        return self.vectors[sample, positions], None if self.copies is None else self.copies[sample, positions]


class _Window:
    """Latent frames within the generator's context, of which the first ``given`` are complete."""

    def __init__(
        self,
        network: VideoTransformer,
        codes: Tensor,
        given: int,
        condition: Condition,
        config: SamplingConfig,
        rng: torch.Generator,
        vectors: list[DigitVectors] | None,
    ) -> None:
        self.network, self.codes, self.given, self.config, self.rng = network, codes, given, config, rng
        self.vectors = vectors if config.takes_mean else None
        device = codes.device
        # Guidance needs a second copy of the sample, without conditions.
        copies = self.copies = 2 if config.guidance != 1 else 1
        blanked = condition.blanked
        self.pixels = (
            None if blanked is None else blanked.codes.to(device).expand(copies, -1, -1, -1),
            None if blanked is None else blanked.visible.to(device).expand(copies, -1, -1, -1),
            torch.arange(copies, device=device) == 0,
        )
        text = None if condition.text is None else condition.text.to(device).expand(copies, -1, -1)
        text_mask = None if text is None else torch.ones(text.shape[:2], dtype=torch.bool, device=device)
        self.text = network.context(copies, text, text_mask, self.pixels[2])
        self.extra = network.condition(
            codes.expand(copies, *codes.shape),
            torch.full((copies,), condition.label, device=device),
            None if condition.actions is None else condition.actions.to(device).expand(copies, -1, -1),
            *self.pixels,
        ).expand(copies, len(codes), -1, -1, -1)

    def decode_masked(self) -> Tensor:
        """Generate all frames that are not given, in parallel."""
        codes = self.codes.clone()
        mask = torch.zeros(codes.shape, dtype=torch.bool, device=codes.device)
        mask[self.given :] = True
        visible = self.network.given_codes(*self.pixels)

        def predict(codes: Tensor, mask: Tensor) -> _Prediction:
            previous = previous_codes(self._expand(codes), self._expand(mask), given=visible)
            vectors = self.network.hidden(self._embed(codes, mask, previous) + self.extra, text=self.text)
            return _Prediction(vectors, self.network.candidates(previous, visible))

        return self._reveal(codes, mask, predict, 0)

    def decode_next(self) -> Tensor:
        """Generate one frame after another, with cached keys and values of the frames before."""
        codes, cache = self.codes.clone(), KVCache()
        if self.given:
            self._append(codes, self.given, cache)
        for t in range(self.given, len(codes)):
            previous = self._previous(codes, t, t + 1)
            copies = self.network.candidates(previous, first=t)

            def predict(
                frame: Tensor,
                mask: Tensor,
                previous: Tensor = previous,
                copies: Tensor | None = copies,
                first: int = t,
            ) -> _Prediction:
                x = self._embed(frame, mask, previous, first) + self.extra[:, first : first + 1]
                return _Prediction(self.network.forward_cached(x, cache, append=False, text=self.text), copies)

            frame = codes[t : t + 1]
            codes[t : t + 1] = self._reveal(frame.clone(), torch.ones_like(frame, dtype=torch.bool), predict, t)
            if t + 1 < len(codes):
                self._append(codes, t + 1, cache)
        return codes

    def _append(self, codes: Tensor, end: int, cache: KVCache) -> None:
        """Append the latent frames before ``end`` that the cache lacks."""
        first = cache.frames
        x = self._embed(codes[first:end], None, self._previous(codes, first, end), first) + self.extra[:, first:end]
        self.network.forward_cached(x, cache, append=True, text=self.text)

    def _previous(self, codes: Tensor, first: int, end: int) -> Tensor:
        before = codes[None, first - 1 : first] if first else None
        return self._expand(previous_codes(codes[None, first:end], before=before)[0])

    def _expand(self, codes: Tensor) -> Tensor:
        return codes.expand(self.copies, *codes.shape)

    def _embed(self, codes: Tensor, mask: Tensor | None, previous: Tensor, first: int = 0) -> Tensor:
        expanded = None if mask is None else self._expand(mask)
        return self.network.embed(self._expand(codes), expanded, first, previous)

    def _reveal(
        self, codes: Tensor, mask: Tensor, predict: Callable[[Tensor, Tensor], "_Prediction"], first: int
    ) -> Tensor:
        """Reveal the hidden codes ``t h w`` step by step.

        Args:
            codes: codes; changed in place.
            mask: True for hidden codes; cleared in place.
            predict: maps codes and mask to a prediction of all positions.
            first: index of the first latent frame.
        """
        shape = (codes.shape[0], codes.shape[1], codes.shape[2])
        order = reveal_order(shape, self.config.order, self.rng).to(codes.device)
        order = order[mask.flatten()[order]]
        done = 0
        for end in reveal_counts(len(order), self.config.steps):
            prediction = predict(codes, mask).flatten()
            if self.config.order == "confidence":
                left = order[mask.flatten()[order]]
                drawn, confidence = self._draw(prediction, left, shape, first)
                # Gumbel noise, annealed to 0 (Chang et al. 2022).
                noise = _gumbel(confidence.shape, self.rng).to(confidence.device)
                noise = noise * self.config.temperature * (1 - end / len(order))
                best = (confidence + noise).topk(end - done).indices
                chosen, drawn = left[best], drawn[best]
            else:
                chosen = order[done:end]
                drawn, _ = self._draw(prediction, chosen, shape, first)
            codes.view(-1)[chosen] = drawn
            mask.view(-1)[chosen] = False
            done = end
        return codes

    def _draw(
        self, prediction: "_Prediction", positions: Tensor, shape: tuple[int, int, int], first: int
    ) -> tuple[Tensor, Tensor]:
        """Draw codes for flat positions; return them with their log-probabilities."""
        drawn, log_probability = torch.zeros_like(positions), torch.zeros(len(positions), device=positions.device)
        books = (positions // (shape[1] * shape[2]) + first > 0).long() * (len(self.network.codebooks) - 1)
        for book in range(len(self.network.codebooks)):
            chosen = books == book
            if not chosen.any():
                continue
            sampler = _DigitSampler(self.config, self.rng, self.vectors[book] if self.vectors else None)
            vectors, copies = prediction.at(0, positions[chosen])
            unconditional = prediction.at(1, positions[chosen]) if self.copies > 1 else None
            head = self.network.heads[book]
            drawn[chosen] = head.sample(vectors, sampler, copies, unconditional, self.config.guidance)  # type: ignore[operator,union-attr]
            assert sampler.log_probability is not None
            log_probability[chosen] = sampler.log_probability
        return drawn, log_probability


class _DigitSampler:
    """Samples digits from logits ``n k``, and sums their log-probabilities."""

    def __init__(self, config: SamplingConfig, rng: torch.Generator, vectors: DigitVectors | None) -> None:
        self._config, self._rng, self._vectors = config, rng, vectors
        self.log_probability: Tensor | None = None

    def __call__(self, logits: Tensor, index: int) -> Tensor:
        temperature = self._config.temperature
        logits = logits if temperature in (0, 1) else logits / temperature
        scores = logits.log_softmax(-1)
        kept = scores if self._config.top_p == 1 else _nucleus(scores, self._config.top_p)
        if temperature:
            kept = kept + _gumbel(kept.shape, self._rng).to(kept.device)
        digit = kept.argmax(-1) if self._vectors is None else nearest_to_mean(kept, self._vectors[index])
        chosen = scores.gather(-1, digit[:, None])[:, 0]
        self.log_probability = chosen if self.log_probability is None else self.log_probability + chosen
        return digit


def _nucleus(scores: Tensor, top_p: float) -> Tensor:
    """Remove the codes outside the nucleus (Holtzman et al. 2020); the most probable code always stays."""
    ranked, order = scores.sort(-1, descending=True)
    probabilities = ranked.exp()
    ranked = ranked.masked_fill(probabilities.cumsum(-1) - probabilities >= top_p, -torch.inf)
    return torch.empty_like(scores).scatter_(-1, order, ranked)


def _gumbel(shape: torch.Size, rng: torch.Generator) -> Tensor:
    uniform = torch.rand(shape, generator=rng).clamp_min(1e-20)
    return -torch.log(-torch.log(uniform))


def reveal_counts(count: int, steps: int) -> list[int]:
    """Return the cumulative number of revealed codes after each step of the cosine schedule.

    A step reveals at least one code, so there are fewer steps than ``steps`` for few codes.
    """
    ends, done = [], 0
    for step in range(1, steps + 1):
        end = count if step == steps else count - int(count * cos(pi / 2 * step / steps))
        end = min(max(end, done + 1), count)
        if end > done:
            ends.append(end)
        done = end
        if done == count:
            break
    return ends


def reveal_order(shape: tuple[int, int, int], order: str, rng: torch.Generator) -> Tensor:
    """Return the flat positions of a grid in the order of revealing them."""
    shuffled = torch.randperm(shape[0] * shape[1] * shape[2], generator=rng)
    if order != "halton":
        return shuffled
    # A random shift of the sequence modulo 1, one per sample (Cranley and Patterson 1976).
    points = (_halton(_POINTS_PER_POSITION * len(shuffled)) + torch.rand(3, generator=rng).numpy()) % 1.0
    cells = np.minimum((points * shape).astype(np.int64), np.array(shape) - 1)
    flat = np.ravel_multi_index((cells[:, 0], cells[:, 1], cells[:, 2]), shape)
    hit, first = np.unique(flat, return_index=True)
    ranks = np.full(len(shuffled), len(flat))
    ranks[hit] = first
    return shuffled[torch.from_numpy(np.argsort(ranks[shuffled.numpy()], kind="stable"))]


@lru_cache(maxsize=16)
def _halton(count: int) -> np.ndarray:
    """Return the first points ``count 3`` of the Halton sequence with bases 2, 3 and 5."""
    columns = []
    for base in (2, 3, 5):
        rest, value, scale = np.arange(1, count + 1), np.zeros(count), 1.0
        while rest.any():
            scale /= base
            value += scale * (rest % base)
            rest //= base
        columns.append(value)
    return np.stack(columns, axis=1)
