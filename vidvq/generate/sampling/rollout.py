"""A clip that grows by one latent frame at a time, each under an action: a world model at play."""

from collections.abc import Sequence
from math import nan

import numpy as np
import torch
from torch import Tensor

from vidvq.errors import UsageError
from vidvq.formats.generator import GeneratorCard
from vidvq.generate.conditions import latent_actions
from vidvq.generate.network.code_vectors import DigitVectors
from vidvq.generate.network.transformer import VideoTransformer
from vidvq.generate.requests import SamplingConfig
from vidvq.generate.sampling.codes import Condition, SamplePrompt, sample_codes
from vidvq.generate.training.examples import seeded_rng
from vidvq.model import StreamState, Tokenizer
from vidvq.model.pixels import to_frames


class Rollout:
    """Generates latent frames one after the other, and decodes each at once.

    The same seed, start and actions give the same frames. The context slides: latent frame 0 and the newest ones.

    Args:
        start: codes ``t lh lw`` of the first latent frames (1 or more).
        size: height and width of a decoded frame (pixels).
        vectors: result of :func:`~vidvq.generate.network.code_vectors.code_vectors`; for ``estimate=mean`` only.

    Raises:
        UsageError: the generator was trained on single latent frames.
    """

    def __init__(
        self,
        network: VideoTransformer,
        card: GeneratorCard,
        tokenizer: Tokenizer,
        start: np.ndarray,
        config: SamplingConfig,
        seed: str,
        size: tuple[int, int],
        vectors: list[DigitVectors] | None = None,
    ) -> None:
        if card.limits[0] < 2:
            raise UsageError("a generator that was trained on single latent frames cannot continue them")
        self._network, self._card, self._tokenizer, self._config = network, card, tokenizer, config
        self._seed, self._size = seed, size
        self._vectors = vectors
        self._codes = start.astype(np.int64)
        # One row for each frame; the actions that led to the start are not known.
        frames = 1 + (len(start) - 1) * card.tokenizer.temporal_factor
        self._actions = np.full((frames, max(len(card.action_mean), 1)), nan, dtype=np.float32)
        self._state: StreamState | None = None

    @torch.inference_mode()
    def start(self) -> np.ndarray:
        """Decode the first latent frames: ``t h w c`` uint8."""
        self._state = None
        if not self._tokenizer.supports_streaming:
            return self._frames(self._tokenizer.decode(self._grid(self._codes)))
        parts = np.split(self._codes, range(1, len(self._codes)))
        return np.concatenate([self._decode_step(part) for part in parts])

    @torch.inference_mode()
    def step(self, action: Sequence[float] | None = None) -> np.ndarray:
        """Generate the frames of the next latent frame: ``t h w c`` uint8.

        Args:
            action: the numbers of an action, for each of the frames; None for an action that is not known.
        """
        card, r = self._card, self._card.tokenizer.temporal_factor
        row = np.full((r, self._actions.shape[1]), nan if action is None else action, dtype=np.float32)
        self._actions = np.concatenate([self._actions, row])
        recent = min(len(self._codes), card.limits[0] - 1)
        latents = np.array([0, *range(len(self._codes) - recent + 1, len(self._codes) + 1)])
        moves = None
        if card.action_mean:
            moves = torch.from_numpy(latent_actions(self._actions, latents, card))
        shape = (len(latents), self._codes.shape[1], self._codes.shape[2])
        rng = seeded_rng(f"{self._seed}/{len(self._codes)}")
        prompt = SamplePrompt(rng, self._codes[latents[:-1]], Condition(actions=moves))
        (made,) = sample_codes(self._network, card, shape, [prompt], self._config, self._vectors)
        self._codes = np.concatenate([self._codes, made[-1:]])
        if self._tokenizer.supports_streaming:
            return self._decode_step(made[-1:])
        # Tokenizers of whole clips decode what the generator saw.
        return self._frames(self._tokenizer.decode(self._grid(made)))[-r:]

    def _decode_step(self, codes: np.ndarray) -> np.ndarray:
        starts = self._state is None
        video, self._state = self._tokenizer.decode_step(self._grid(codes), self._state)
        if self._tokenizer.lookahead:
            # A player shows the newest frames at once, as if the clip ended with them.
            newest = 1 if starts else self._tokenizer.temporal_factor
            video = self._tokenizer.decode_rest(self._state)[:, :, -newest:]
        return self._frames(video)

    def _grid(self, codes: np.ndarray) -> Tensor:
        return torch.from_numpy(codes)[None].to(self._tokenizer.device)

    def _frames(self, video: Tensor) -> np.ndarray:
        height, width = self._size
        return to_frames(video[..., :height, :width])
