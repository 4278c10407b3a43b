"""Checkpoints: a folder with ``model.safetensors``, ``config.json`` and ``fingerprint``; optionally ``training/``.

The *token* fingerprint covers everything that tokens depend on: encoder, quantizer and preprocessing. The *decoder*
fingerprint covers the rest. Old tokens stay valid when a decoder is retrained on a frozen encoder.
"""

import hashlib
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from safetensors import SafetensorError
from safetensors.numpy import load, load_file, save  # pyright: ignore[reportUnknownVariableType]

from vidvq.config import is_mapping
from vidvq.errors import UsageError
from vidvq.formats.schema import Count, Digest, Label, parse
from vidvq.formats.training_state import FOLDER as TRAINING
from vidvq.formats.training_state import training_damage
from vidvq.storage import (
    attempt_path,
    canonical_json,
    file_exists,
    is_remote,
    pretty_json,
    read_file,
    read_json,
    resolve_path,
    sha256_bytes,
    sha256_file,
    sync_folder,
    write_atomic,
)

FORMAT = "vidvq.checkpoint/1"
GENERATOR_FORMAT = "vidvq.generator/1"
# The checkpoint that ships with vidvq.
BUNDLED = Path(__file__).parent.parent / "weights"
CONFIG, WEIGHTS, PRINTS = "config.json", "model.safetensors", "fingerprint"
_PARTS = ("encoder.", "quantizer.", "decoder.")
_STEP = re.compile(r"step-(\d{8})")


def resolve_checkpoint(name: str | Path) -> Path:
    """Resolve the name of a checkpoint: a path, a URL, or ``bundled`` for the one that ships with vidvq.

    Raises:
        UsageError: see :func:`vidvq.storage.resolve_path`.
    """
    return BUNDLED if str(name) == "bundled" and not Path(name).exists() else resolve_path(name)


def checkpoint_name(path: Path) -> str:
    """Name of a checkpoint in messages: its path, or ``bundled``."""
    return "bundled" if path == BUNDLED else str(path)


@dataclass(frozen=True)
class Fingerprints:
    """Two SHA-256 digests (hex) that name the exact weights.

    Attributes:
        token: that of encoder, quantizer and preprocessing; the same one gives the same tokens.
        decoder: that of the decoder.
    """

    token: str
    decoder: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        path: folder of the checkpoint.
        config: content of ``config.json``: ``model`` (a config), ``preprocessing``, ``step``, ``tensors`` (names).
        tensors: weights by name; names start with ``encoder.``, ``quantizer.`` or ``decoder.``.
        fingerprints: fingerprints of the tensors and the config, equal to those in the folder.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, np.ndarray]
    fingerprints: Fingerprints


@dataclass(frozen=True)
class _Config:
    """The fields of ``config.json``, without its format."""

    model: dict[str, Any]
    preprocessing: dict[str, Any]
    step: Count
    tensors: tuple[Label, ...]


@dataclass(frozen=True)
class _PrintsFile:
    """The JSON of ``fingerprint``; ``files`` has the SHA-256 of the other files by name, except in older versions."""

    token: Digest
    decoder: Digest
    files: Annotated[dict[str, Digest], Field(min_length=1)] = field(default_factory=dict[str, str])


def fingerprint(model: dict[str, Any], preprocessing: dict[str, Any], tensors: dict[str, np.ndarray]) -> Fingerprints:
    """Hash weights and their configuration.

    Args:
        model: config of the model. Its ``decoder`` entry is part of the decoder fingerprint, all others of the token
            fingerprint.
        tensors: weights by name. Hashed by name, dtype, shape and bytes, in order of names.
    """
    token_config = {name: value for name, value in model.items() if name != "decoder"}
    token = digest_tensors({"model": token_config, "preprocessing": preprocessing}, tensors, ("encoder.", "quantizer."))
    return Fingerprints(token, digest_tensors({"decoder": model.get("decoder")}, tensors, ("decoder.",)))


def write_checkpoint(
    folder: Path,
    model: dict[str, Any],
    preprocessing: dict[str, Any],
    tensors: dict[str, np.ndarray],
    step: int,
    training: Path | None = None,
) -> Fingerprints:
    """Write a checkpoint folder atomically, replacing one of the same name.

    Args:
        training: folder with the state of the trainer, moved into the checkpoint; None for none.
    """
    prints = fingerprint(model, preprocessing, tensors)
    config = {"format": FORMAT, "model": model, "preprocessing": preprocessing, "step": step}
    write_model_folder(folder, config, asdict(prints), tensors, training)
    return prints


def write_model_folder(
    folder: Path,
    config: dict[str, Any],
    fingerprints: dict[str, str],
    tensors: dict[str, np.ndarray],
    training: Path | None = None,
) -> None:
    """Write the three files of a checkpoint of any kind, and its training state, atomically.

    Args:
        folder: the checkpoint's folder; one of the same name is replaced.
        config: content of ``config.json`` without ``tensors``; its ``format`` names the kind.
        fingerprints: content of ``fingerprint``, without the digests of the other files.
        training: folder with the state of the trainer, moved into the checkpoint; None for none.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    attempt = attempt_path(folder)
    try:
        attempt.mkdir()
        files = {
            CONFIG: pretty_json(config | {"tensors": sorted(tensors)}),
            # The library writes the memory of an array, whatever its strides.
            WEIGHTS: save(
                {name: np.asarray(array, order="C") for name, array in tensors.items()},
                metadata={"format": str(config["format"])},
            ),
        }
        for name, data in files.items():
            write_atomic(attempt / name, data)
        digests = {name: sha256_bytes(data) for name, data in files.items()}
        write_atomic(attempt / PRINTS, pretty_json(fingerprints | {"files": digests}))
        if training is not None:
            training.replace(attempt / TRAINING)
            sync_folder(attempt)
        # Never half deleted under its own name, whenever this process is killed.
        before = attempt_path(folder)
        if folder.exists():
            folder.replace(before)
        attempt.replace(folder)
        shutil.rmtree(before, ignore_errors=True)
    except BaseException:
        shutil.rmtree(attempt, ignore_errors=True)
        raise
    sync_folder(folder.parent)


def step_folder(run: Path, step: int) -> Path:
    """Folder of the checkpoint of a step in a training run."""
    return run / "checkpoints" / f"step-{step:08d}"


def list_steps(run: Path, damaged: bool = False) -> list[Path]:
    """The checkpoints of a training run, oldest first; ``damaged`` includes folders that lack files."""
    folder = run / "checkpoints"
    found: Iterable[Path] = folder.iterdir() if folder.is_dir() else ()
    return sorted(entry for entry in found if _STEP.fullmatch(entry.name) and (damaged or is_checkpoint(entry)))


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds the files of a checkpoint."""
    return all(file_exists(folder / name) for name in (WEIGHTS, CONFIG, PRINTS))


def is_generator(folder: Path) -> bool:
    """Whether a checkpoint is that of a generator; False if that cannot be read."""
    try:
        config = read_json(folder / CONFIG)
    except UsageError:
        return False
    return is_mapping(config) and config.get("format") == GENERATOR_FORMAT


def find_checkpoint(path: Path) -> Path:
    """Folder of the checkpoint at ``path``, or of the newest one in a training run.

    Raises:
        UsageError: ``path`` is neither.
    """
    if is_checkpoint(path):
        return path
    steps = list_steps(path)
    if not steps and not is_remote(path) and not path.exists():
        raise UsageError(f"{path} does not exist; give a checkpoint or a training run")
    if not steps:
        raise UsageError(
            f"{path} is not a checkpoint (model.safetensors, config.json, fingerprint) or a training run; give the "
            "folder of one"
        )
    return steps[-1]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, or the newest one of a training run, and verify its fingerprints.

    Raises:
        UsageError: a file is missing or damaged, or the content does not match the fingerprint.
    """
    folder = find_checkpoint(path)
    if is_generator(folder):
        raise UsageError(f"{folder} is a generator, of vidvq generate train; give the tokenizer of its tokens")
    config, stored = read_json(folder / CONFIG), _read_prints(folder)
    parse(_Config, config, FORMAT, f"{folder / CONFIG}")
    tensors = read_tensors(folder / WEIGHTS)
    if foreign := [name for name in tensors if not name.startswith(_PARTS)]:
        raise UsageError(
            f"{folder / WEIGHTS} has the unknown tensor {foreign[0][:80]}; names start with {', '.join(_PARTS)}"
        )
    for name in sorted(set(config["tensors"]) ^ tensors.keys()):
        what = "has the unknown tensor" if name in tensors else "lacks the tensor"
        raise UsageError(f"{folder / WEIGHTS} {what} {name}; restore it from a copy")
    prints = fingerprint(config["model"], config["preprocessing"], tensors)
    if prints != Fingerprints(stored.token, stored.decoder):
        raise UsageError(
            f"{folder}: weights or config do not match the fingerprint (token {prints.token[:12]}, "
            f"stored {stored.token[:12]}); restore it from a copy"
        )
    return Checkpoint(folder, config, tensors, prints)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read weights by name, from a disk or an object store.

    Raises:
        UsageError: the file is damaged.
    """
    try:
        return load(read_file(path)) if is_remote(path) else load_file(path)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is damaged: {error}; restore it from a copy") from error


def verify_checkpoint(folder: Path) -> tuple[list[str], list[str]]:
    """Verify all bytes of a checkpoint, and of its training state if it has one.

    Returns:
        One line per problem, and one line per check that was skipped because an older version recorded no digest.
    """
    try:
        read_checkpoint(folder)
        stored = _read_prints(folder).files
    except UsageError as error:
        return [str(error)], []
    if not stored:
        return [], [f"an older version recorded no digests of {CONFIG} and {WEIGHTS}; the step is not verified"]
    return [*changed_files(folder, stored), *changed_training(folder)], []


def changed_training(folder: Path) -> list[str]:
    """One line if the training state of a checkpoint is not the one that was written."""
    damage = training_damage(folder / TRAINING)
    return [f"{TRAINING}: {damage}; restore it from a copy, or remove the folder"] if damage else []


def changed_files(folder: Path, digests: Mapping[str, str]) -> list[str]:
    """Name the files of a checkpoint whose bytes are not those that were written.

    Args:
        digests: SHA-256 of each file by name (hex), as ``fingerprint`` has them.
    """
    return [
        f"{name}: was changed after it was written; restore it from a copy"
        for name in sorted({CONFIG, WEIGHTS, *digests})
        if name not in {CONFIG, WEIGHTS} or sha256_file(folder / name) != digests.get(name)
    ]


def _read_prints(folder: Path) -> _PrintsFile:
    stored = read_json(folder / PRINTS)
    # The file has no format field.
    return parse(
        _PrintsFile, {"format": FORMAT} | stored if is_mapping(stored) else stored, FORMAT, str(folder / PRINTS)
    )


def digest_tensors(config: dict[str, Any], tensors: dict[str, np.ndarray], prefixes: tuple[str, ...] = ("",)) -> str:
    """SHA-256 (hex) of a config and of the tensors whose names start with one of ``prefixes``, in order of names."""
    digest = hashlib.sha256(canonical_json(config))
    for name in sorted(tensors):
        if name.startswith(prefixes):
            tensor = np.ascontiguousarray(tensors[name])
            digest.update(canonical_json([name, str(tensor.dtype), list(tensor.shape)]))
            digest.update(tensor.tobytes())
    return digest.hexdigest()
