"""Checkpoints of generators: a folder with ``model.safetensors``, ``config.json`` and ``fingerprint``.

``config.json`` holds the generator's card: which tokens it was trained on, what it was trained for, and its network.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from vidvq.config import is_mapping, validate
from vidvq.errors import UsageError
from vidvq.formats.checkpoint import (
    CONFIG,
    GENERATOR_FORMAT,
    PRINTS,
    WEIGHTS,
    changed_files,
    changed_training,
    digest_tensors,
    find_checkpoint,
    read_tensors,
    write_model_folder,
)
from vidvq.formats.token_shard import TOKENIZER_FORMAT, TokenizerCard, parse_tokenizer_card
from vidvq.storage import read_json

Objective = Literal["masked", "next"]
Task = Literal["generate", "predict", "interpolate", "fill"]
_Latents = Annotated[int, Field(ge=1, le=1 << 20)]
# Latents of a sample, over all axes.
_MAX_LATENTS = 1 << 32


@dataclass(frozen=True)
class GeneratorCard:
    """What a generator was trained on and for.

    Attributes:
        tokenizer: card of the tokenizer whose tokens it was trained on.
        objective: ``masked`` or ``next``.
        tasks: names of the tasks it was trained for: ``generate``, ``predict``, ``interpolate``, ``fill``.
        shapes: shapes ``lt lh lw`` it was trained on, the most frequent first.
        fps: median frame rate of the training samples (frames per second).
        model: config of the network.
        label: column of the class condition; "" without one.
        labels: the classes, in the order of their embeddings.
        actions: column of the action condition; "" without one.
        action_mean: mean of each number of an action, over the training frames.
        action_scale: standard deviation of each number of an action; 1 where it never changes.
        action_choices: the most frequent actions of the training frames, the most frequent first.
        text: column of the text condition; "" without one.
        text_encoder: folder or name of the text encoder; "" without one.
        text_width: length of a state of the text encoder; 0 without one.
        text_probe: numbers of the state of a fixed text, which identify the encoder.
    """

    tokenizer: TokenizerCard
    objective: Objective
    tasks: Annotated[tuple[Task, ...], Field(min_length=1)]
    shapes: Annotated[tuple[tuple[_Latents, _Latents, _Latents], ...], Field(min_length=1)]
    fps: Annotated[float, Field(ge=0)]
    model: dict[str, Any]
    label: str = ""
    labels: tuple[str, ...] = ()
    actions: str = ""
    action_mean: tuple[float, ...] = ()
    action_scale: tuple[float, ...] = ()
    action_choices: tuple[tuple[float, ...], ...] = ()
    text: str = ""
    text_encoder: str = ""
    text_width: Annotated[int, Field(ge=0, le=1 << 16)] = 0
    text_probe: tuple[float, ...] = ()

    @property
    def limits(self) -> tuple[int, int, int]:
        """Largest ``lt lh lw`` it was trained on."""
        lt, lh, lw = (max(shape[axis] for shape in self.shapes) for axis in range(3))
        return lt, lh, lw

    def refuse_other_tokenizer(self, fingerprint: str, where: str) -> None:
        """Refuse tokens, or the tokenizer, at ``where`` if they are not those that the generator was trained on."""
        wanted = self.tokenizer.token_fingerprint
        if fingerprint != wanted:
            raise UsageError(
                f"{where} has tokenizer {fingerprint[:12]}; the generator was trained on tokens of {wanted[:12]}"
            )


@dataclass(frozen=True)
class Generator:
    """A generator in memory.

    Attributes:
        path: folder of the checkpoint.
        card: what it was trained on and for.
        tensors: weights by name.
        fingerprint: SHA-256 over card and weights (hex).
        step: training step.
    """

    path: Path
    card: GeneratorCard
    tensors: dict[str, np.ndarray]
    fingerprint: str
    step: int


def write_generator(
    folder: Path, card: GeneratorCard, tensors: dict[str, np.ndarray], step: int, training: Path | None = None
) -> str:
    """Write a checkpoint folder atomically, replacing one of the same name; returns its fingerprint."""
    # Without a text condition the card is that of earlier versions, and so is its fingerprint.
    fields = {name: value for name, value in asdict(card).items() if card.text or not name.startswith("text")}
    print_ = digest_tensors(fields, tensors)
    config = {"format": GENERATOR_FORMAT, "generator": fields, "step": step}
    write_model_folder(folder, config, {"generator": print_}, tensors, training)
    return print_


def read_generator(path: Path) -> Generator:
    """Read a generator, or the newest one of a training run, and verify its fingerprint.

    Raises:
        UsageError: a file is missing or damaged, or it is a checkpoint of another kind.
    """
    folder = find_checkpoint(path)
    config, stored = read_json(folder / CONFIG), read_json(folder / PRINTS)
    if not is_mapping(config) or config.get("format") != GENERATOR_FORMAT or not is_mapping(config.get("generator")):
        raise UsageError(f"{folder} is not a generator ({GENERATOR_FORMAT}); give a run of vidvq generate train")
    where, step = f"{folder / CONFIG}", config.get("step", 0)
    card = validate(GeneratorCard, config["generator"], where)
    # Checks ranges too, as for the card in a directory of tokens.
    parse_tokenizer_card(asdict(card.tokenizer) | {"format": TOKENIZER_FORMAT}, where)
    if len(card.action_scale) != len(card.action_mean) or 0 in card.action_scale:
        raise UsageError(
            f"{where}: action_scale={list(card.action_scale)} must have a number other than 0 for each number of "
            f"action_mean={list(card.action_mean)}; restore it from a copy"
        )
    if max(map(math.prod, card.shapes)) > _MAX_LATENTS:
        raise UsageError(f"{where}: a shape has more than {_MAX_LATENTS} latents; restore it from a copy")
    if not isinstance(step, int) or step < 0:
        raise UsageError(f"{where}: step={step!r} must be an integer of 0 or more; restore it from a copy")
    tensors = read_tensors(folder / WEIGHTS)
    # Of the stored JSON, so that fields added to the card later do not change the fingerprint.
    print_ = digest_tensors(config["generator"], tensors)
    if not is_mapping(stored) or stored.get("generator") != print_:
        raise UsageError(f"{folder}: weights or config do not match the fingerprint; restore it from a copy")
    return Generator(folder, card, tensors, print_, step)


def verify_generator(folder: Path) -> list[str]:
    """Verify all bytes of a generator, and of its training state if it has one; one line per problem."""
    try:
        read_generator(folder)
        digests = read_json(folder / PRINTS).get("files", {})
    except UsageError as error:
        return [str(error)]
    if not is_mapping(digests):
        return [f"{PRINTS}: has no digests; restore it"]
    return [*changed_files(folder, digests), *changed_training(folder)]
