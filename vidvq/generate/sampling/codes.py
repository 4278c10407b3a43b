"""Sampling of latent grids, several at a time. A sample depends on its own prompt, not on the others of its batch.

Codes are revealed in few parallel steps. The order is fixed in advance by default: a Halton sequence, which spreads the
codes of a step over the grid (Besnier et al. 2025), or a random permutation. Revealing the most confident codes first
(Chang et al. 2022) is an option; it favours codes that copy the given ones.

Nothing is read from the device between the steps, and every shape depends on the grids and the settings alone.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vidvq.errors import UsageError
from vidvq.formats.generator import GeneratorCard
from vidvq.generate.blanking import BlankedVideo
from vidvq.generate.network.block import KVCache
from vidvq.generate.network.code_vectors import DigitVectors, nearest_to_mean
from vidvq.generate.network.previous import UNKNOWN, previous_codes
from vidvq.generate.network.transformer import VideoTransformer
from vidvq.generate.requests import SamplingConfig
from vidvq.generate.sampling.reveal_order import reveal_counts, reveal_order
from vidvq.generate.text import pad_texts
from vidvq.model.device_copy import copy_to_device

# Texts are padded to a multiple of this length, so that those of most batches have one shape (text tokens).
_TEXT_MULTIPLE = 32
# Logits that are sampled at once, which bounds the memory of large grids.
_MAX_LOGITS = 1 << 24


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


@dataclass(frozen=True)
class SamplePrompt:
    """Start of one sample.

    Attributes:
        rng: source of randomness, on the CPU.
        given: codes ``t lh lw`` of the first latent frames; None for none.
        condition: conditions.
    """

    rng: torch.Generator
    given: np.ndarray | None = None
    condition: Condition = Condition()


@torch.no_grad()
def sample_codes(
    network: VideoTransformer,
    card: GeneratorCard,
    shape: tuple[int, int, int],
    prompts: Sequence[SamplePrompt],
    config: SamplingConfig,
    vectors: list[DigitVectors] | None = None,
) -> list[np.ndarray]:
    """Generate the codes of clips.

    Beyond the length that the generator was trained on, the context slides: it holds latent frame 0 and the newest
    frames.

    Args:
        shape: shape ``lt lh lw`` of each clip.
        prompts: one per clip, of one :func:`batch_key`.
        vectors: result of :func:`~vidvq.generate.network.code_vectors.code_vectors`; for ``estimate=mean`` only.

    Returns:
        Codes ``lt lh lw`` int64 of each clip, of which the first are the given ones.

    Raises:
        UsageError: the grid is larger than those the generator was trained on.
    """
    total, limit = shape[0], card.limits[0]
    check_shape(card, shape, prompts[0].condition.blanked is not None)
    device = next(network.parameters()).device
    codes = torch.zeros((len(prompts), *shape), dtype=torch.int64, device=device)
    given = [prompt.given for prompt in prompts if prompt.given is not None]
    done = 0
    if given:
        done = len(given[0])
        codes[:, :done] = torch.from_numpy(np.stack(given).astype(np.int64)).to(device)
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
        parts = [replace(prompt, condition=_window_condition(prompt.condition, frames)) for prompt in prompts]
        window = _Window(network, codes[:, frames], len(frames) - new, parts, config, vectors)
        codes[:, frames] = window.decode_next() if card.objective == "next" else window.decode_masked()
        done += new
    return list(codes.cpu().numpy())


def batch_key(shape: tuple[int, int, int], given: np.ndarray | None, condition: Condition) -> Hashable:
    """Return what the clips of a batch have in common: the shapes of the tensors of :func:`sample_codes`.

    Args:
        shape: shape ``lt lh lw`` of the clip.
        given: codes ``t lh lw`` of the first latent frames; None for none.
    """
    text = 0 if condition.text is None else -(-len(condition.text) // _TEXT_MULTIPLE)
    return shape, 0 if given is None else len(given), condition.blanked is None, text


def sample_clips(
    network: VideoTransformer,
    card: GeneratorCard,
    clips: Sequence[tuple[tuple[int, int, int], SamplePrompt]],
    config: SamplingConfig,
    vectors: list[DigitVectors] | None = None,
    batch: int = 1,
) -> list[np.ndarray]:
    """Generate the codes of clips of any shapes and prompts; see :func:`sample_codes`.

    Args:
        clips: shape ``lt lh lw`` and prompt of each clip.
        batch: largest number of clips at once.

    Returns:
        Codes ``lt lh lw`` int64 of each clip.
    """
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for index, (shape, prompt) in enumerate(clips):
        alike[batch_key(shape, prompt.given, prompt.condition)].append(index)
    made: dict[int, np.ndarray] = {}
    for indices in alike.values():
        for start in range(0, len(indices), batch):
            some = indices[start : start + batch]
            prompts = [clips[index][1] for index in some]
            codes = sample_codes(network, card, clips[some[0]][0], prompts, config, vectors)
            made |= zip(some, codes, strict=True)
    return [made[index] for index in range(len(clips))]


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
            f"frames of {shape[2] * s}x{shape[1] * s} are larger than the {lw * s}x{lh * s} that this generator was "
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


def stack_actions(rows: list[Tensor | None], device: torch.device) -> Tensor | None:
    """Stack the actions ``t a`` of samples, ``b t a``; NaN for a sample without, and None if there are none."""
    known = next((each for each in rows if each is not None), None)
    if known is None:
        return None
    return torch.stack([torch.full_like(known, torch.nan) if each is None else each for each in rows]).to(device)


def _window_condition(condition: Condition, frames: list[int]) -> Condition:
    """Return the conditions of some latent frames."""
    actions = None if condition.actions is None else condition.actions[frames]
    return replace(condition, actions=actions)


class _Prediction(NamedTuple):
    """Output of the network for masked codes.

    Attributes:
        vectors: hidden vectors ``b t h w c``.
        copies: codes that each position can copy, ``b t h w m``; None without copying.
    """

    vectors: Tensor
    copies: Tensor | None

    def at(self, samples: slice, positions: Tensor) -> "_Rows":
        """Return the rows of some samples at flat positions ``b n``."""
        copies = None if self.copies is None else _gather(self.copies[samples], positions)
        return _Rows(_gather(self.vectors[samples], positions), copies)


class _Rows(NamedTuple):
    """Positions of all samples.

    Attributes:
        vectors: hidden vectors ``n c``.
        copies: codes that each position can copy, ``n m``; None without copying.
    """

    vectors: Tensor
    copies: Tensor | None

    def only(self, where: Tensor) -> "_Rows":
        """Let only the positions copy where ``where`` (``n`` bool) is True."""
        return _Rows(self.vectors, None if self.copies is None else self.copies.masked_fill(~where[:, None], UNKNOWN))


def _gather(x: Tensor, positions: Tensor) -> Tensor:
    return x.flatten(1, 3).gather(1, positions[..., None].expand(-1, -1, x.shape[-1])).flatten(0, 1)


class _Window:
    """Latent frames ``b t h w`` within the generator's context, of which the first ``given`` are complete."""

    def __init__(
        self,
        network: VideoTransformer,
        codes: Tensor,
        given: int,
        prompts: list[SamplePrompt],
        config: SamplingConfig,
        vectors: list[DigitVectors] | None,
    ) -> None:
        self.network, self.codes, self.given, self.config = network, codes, given, config
        self.rngs = [prompt.rng for prompt in prompts]
        self.vectors = vectors if config.takes_mean else None
        # Guidance needs a second copy of each sample, without conditions.
        self.copies = 2 if config.guidance != 1 else 1
        device, count = codes.device, len(codes) * self.copies
        self.own, self.without = slice(len(codes)), slice(len(codes), count)
        kept = torch.arange(count, device=device) < len(codes)
        conditions = [prompt.condition for prompt in prompts]
        blanked = [each.blanked for each in conditions if each.blanked is not None]
        self.pixels = (
            self._expand(torch.cat([each.codes for each in blanked]).to(device)) if blanked else None,
            self._expand(torch.cat([each.visible for each in blanked]).to(device)) if blanked else None,
            kept,
        )
        self.text = None
        if network.text is not None:
            states = [each.text for each in conditions]
            text, mask = pad_texts(states, network.text.width, _TEXT_MULTIPLE)
            self.text = network.context(count, self._expand(text.to(device)), self._expand(mask.to(device)), kept)
        labels = torch.tensor([each.label for each in conditions]).to(device)
        actions = stack_actions([each.actions for each in conditions], device)
        self.extra = network.condition(
            self._expand(codes),
            self._expand(labels),
            None if actions is None else self._expand(actions),
            *self.pixels,
        ).expand(count, codes.shape[1], -1, -1, -1)

    def decode_masked(self) -> Tensor:
        """Generate all frames that are not given, in parallel."""
        codes = self.codes.clone()
        visible = self.network.given_codes(*self.pixels)

        def predict(codes: Tensor, mask: Tensor) -> _Prediction:
            previous = previous_codes(self._expand(codes), self._expand(mask), given=visible)
            vectors = self.network.hidden(self._embed(codes, mask, previous) + self.extra, text=self.text)
            return _Prediction(vectors, self.network.candidates(previous, visible))

        return self._reveal(codes, predict, self.given, 0)

    def decode_next(self) -> Tensor:
        """Generate one frame after another, with cached keys and values of the frames before."""
        codes, cache = self.codes.clone(), KVCache()
        if self.given:
            self._append(codes, self.given, cache)
        for t in range(self.given, codes.shape[1]):
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

            frame = codes[:, t : t + 1].clone()
            codes[:, t : t + 1] = self._reveal(frame, predict, 0, t)
            if t + 1 < codes.shape[1]:
                self._append(codes, t + 1, cache)
        return codes

    def _append(self, codes: Tensor, end: int, cache: KVCache) -> None:
        """Append the latent frames before ``end`` that the cache lacks."""
        first = cache.frames
        x = self._embed(codes[:, first:end], None, self._previous(codes, first, end), first) + self.extra[:, first:end]
        self.network.forward_cached(x, cache, append=True, text=self.text)

    def _previous(self, codes: Tensor, first: int, end: int) -> Tensor:
        before = codes[:, first - 1 : first] if first else None
        return self._expand(previous_codes(codes[:, first:end], before=before))

    def _expand(self, x: Tensor) -> Tensor:
        """Append the copies for guidance to the samples."""
        return x if self.copies == 1 else torch.cat([x] * self.copies)

    def _embed(self, codes: Tensor, mask: Tensor | None, previous: Tensor, first: int = 0) -> Tensor:
        expanded = None if mask is None else self._expand(mask)
        return self.network.embed(self._expand(codes), expanded, first, previous)

    def _reveal(
        self, codes: Tensor, predict: Callable[[Tensor, Tensor], _Prediction], given: int, first: int
    ) -> Tensor:
        """Reveal the hidden codes ``b t h w`` step by step.

        Args:
            codes: codes; changed in place.
            predict: maps codes and their mask, True for hidden ones, to a prediction of all positions.
            given: number of complete frames, which come first.
            first: index of the first latent frame.
        """
        mask = torch.zeros_like(codes, dtype=torch.bool)
        mask[:, given:] = True
        shape = (codes.shape[1], codes.shape[2], codes.shape[3])
        area = shape[1] * shape[2]
        orders = [reveal_order(shape, self.config.order, rng) for rng in self.rngs]
        order = copy_to_device(torch.stack([each[each >= given * area] for each in orders]), codes.device)
        count, by_confidence = order.shape[1], self.config.order == "confidence"
        digits, last = max(map(len, self.network.digits)), len(self.network.codebooks) - 1
        books = sorted({last if t else 0 for t in range(first + given, first + shape[0])})
        uniform = self._uniform(digits, 0 if by_confidence else count)
        done, flat, hidden = 0, codes.view(len(codes), -1), mask.view(len(codes), -1)
        for end in reveal_counts(count, self.config.steps):
            prediction = predict(codes, mask)
            if by_confidence:
                # All codes are drawn, also those already revealed: only the device knows which are left.
                uniform = self._uniform(digits + 1, count)
                drawn, confidence = self._draw(prediction, order, uniform, area, books)
                # Gumbel noise, annealed to 0 (Chang et al. 2022).
                noise = -torch.log(-torch.log(uniform[:, digits].clamp_min(1e-20)))
                confidence = confidence + noise * self.config.temperature * (1 - end / count)
                confidence = confidence.masked_fill(~hidden.gather(1, order), -torch.inf)
                best = confidence.topk(end - done).indices
                chosen, drawn = order.gather(1, best), drawn.gather(1, best)
            else:
                chosen = order[:, done:end]
                drawn, _ = self._draw(prediction, chosen, uniform[:, :, done:end], area, books)
            flat.scatter_(1, chosen, drawn)
            hidden.scatter_(1, chosen, False)
            done = end
        return codes

    def _uniform(self, rows: int, count: int) -> Tensor:
        """Draw numbers in [0, 1), ``b rows count``."""
        drawn = [torch.rand(rows, count, generator=rng) for rng in self.rngs]
        return copy_to_device(torch.stack(drawn), self.codes.device)

    def _draw(
        self, prediction: _Prediction, positions: Tensor, uniform: Tensor, area: int, books: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Draw codes for flat positions ``b n``; return them with their log-probabilities.

        Args:
            uniform: numbers in [0, 1), ``b d n``, one for each digit.
            area: codes of a latent frame.
            books: codebooks of the latent frames that are drawn.
        """
        largest = max(max(self.network.digits[book]) for book in books)
        # The same positions of all samples, so that rounding does not depend on the place of a sample in its batch.
        size = max(_MAX_LOGITS // (largest * len(positions)), 1)
        drawn = [
            self._draw_part(prediction, positions[:, at : at + size], uniform[..., at : at + size], area, books)
            for at in range(0, positions.shape[1], size)
        ]
        codes, log_probability = zip(*drawn, strict=True)
        return torch.cat(codes, 1), torch.cat(log_probability, 1)

    def _draw_part(
        self, prediction: _Prediction, positions: Tensor, uniform: Tensor, area: int, books: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Draw codes for some of the positions; the arguments are those of :meth:`_draw`."""
        own = prediction.at(self.own, positions)
        without = prediction.at(self.without, positions) if self.copies > 1 else None
        numbers = uniform.transpose(0, 1).flatten(1)
        if len(books) == 1:
            drawn = self._draw_from(books[0], own, without, numbers)
        else:
            # From both codebooks at each position: only the device knows which are in latent frame 0.
            in_first = positions.flatten() < area
            parts = [
                self._draw_from(book, own.only(where), without and without.only(where), numbers)
                for book, where in zip(books, (in_first, ~in_first), strict=True)
            ]
            drawn = [torch.where(in_first, *pair) for pair in zip(*parts, strict=True)]
        codes, log_probability = drawn
        return codes.view_as(positions), log_probability.view_as(positions)

    def _draw_from(self, book: int, own: _Rows, without: _Rows | None, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Draw codes ``n`` of one codebook; return them with their log-probabilities."""
        sampler = _DigitSampler(self.config, uniform, self.vectors[book] if self.vectors else None)
        codes = self.network.heads[book].sample(own.vectors, sampler, own.copies, without, self.config.guidance)  # type: ignore[operator]
        assert sampler.log_probability is not None
        return codes, sampler.log_probability


class _DigitSampler:
    """Samples digits from logits ``n k``, and sums their log-probabilities.

    Args:
        uniform: numbers in [0, 1), ``d n``, one for each digit.
    """

    def __init__(self, config: SamplingConfig, uniform: Tensor, vectors: DigitVectors | None) -> None:
        self._config, self._uniform, self._vectors = config, uniform, vectors
        self.log_probability: Tensor | None = None

    def __call__(self, logits: Tensor, index: int) -> Tensor:
        temperature = self._config.temperature
        logits = logits if temperature in (0, 1) else logits / temperature
        scores = logits.log_softmax(-1)
        kept = scores if self._config.top_p == 1 else _nucleus(scores, self._config.top_p)
        if self._vectors is not None:
            digit = nearest_to_mean(kept, self._vectors[index])
        elif temperature:
            digit = _invert(kept, self._uniform[index])
        else:
            digit = kept.argmax(-1)
        chosen = scores.gather(-1, digit[:, None])[:, 0]
        self.log_probability = chosen if self.log_probability is None else self.log_probability + chosen
        return digit


def _invert(scores: Tensor, uniform: Tensor) -> Tensor:
    """Draw from distributions by the inverse of their cumulative distribution functions.

    One number for each draw is copied to the device; Gumbel noise would be one for each code of the codebook.

    Args:
        scores: log-probabilities ``n k``, up to a constant; minus infinity for digits that are not allowed.
        uniform: numbers in [0, 1), ``n``.

    Returns:
        Digits ``n`` int64.
    """
    # In fp32 the small probabilities of a large codebook would be lost in the sum.
    cumulative = scores.double().exp().cumsum(-1)
    target = uniform.double()[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=scores.shape[-1] - 1)


def _nucleus(scores: Tensor, top_p: float) -> Tensor:
    """Remove the codes outside the nucleus (Holtzman et al. 2020); the most probable code always stays."""
    ranked, order = scores.sort(-1, descending=True)
    probabilities = ranked.exp()
    ranked = ranked.masked_fill(probabilities.cumsum(-1) - probabilities >= top_p, -torch.inf)
    return torch.empty_like(scores).scatter_(-1, order, ranked)
