"""``training/state.json`` of a checkpoint: the counters of a run, and the digests of the files beside it."""

from dataclasses import dataclass, field
from pathlib import Path

from vidvq.config import is_mapping
from vidvq.errors import UsageError
from vidvq.formats.schema import Count, Digest, FileName, parse
from vidvq.storage import file_exists, read_json, safe_join, sha256_file

FORMAT = "vidvq.training/2"
OLD_FORMAT = "vidvq.training/1"
FOLDER, STATE = "training", "state.json"


@dataclass(frozen=True)
class StateFile:
    """The fields of ``state.json``, without its format and digest; see :class:`vidvq.training.training_state.Progress`.

    Attributes:
        sha256: SHA-256 (hex) of each file of tensors, by its name without the suffix.
    """

    sha256: dict[FileName, Digest]
    step: Count = 0
    batch: Count = 0
    average_updates: Count = 0
    lecam: tuple[float, float] = (0.0, 0.0)
    losses: list[float] = field(default_factory=list[float])
    rollbacks: Count = 0
    best: tuple[float, Count] | None = None


def read_state_file(folder: Path) -> StateFile:
    """Read ``state.json`` of a training folder, in the current format or the one before it.

    Raises:
        UsageError: the file is damaged or was changed, or its format is unknown.
    """
    path = folder / STATE
    fields = read_json(path)
    old = is_mapping(fields) and fields.get("format") == OLD_FORMAT
    remedy = "restore it from a copy, or remove this checkpoint to resume from the previous one"
    return parse(StateFile, fields, OLD_FORMAT if old else FORMAT, f"{path}", remedy)


def is_of_another_format(folder: Path) -> bool:
    """Whether ``state.json`` is readable JSON of a format that this version does not know."""
    try:
        fields = read_json(folder / STATE)
    except UsageError:
        return False
    return is_mapping(fields) and fields.get("format") not in {FORMAT, OLD_FORMAT}


def training_damage(folder: Path) -> str | None:
    """Describe the first damage of a training folder; None if it is whole, or there is none."""
    if not file_exists(folder / STATE):
        return None
    try:
        state = read_state_file(folder)
    except UsageError:
        return f"has a damaged {STATE}"
    for name, digest in state.sha256.items():
        path = safe_join(folder, f"{name}.safetensors")
        if not file_exists(path) or sha256_file(path) != digest:
            return f"has a torn {path.name}"
    return None
