"""Tasks that a generator is scored on with held-out clips: hidden pixels, given codes and a trivial baseline."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from vidvq.formats.generator import GeneratorCard
from vidvq.generate.blanking import encode_visible, hide_box, hide_frames
from vidvq.generate.evaluation.baselines import blend, repeat_last, surrounding_mean
from vidvq.generate.sampling.codes import Condition, given_latents
from vidvq.model import Tokenizer
from vidvq.model.pixels import to_video

BASELINES = {
    "predict": "last frame repeated",
    "interpolate": "linear blend",
    "fill": "surrounding mean",
}


class Prompt(NamedTuple):
    """One task on one clip.

    Attributes:
        hidden: pixels to generate, ``t h w`` bool.
        given: codes of the given latent frames, ``t lh lw``; None for none.
    """

    task: str
    hidden: np.ndarray
    given: np.ndarray | None
    condition: Condition


class HeldOutTasks:
    """Prompts and baselines of the tasks that a generator was trained for.

    Args:
        given: number of frames that condition a prediction (1 + a multiple of the temporal factor).

    Raises:
        UsageError: ``given`` is another number.
    """

    def __init__(self, card: GeneratorCard, tokenizer: Tokenizer, given: int) -> None:
        self._tasks, self._tokenizer = card.tasks, tokenizer
        self._given, self._given_latents = given, given_latents(card, given)

    def prompts(self, codes: np.ndarray, frames: np.ndarray, condition: Condition) -> Iterator[Prompt]:
        """Yield the tasks on one clip.

        Args:
            codes: codes ``lt lh lw`` of the clip.
            frames: frames ``t h w c`` uint8 of the clip.
        """
        shape, (h, w) = frames.shape[:3], frames.shape[1:3]
        if "predict" in self._tasks and len(frames) > self._given:
            hidden = np.zeros(shape, dtype=bool)
            hidden[self._given :] = True
            yield Prompt("predict", hidden, codes[: self._given_latents], condition)
        blanked: dict[str, torch.Tensor] = {}
        if "interpolate" in self._tasks and len(frames) > 2:
            blanked["interpolate"] = hide_frames(shape, [0, len(frames) - 1])
        if "fill" in self._tasks:
            blanked["fill"] = hide_box(shape, (w // 4, h // 4, w // 2, h // 2))
        device = self._tokenizer.device
        for task, hidden in blanked.items():
            visible = encode_visible(self._tokenizer, to_video(frames).to(device), hidden[None].to(device))
            yield Prompt(task, hidden.numpy(), None, replace(condition, blanked=visible))

    def baseline(self, prompt: Prompt, frames: np.ndarray) -> np.ndarray:
        """Return the frames ``t h w c`` uint8 of the baseline of a task, from those of the clip."""
        if prompt.task == "predict":
            return repeat_last(frames, self._given)
        if prompt.task == "interpolate":
            return blend(frames, [0, len(frames) - 1])
        return surrounding_mean(frames, prompt.hidden)
