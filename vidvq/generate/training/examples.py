"""Training examples: codes with a task and its conditions."""

from functools import cache
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vidvq.data import TokenBatch, TokenDataset, TokenSample
from vidvq.data.index import ByteRange, read_bytes, read_clip_index
from vidvq.data.micro_batches import UnreadableBatch
from vidvq.data.tokens import collate
from vidvq.errors import UsageError
from vidvq.formats.generator import GeneratorCard
from vidvq.generate.blanking import BlankedVideo, draw_hidden_pixels, encode_visible
from vidvq.generate.conditions import actions_per_latent, latent_actions
from vidvq.generate.config import BLANKED_TASKS, GenerateTrainConfig
from vidvq.generate.text import TextEncoder, pad_texts
from vidvq.model import Tokenizer
from vidvq.model.pixels import to_video
from vidvq.video import VideoError
from vidvq.video.decode import decode_clip


class Examples(NamedTuple):
    """A micro-batch of samples with one grid and one task.

    Attributes:
        tokens: codes ``b lt lh lw`` and keys.
        labels: class of each sample, ``b`` int64 from 1, 0 for none; None without a class condition.
        actions: actions ``b lt a`` float, NaN where missing; None without an action condition.
        blanked: condition of ``interpolate`` and ``fill``; None for other tasks.
        text: states of the texts ``b n d`` and their mask ``b n``; None without a text condition.
    """

    tokens: TokenBatch
    task: str
    labels: Tensor | None
    actions: Tensor | None
    blanked: BlankedVideo | None
    text: tuple[Tensor, Tensor] | None = None


class Columns(NamedTuple):
    """Conditions of the clips by key; clips without an entry have no such condition.

    Attributes:
        labels: class index, from 1.
        actions: actions ``t a``.
        encoder: encoder of the texts; None without a text condition.
    """

    labels: dict[str, int]
    actions: dict[str, np.ndarray]
    texts: dict[str, str]
    encoder: TextEncoder | None = None


class ExampleDataset(Dataset[Examples | UnreadableBatch]):
    """Micro-batches of one rank, indexed by ``(batch, micro_step)``.

    Args:
        columns: conditions of the clips.
        tokenizer: tokenizer for blanked clips; None if no task needs it.

    Raises:
        UsageError: a token sample has no clip in ``pixels.clips``, or one of another size.
    """

    def __init__(
        self,
        config: GenerateTrainConfig,
        card: GeneratorCard,
        tokens: TokenDataset,
        columns: Columns,
        tokenizer: Tokenizer | None,
    ) -> None:
        self.config, self.seed, self.ranks = config.data, config.seed, tokens.ranks
        self._tasks, self._card, self._tokens = config.tasks.weights, card, tokens
        self._columns, self._tokenizer = columns, tokenizer
        self._media: dict[str, ByteRange] = {}
        if tokenizer is not None and config.pixels is not None:
            index = read_clip_index(list(config.pixels.clips), name="pixels.clips")
            clips = {key: clip for clip, key in enumerate(index.keys)}
            remedy = "set it to the directories that data.tokens was made from"
            missing = [location.key for location in tokens.index.locations if location.key not in clips]
            if missing:
                raise UsageError(
                    f"pixels.clips has no clip {missing[0]} ({len(missing)} of {len(tokens)} are missing); {remedy}"
                )
            latent_shape = cache(tokenizer.latent_shape)
            for location, grid in zip(tokens.index.locations, tokens.index.grid.tolist(), strict=True):
                clip = clips[location.key]
                t, h, w = (int(column[clip]) for column in (index.num_frames, index.height, index.width))
                if latent_shape(t, h, w) != tuple(grid):
                    raise UsageError(
                        f"pixels.clips has {t} frames of {w}x{h} of clip {location.key}, whose tokens have a grid of "
                        f"{'x'.join(map(str, grid))}; {remedy}"
                    )
                self._media[location.key] = index.media_range(clip)

    def __getitem__(self, position: tuple[int, int]) -> Examples | UnreadableBatch:
        """Return a micro-batch of this rank."""
        number, micro_step = position
        task = draw_task(self._tasks, self.seed, number)
        try:
            samples = self._tokens.samples(number, micro_step, from_start=task in BLANKED_TASKS)
            blanked = self._blank(samples, task, *position) if task in BLANKED_TASKS else None
        except (UsageError, OSError) as error:
            return UnreadableBatch(error)
        except VideoError as error:
            return UnreadableBatch(UsageError(str(error)))
        return make_examples(samples, task, self._card, self._columns, blanked)

    def _blank(self, samples: list[TokenSample], task: str, number: int, micro_step: int) -> BlankedVideo:
        assert self._tokenizer is not None
        codes, visible = [], []
        for index, sample in enumerate(samples, self._tokens.first_sample(micro_step)):
            file = self._media[sample.key]
            frames = decode_clip(read_bytes(file), sample.key)
            frames = frames[: 1 + (len(sample.codes) - 1) * self._tokenizer.temporal_factor]
            hidden = draw_hidden_pixels(
                task, frames.shape[:3], seeded_rng(f"{self.seed}/{number}/sample {index}/hidden")
            )
            blanked = encode_visible(self._tokenizer, to_video(frames), hidden[None])
            codes.append(blanked.codes)
            visible.append(blanked.visible)
        return BlankedVideo(torch.cat(codes), torch.cat(visible))


def make_examples(
    samples: list[TokenSample],
    task: str,
    card: GeneratorCard,
    columns: Columns,
    blanked: BlankedVideo | None = None,
) -> Examples:
    """Collate samples with their conditions.

    Args:
        samples: samples of one grid.
        columns: conditions of the clips.
        blanked: condition of ``interpolate`` and ``fill``.
    """
    class_indices = torch.tensor([columns.labels.get(sample.key, 0) for sample in samples]) if card.labels else None
    action_rows = None
    if card.action_mean:
        missing = np.full((len(samples[0].latents), actions_per_latent(card)), np.nan, dtype=np.float32)
        rows = [
            latent_actions(columns.actions[sample.key], sample.latents, card)
            if sample.key in columns.actions
            else missing
            for sample in samples
        ]
        action_rows = torch.from_numpy(np.stack(rows))
    text = None
    if columns.encoder is not None:
        texts = [columns.texts.get(sample.key) for sample in samples]
        states = [None if each is None else columns.encoder.encode(each) for each in texts]
        text = pad_texts(states, card.text_width)
    return Examples(collate(samples), task, class_indices, action_rows, blanked, text)


def draw_task(weights: dict[str, float], seed: int, number: int) -> str:
    """Draw the task of a batch, the same on all ranks and in all micro-batches."""
    rng = Random(f"{seed}/{number}/task")
    return rng.choices(list(weights), list(weights.values()))[0]


def seeded_rng(text: str) -> torch.Generator:
    """Return a random number generator seeded by a text, equal on all platforms."""
    return torch.Generator().manual_seed(Random(text).getrandbits(63))
