"""Sampling: latent grids from a generator, one at a time, so that a sample does not depend on the others.

Codes are revealed in few parallel steps. By default, which codes a step reveals is fixed ahead: a Halton sequence
spreads them evenly over the grid (Besnier et al. 2025), or they are random. Revealing the most confident ones first
(Chang et al. 2022) is an option; it prefers codes that copy what is given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi

import numpy as np
import torch
from torch import Tensor

from vidvq.errors import UsageError
from vidvq.formats.generator import GeneratorCard
from vidvq.generate.blanking import Blanked
from vidvq.generate.requests import SamplingConfig
from vidvq.generate.transformer import Cache, VideoTransformer

# Halton points per position of a grid; the few positions that none of them hits come last.
_POINTS = 8


@dataclass(frozen=True)
class Condition:
    """Conditions of one sample; none by default.

    Attributes:
        label: class, from 1; 0 for none.
        actions: ``t a`` for each latent frame, normalized; None for none.
        blanked: what is visible of the video, for ``interpolate`` and ``fill``; None for none.
    """

    label: int = 0
    actions: Tensor | None = None
    blanked: Blanked | None = None


@torch.no_grad()
def sample_codes(
    network: VideoTransformer,
    card: GeneratorCard,
    shape: tuple[int, int, int],
    given: np.ndarray | None,
    condition: Condition,
    config: SamplingConfig,
    random: torch.Generator,
) -> np.ndarray:
    """Generate the codes of a clip.

    Beyond the length that the generator was trained on, the context slides: latent frame 0 and the newest frames.

    Args:
        network: the transformer.
        card: card of the generator.
        shape: shape ``lt lh lw`` of the clip.
        given: codes ``t lh lw`` of the first latent frames; None for none.
        condition: conditions.
        config: how codes are drawn.
        random: source of randomness, on the CPU.

    Returns:
        Codes ``lt lh lw`` int64; the given ones are unchanged.

    Raises:
        UsageError: the grid is larger than the generator was trained on.
    """
    total, limit = shape[0], card.limits[0]
    check_shape(card, shape, condition.blanked is not None)
    device = next(network.parameters()).device
    codes = torch.zeros(shape, dtype=torch.int64, device=device)
    have = 0 if given is None else len(given)
    if given is not None:
        codes[:have] = torch.from_numpy(given.astype(np.int64)).to(device)
    # Half of a window that has slid is new, so that the context is never short.
    stride = max(limit // 2, 1)
    while have < total:
        if have < limit:
            window, new = list(range(min(limit, total))), min(limit, total) - have
        else:
            new = min(stride, total - have)
            window = [0, *range(have - (limit - 1 - new), have + new)] if limit > 1 else []
        if not window:
            raise UsageError("a generator that was trained on single latent frames cannot continue them")
        part = _Window(network, codes[window], len(window) - new, _at(condition, window), config, random)
        codes[window] = part.decode_next() if card.objective == "next" else part.decode_masked()
        have += new
    return codes.cpu().numpy()


def check_shape(card: GeneratorCard, shape: tuple[int, int, int], fixed_length: bool = False) -> None:
    """Refuse a grid that the generator's positions do not reach.

    Args:
        card: card of the generator.
        shape: shape ``lt lh lw``.
        fixed_length: whether the context cannot slide.

    Raises:
        UsageError: names the largest grid.
    """
    lt, lh, lw = card.limits
    s, r = card.tokenizer.spatial_factor, card.tokenizer.temporal_factor
    if shape[1] > lh or shape[2] > lw:
        raise UsageError(
            f"frames of {shape[1] * s}x{shape[2] * s} are larger than the {lh * s}x{lw * s} that this generator was "
            "trained on; scale them down"
        )
    if fixed_length and shape[0] > lt:
        raise UsageError(
            f"{1 + (shape[0] - 1) * r} frames are more than the {1 + (lt - 1) * r} that this generator was trained on; "
            "give shorter clips"
        )


def _at(condition: Condition, window: list[int]) -> Condition:
    """The conditions of some latent frames."""
    actions = None if condition.actions is None else condition.actions[window]
    return Condition(condition.label, actions, condition.blanked)


class _Window:
    """Latent frames that fit the generator's context, the first of which are given."""

    def __init__(
        self,
        network: VideoTransformer,
        codes: Tensor,
        given: int,
        condition: Condition,
        config: SamplingConfig,
        random: torch.Generator,
    ) -> None:
        self.network, self.codes, self.given, self.config, self.random = network, codes, given, config, random
        device = codes.device
        # The second sample of the batch has no conditions.
        copies = self.copies = 2 if config.guidance != 1 else 1
        blanked = condition.blanked
        self.extra = network.condition(
            codes.expand(copies, *codes.shape),
            torch.full((copies,), condition.label, device=device),
            None if condition.actions is None else condition.actions.to(device).expand(copies, -1, -1),
            None if blanked is None else blanked.codes.to(device).expand(copies, -1, -1, -1),
            None if blanked is None else blanked.visible.to(device).expand(copies, -1, -1, -1),
            torch.arange(copies, device=device) == 0,
        ).expand(copies, len(codes), -1, -1, -1)

    def decode_masked(self) -> Tensor:
        """Fill in all frames that are not given, together."""
        codes = self.codes.clone()
        holes = torch.zeros(codes.shape, dtype=torch.bool, device=codes.device)
        holes[self.given :] = True

        def hidden(codes: Tensor, holes: Tensor) -> Tensor:
            return self.network.hidden(self._embed(codes, holes) + self.extra)

        return self._reveal(codes, holes, hidden, 0)

    def decode_next(self) -> Tensor:
        """Fill in one frame after the other, with the keys and values of the frames before."""
        codes, cache = self.codes.clone(), Cache()
        if self.given:
            self._append(codes[: self.given], cache)
        for t in range(self.given, len(codes)):
            extra = self.extra[:, t : t + 1]

            def hidden(codes: Tensor, holes: Tensor, extra: Tensor = extra, first: int = t) -> Tensor:
                return self.network.forward_cached(self._embed(codes, holes, first) + extra, cache, append=False)

            frame = codes[t : t + 1]
            codes[t : t + 1] = self._reveal(frame.clone(), torch.ones_like(frame, dtype=torch.bool), hidden, t)
            if t + 1 < len(codes):
                self._append(codes[t : t + 1], cache)
        return codes

    def _append(self, codes: Tensor, cache: Cache) -> None:
        first = cache.frames
        x = self._embed(codes, None, first) + self.extra[:, first : first + len(codes)]
        self.network.forward_cached(x, cache, append=True)

    def _embed(self, codes: Tensor, holes: Tensor | None, first: int = 0) -> Tensor:
        shape = (self.copies, *codes.shape)
        return self.network.embed(codes.expand(shape), None if holes is None else holes.expand(shape), first)

    def _reveal(self, codes: Tensor, holes: Tensor, hidden: Callable[[Tensor, Tensor], Tensor], first: int) -> Tensor:
        """Reveal holes ``t h w`` step by step."""
        shape = (codes.shape[0], codes.shape[1], codes.shape[2])
        order = reveal_order(shape, self.config.order, self.random).to(codes.device)
        order = order[holes.flatten()[order]]
        done = 0
        for end in reveal_counts(len(order), self.config.steps):
            vectors = hidden(codes, holes).flatten(1, 3)
            if self.config.order == "confidence":
                left = order[holes.flatten()[order]]
                drawn, sure = self._draw(vectors, left, shape, first)
                # Noise that fades (Chang et al. 2022).
                noise = (
                    _gumbel(sure.shape, self.random).to(sure.device) * self.config.temperature * (1 - end / len(order))
                )
                best = (sure + noise).topk(end - done).indices
                chosen, drawn = left[best], drawn[best]
            else:
                chosen = order[done:end]
                drawn, _ = self._draw(vectors, chosen, shape, first)
            codes.view(-1)[chosen] = drawn
            holes.view(-1)[chosen] = False
            done = end
        return codes

    def _draw(
        self, vectors: Tensor, positions: Tensor, shape: tuple[int, int, int], first: int
    ) -> tuple[Tensor, Tensor]:
        """Draw codes for flat positions; returns them with their log-probabilities."""
        drawn, sure = torch.zeros_like(positions), torch.zeros(len(positions), device=positions.device)
        book_of = (positions // (shape[1] * shape[2]) + first > 0).long() * (len(self.network.codebooks) - 1)
        for book in range(len(self.network.codebooks)):
            here = book_of == book
            if not here.any():
                continue
            choose = _Chooser(self.config, self.random)
            own, other = vectors[0, positions[here]], vectors[-1, positions[here]] if self.copies > 1 else None
            head = self.network.heads[book]
            drawn[here] = head.sample(own, choose, other, self.config.guidance)  # type: ignore[operator,union-attr]
            assert choose.log_probability is not None
            sure[here] = choose.log_probability
        return drawn, sure


class _Chooser:
    """Draws digits from logits, and adds up their log-probabilities."""

    def __init__(self, config: SamplingConfig, random: torch.Generator) -> None:
        self._config, self._random = config, random
        self.log_probability: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        temperature = self._config.temperature
        logits = logits if temperature in (0, 1) else logits / temperature
        scores = logits.log_softmax(-1)
        kept = scores if self._config.top_p == 1 else _nucleus(scores, self._config.top_p)
        if temperature:
            kept = kept + _gumbel(kept.shape, self._random).to(kept.device)
        digit = kept.argmax(-1)
        chosen = scores.gather(-1, digit[:, None])[:, 0]
        self.log_probability = chosen if self.log_probability is None else self.log_probability + chosen
        return digit


def _nucleus(scores: Tensor, top_p: float) -> Tensor:
    """Remove the least probable codes (Holtzman et al. 2020); the most probable one stays."""
    ranked, places = scores.sort(-1, descending=True)
    probabilities = ranked.exp()
    ranked = ranked.masked_fill(probabilities.cumsum(-1) - probabilities >= top_p, -torch.inf)
    return torch.empty_like(scores).scatter_(-1, places, ranked)


def _gumbel(shape: torch.Size, random: torch.Generator) -> Tensor:
    uniform = torch.rand(shape, generator=random).clamp_min(1e-20)
    return -torch.log(-torch.log(uniform))


def reveal_counts(count: int, steps: int) -> list[int]:
    """Number of codes that are revealed after each step, by the cosine schedule; at least one more each step."""
    ends, done = [], 0
    for step in range(1, steps + 1):
        end = count if step == steps else count - int(count * cos(pi / 2 * step / steps))
        end = min(max(end, done + 1), count)
        if end > done:
            ends.append(end)
        done = end
    return ends


def reveal_order(shape: tuple[int, int, int], order: str, random: torch.Generator) -> Tensor:
    """Flat positions of a grid in the order of revealing them."""
    shuffled = torch.randperm(shape[0] * shape[1] * shape[2], generator=random)
    if order != "halton":
        return shuffled
    # A random shift of the sequence modulo 1 (Cranley and Patterson 1976), one for each sample.
    points = (_halton(_POINTS * len(shuffled)) + torch.rand(3, generator=random).numpy()) % 1.0
    cells = np.minimum((points * shape).astype(np.int64), np.array(shape) - 1)
    flat = np.ravel_multi_index((cells[:, 0], cells[:, 1], cells[:, 2]), shape)
    hit, first = np.unique(flat, return_index=True)
    ranks = np.full(len(shuffled), len(flat))
    ranks[hit] = first
    return shuffled[torch.from_numpy(np.argsort(ranks[shuffled.numpy()], kind="stable"))]


@lru_cache(maxsize=16)
def _halton(count: int) -> np.ndarray:
    """The first points ``count 3`` of the Halton sequence of bases 2, 3 and 5."""
    columns = []
    for base in (2, 3, 5):
        rest, value, scale = np.arange(1, count + 1), np.zeros(count), 1.0
        while rest.any():
            scale /= base
            value += scale * (rest % base)
            rest //= base
        columns.append(value)
    return np.stack(columns, axis=1)
