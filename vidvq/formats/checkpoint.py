"""Checkpoints: a folder with ``model.safetensors``, ``config.json`` and ``fingerprint``; optionally ``training/``.

The *token* fingerprint covers all that decides which tokens come out: encoder, quantizer and preprocessing. The
*decoder* fingerprint covers the rest. A better decoder on a frozen encoder leaves old tokens valid.
"""

import hashlib
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save  # pyright: ignore[reportUnknownVariableType]

from vidvq.config import is_mapping, validate
from vidvq.errors import UsageError
from vidvq.storage import attempt_path, canonical_json, pretty_json, read_json, sync_folder, write_atomic

FORMAT = "vidvq.checkpoint/1"
TRAINING = "training"
# The checkpoint that ships with vidvq.
BUNDLED = Path(__file__).parent.parent / "weights"
_STEP = re.compile(r"step-(\d{8})$")


@dataclass(frozen=True)
class Fingerprints:
    """Two SHA-256 hex digests that name the exact weights."""

    token: str
    decoder: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        path: the folder it came from.
        config: ``config.json``: ``model`` (its config), ``preprocessing``, ``step``, ``tensors`` (their names).
        tensors: names start with ``encoder.``, ``quantizer.`` or ``decoder.``.
        fingerprints: computed from the tensors and the config, and equal to those in the folder.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, np.ndarray]
    fingerprints: Fingerprints


@dataclass(frozen=True)
class _Config:
    """The fields of ``config.json``, beside its format."""

    model: dict[str, Any]
    preprocessing: dict[str, Any]
    step: int
    tensors: list[str]


def fingerprint(model: dict[str, Any], preprocessing: dict[str, Any], tensors: dict[str, np.ndarray]) -> Fingerprints:
    """Hash weights and the configuration that gives them their meaning.

    Args:
        model: the model's config; its ``decoder`` entry counts for the decoder, every other entry for the tokens.
        preprocessing: what is done to pixels before the encoder.
        tensors: by name; hashed by name, dtype, shape and bytes, in order of their names.
    """
    token_config = {name: value for name, value in model.items() if name != "decoder"}
    token = _digest({"model": token_config, "preprocessing": preprocessing}, tensors, ("encoder.", "quantizer."))
    return Fingerprints(token, _digest({"decoder": model.get("decoder")}, tensors, ("decoder.",)))


def write_checkpoint(
    folder: Path,
    model: dict[str, Any],
    preprocessing: dict[str, Any],
    tensors: dict[str, np.ndarray],
    step: int,
    training: Path | None = None,
) -> Fingerprints:
    """Write a checkpoint folder; it appears whole under its final name or not at all.

    Args:
        training: a folder of the trainer's own state, moved into the checkpoint.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    attempt = attempt_path(folder)
    prints = fingerprint(model, preprocessing, tensors)
    config = {
        "format": FORMAT,
        "model": model,
        "preprocessing": preprocessing,
        "step": step,
        "tensors": sorted(tensors),
    }
    try:
        attempt.mkdir()
        write_atomic(attempt / "model.safetensors", save(tensors, metadata={"format": FORMAT}))
        write_atomic(attempt / "config.json", pretty_json(config))
        write_atomic(attempt / "fingerprint", pretty_json(asdict(prints)))
        if training is not None:
            training.replace(attempt / TRAINING)
        if folder.exists():
            shutil.rmtree(folder)
        attempt.replace(folder)
    except BaseException:
        shutil.rmtree(attempt, ignore_errors=True)
        raise
    sync_folder(folder.parent)
    return prints


def step_folder(run: Path, step: int) -> Path:
    """Where a training run keeps the checkpoint of a step."""
    return run / "checkpoints" / f"step-{step:08d}"


def list_steps(run: Path) -> list[Path]:
    """The checkpoints of a training run, oldest first."""
    folder = run / "checkpoints"
    found: Iterable[Path] = folder.iterdir() if folder.is_dir() else ()
    return sorted(entry for entry in found if _STEP.search(entry.name) and is_checkpoint(entry))


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder has the files of a checkpoint."""
    return all((folder / name).is_file() for name in ("model.safetensors", "config.json", "fingerprint"))


def find_checkpoint(path: Path) -> Path:
    """A checkpoint folder, or the newest one of a training run.

    Raises:
        ValueError: there is none at ``path``.
    """
    if is_checkpoint(path):
        return path
    steps = list_steps(path)
    if not steps:
        raise UsageError(f"{path} is not a checkpoint (model.safetensors, config.json, fingerprint) nor a training run")
    return steps[-1]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, or the newest one of a training run, and prove that it is what its fingerprint names.

    Raises:
        ValueError: a file is missing or damaged, or the content does not match the fingerprint.
    """
    folder = find_checkpoint(path)
    config = read_json(folder / "config.json")
    stored = read_json(folder / "fingerprint")
    if not is_mapping(config) or config.get("format") != FORMAT:
        raise UsageError(f"{folder / 'config.json'} is not of format {FORMAT}")
    validate(_Config, config, f"{folder / 'config.json'}")
    try:
        tensors = load_file(folder / "model.safetensors")
    except (SafetensorError, ValueError, KeyError) as error:
        raise UsageError(f"{folder / 'model.safetensors'} is damaged: {error}; restore it from a copy") from error
    for name in sorted(set(config["tensors"]) ^ tensors.keys()):
        what = "has the unknown tensor" if name in tensors else "lacks the tensor"
        raise UsageError(f"{folder / 'model.safetensors'} {what} {name}; restore it from a copy")
    prints = fingerprint(config["model"], config["preprocessing"], tensors)
    if asdict(prints) != stored:
        is_prints = is_mapping(stored) and isinstance(stored.get("token"), str)
        raise UsageError(
            f"{folder}: weights or config do not match the fingerprint (token {prints.token[:12]}, "
            f"stored {stored['token'][:12] if is_prints else stored}); restore it from a copy"
        )
    return Checkpoint(folder, config, tensors, prints)


def _digest(config: dict[str, Any], tensors: dict[str, np.ndarray], prefixes: tuple[str, ...]) -> str:
    digest = hashlib.sha256(canonical_json(config))
    for name in sorted(tensors):
        if name.startswith(prefixes):
            tensor = np.ascontiguousarray(tensors[name])
            digest.update(canonical_json([name, str(tensor.dtype), list(tensor.shape)]))
            digest.update(tensor.tobytes())
    return digest.hexdigest()
