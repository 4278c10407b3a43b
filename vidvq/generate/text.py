"""Texts as conditions: states of a text encoder of the library transformers, from a local folder or the hub."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from vidvq.errors import UsageError
from vidvq.formats.generator import GeneratorCard

# Encoder classes of transformers by model type.
_CLASSES = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
}
# What transformers raises for files that are missing, damaged or do not belong together.
_LOAD_ERRORS = (AttributeError, ImportError, LookupError, OSError, RuntimeError, SafetensorError, TypeError, ValueError)
# Longer texts are cut (text tokens).
_MAX_LENGTH = 128
# Memory for the states of texts that were encoded (bytes per process).
_CACHE_BYTES = 1 << 30
# Numbers of the state of a fixed text, by which a card identifies its encoder.
_PROBE, _PROBE_NUMBERS, _PROBE_TOLERANCE = "a video", 8, 1e-2


@contextmanager
def refusing_damage(what: str) -> Iterator[None]:
    """Turn what transformers raises for a folder that it cannot load into a UsageError that begins with ``what``."""
    try:
        yield
    except UsageError:
        raise
    except _LOAD_ERRORS as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(f"{what} cannot be loaded by transformers: {reason}") from error


class TextEncoder:
    """A frozen text encoder on the CPU.

    Args:
        name: folder, or name on the hub, of a T5 encoder or a CLIP text model with its tokenizer.

    Attributes:
        kind: model type of transformers.
        width: length of a state.

    Raises:
        UsageError: transformers is missing, or there is no such encoder.
    """

    def __init__(self, name: str) -> None:
        try:
            import transformers
        except ImportError:
            raise UsageError("texts need the library transformers; pip install 'vidvq[interop]'") from None
        # A folder that lacks a file must not become a download.
        local = Path(name).is_dir()
        library: Any = transformers
        with refusing_damage(f"text_encoder={name}"):
            config = library.AutoConfig.from_pretrained(name, local_files_only=local)
            if config.model_type not in _CLASSES:
                raise UsageError(
                    f"text_encoder={name} is a {config.model_type} model; use a T5 encoder or a CLIP text model"
                )
            self._tokenizer = library.AutoTokenizer.from_pretrained(name, local_files_only=local)
            # Safetensors alone: nothing is unpickled.
            kind = getattr(library, _CLASSES[config.model_type])
            model = kind.from_pretrained(name, local_files_only=local, use_safetensors=True)
        self._model = model.float().eval().requires_grad_(False)
        # CLIP has a fixed number of positions.
        self._length = min(_MAX_LENGTH, getattr(self._model.config, "max_position_embeddings", _MAX_LENGTH))
        self.kind: str = config.model_type
        self.width = int(self._model.config.hidden_size)
        self.encode = self._cache()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "encode"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.encode = self._cache()

    def _cache(self) -> Callable[[str], torch.Tensor]:
        return lru_cache(max(_CACHE_BYTES // (4 * self._length * self.width), 1))(self._encode)

    @property
    def probe(self) -> tuple[float, ...]:
        """Numbers that identify the encoder."""
        return tuple(self.encode(_PROBE)[0, :_PROBE_NUMBERS].tolist())

    @torch.no_grad()
    def _encode(self, text: str) -> torch.Tensor:
        """Return the states ``n d`` fp32 of a text; alone, so that they do not depend on other texts."""
        ids = self._tokenizer(text, truncation=True, max_length=self._length, return_tensors="pt")
        return (
            self._model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).last_hidden_state[0].float()
        )


def open_text_encoder(card: GeneratorCard, name: str | None = None) -> TextEncoder:
    """Load the text encoder of a generator.

    Args:
        name: folder or name of the encoder; None for the one that the generator was trained with.

    Raises:
        UsageError: the generator was trained without texts, or with another encoder.
    """
    if not card.text:
        raise UsageError("text: this generator was trained without texts; train one with conditions.text=COLUMN")
    encoder = TextEncoder(name or card.text_encoder)
    if encoder.width != card.text_width or not np.allclose(encoder.probe, card.text_probe, atol=_PROBE_TOLERANCE):
        raise UsageError(
            f"text_encoder={name or card.text_encoder} differs from the one that this generator was trained with "
            f"({card.text_encoder}); set text_encoder= to a copy of that one"
        )
    return encoder


def pad_texts(states: list[torch.Tensor | None], width: int, multiple: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Collate the states ``n d`` of texts; None for a sample without one.

    Args:
        multiple: number of which the padded length is a multiple.

    Returns:
        States ``b n d``, 0 where padded, and the mask ``b n`` bool, False where padded.
    """
    longest = max([len(each) for each in states if each is not None], default=1)
    longest = -(-longest // multiple) * multiple
    padded, mask = torch.zeros(len(states), longest, width), torch.zeros(len(states), longest, dtype=torch.bool)
    for row, each in enumerate(states):
        if each is not None:
            padded[row, : len(each)], mask[row, : len(each)] = each, True
    return padded, mask
