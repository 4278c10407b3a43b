"""Conditions of held-out clips, for the evaluation of a generator."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidvq.formats.generator import GeneratorCard
from vidvq.generate.conditions import check_action_width, latent_actions, read_actions, read_column
from vidvq.generate.sampling.codes import Condition, stack_actions
from vidvq.generate.text import open_text_encoder, pad_texts


class HeldOutConditions:
    """The conditions of clips, as far as they are known: an unknown class or a missing value is no condition.

    Args:
        clips: directory of clip shards with the columns; None for no conditions.
        text_encoder: folder or name of the text encoder; None for the one that the generator was trained with.

    Raises:
        UsageError: the clips lack a column, have actions of another length than the generator's, or there is no text
            encoder.
    """

    def __init__(self, card: GeneratorCard, clips: Path | None, text_encoder: str | None) -> None:
        self._card = card
        self._labels: dict[str, int] = {}
        self._actions: dict[str, np.ndarray] = {}
        self._texts: dict[str, str] = {}
        if clips is None:
            return
        folders = [str(clips)]
        if card.label:
            known = {name: 1 + at for at, name in enumerate(card.labels)}
            values = read_column(folders, card.label)
            self._labels = {key: known.get(str(value), 0) for key, value in values.items()}
        if card.actions:
            found = read_actions(folders, card.actions)
            check_action_width(card, len(found.mean))
            self._actions = found.by_key
        if card.text:
            self._texts = {key: str(value) for key, value in read_column(folders, card.text).items()}
            self._encoder = open_text_encoder(card, text_encoder)

    def __bool__(self) -> bool:
        return bool(self._labels or self._actions or self._texts)

    def of(self, key: str, latents: int) -> Condition:
        """Return the conditions of a clip of ``latents`` latent frames."""
        rows, text = self._actions.get(key), self._texts.get(key)
        actions = None if rows is None else torch.from_numpy(latent_actions(rows, np.arange(latents), self._card))
        return Condition(self._labels.get(key, 0), actions, text=None if text is None else self._encoder.encode(text))


def network_arguments(conditions: list[Condition], device: torch.device) -> dict[str, Tensor | None]:
    """Return the conditions of a batch of samples as keyword arguments of the network."""
    texts, rows = [each.text for each in conditions], [each.actions for each in conditions]
    text, mask = None, None
    if width := next((each.shape[1] for each in texts if each is not None), None):
        text, mask = (each.to(device) for each in pad_texts(texts, width))
    return {
        "labels": torch.tensor([each.label for each in conditions], device=device),
        "actions": stack_actions(rows, device),
        "text": text,
        "text_mask": mask,
    }
