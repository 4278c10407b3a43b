"""Class and action conditions, read from columns of the source clips."""

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from vidvq.errors import UsageError
from vidvq.formats.clip_shard import read_infos
from vidvq.formats.columns import read_table
from vidvq.formats.commit import read_commits
from vidvq.formats.generator import GeneratorCard
from vidvq.formats.plan import read_plan
from vidvq.storage import canonical_json, resolve_path, sha256_bytes

_CARRIED = "carried."
# Number of frequent actions in the card of a generator.
_CHOICES = 12
# Number of names that an error message lists.
_MOST_NAMES = 12


def read_column(folders: Collection[str], name: str, keys: Collection[str] | None = None) -> dict[str, Any]:
    """Read one column of the clips in some directories.

    Args:
        name: column in ``CLIPS/columns/``, or ``carried.NAME`` for a field of the clips' JSON.
        keys: keys of the clips in the result; None for all.

    Returns:
        Values by clip key; clips without a value are omitted.

    Raises:
        UsageError: no clip has the column, or none of ``keys``.
    """
    found: dict[str, Any] = {}
    known: set[str] = set()
    for given in folders:
        folder = resolve_path(given)
        if name.startswith(_CARRIED):
            plan = read_plan(folder)
            for commit in read_commits(folder, plan.shard_names()):
                for key, info in read_infos(folder / commit.shard) if commit and commit.sha256 else ():
                    known.update(f"{_CARRIED}{column}" for column in info.carried)
                    found[key] = info.carried.get(name.removeprefix(_CARRIED))
        else:
            table = read_table(folder, {name})
            known |= table.names
            found |= {key: row.get(name) for key, row in table.rows.items()}
    found = {key: value for key, value in found.items() if value is not None}
    if not found:
        raise UsageError(f"no clip in {', '.join(folders)} has the column {name}; available: {_join_names(known)}")
    if keys is None:
        return found
    wanted = {key: value for key, value in found.items() if key in keys}
    if not wanted:
        raise UsageError(
            f"the column {name} in {', '.join(folders)} has no value for any of the {len(keys)} samples; give the "
            "clips that they were made from"
        )
    return wanted


@dataclass(frozen=True)
class Actions:
    """Actions of clips, and the statistics that normalize them.

    Attributes:
        by_key: actions ``t a`` float32 by clip key, one row per frame.
        mean: mean of each component over all frames.
        scale: standard deviation of each component; 1 for a constant one.
        choices: the most frequent actions, most frequent first.
    """

    by_key: dict[str, np.ndarray]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    choices: tuple[tuple[float, ...], ...] = ()


class ClipCondition(NamedTuple):
    """Conditions of one clip; none by default.

    Attributes:
        label: class index, from 1; 0 for none.
        actions: actions ``t a`` of the frames; None for none.
        text: text about the clip; None for none.
    """

    label: int = 0
    actions: np.ndarray | None = None
    text: str | None = None


NO_CONDITION = ClipCondition()


@dataclass(frozen=True)
class ClipConditions:
    """Conditions of clips by key; clips without an entry have no such condition.

    Attributes:
        labels: class index, from 1.
        actions: actions ``t a``.
        digest: SHA-256 of all of them (hex); "" without a directory of columns.
    """

    labels: dict[str, int] = field(default_factory=dict[str, int])
    actions: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    texts: dict[str, str] = field(default_factory=dict[str, str])
    digest: str = ""

    def identity(self) -> dict[str, str]:
        """Return the entry of the plan; none without a directory of columns."""
        return {"conditions": self.digest} if self.digest else {}

    def of(self, key: str) -> ClipCondition:
        """Return the conditions of one clip."""
        return ClipCondition(self.labels.get(key, 0), self.actions.get(key), self.texts.get(key))


def read_conditions(card: GeneratorCard, folder: str, keys: Collection[str]) -> ClipConditions:
    """Read the conditions that a generator was trained with from the columns of clips.

    Args:
        folder: directory of clip shards with the columns.
        keys: keys of the clips in the result; other clips are left out.

    Raises:
        UsageError: the generator was trained without conditions, none of the clips has a column, a class was never
            seen, or actions have another length than the generator's.
    """
    if not card.label and not card.actions and not card.text:
        raise UsageError(f"columns={folder}: this generator was trained without conditions")
    labels: dict[str, int] = {}
    actions: dict[str, np.ndarray] = {}
    texts: dict[str, str] = {}
    if card.label:
        labels = {key: label_index(card, value) for key, value in read_column([folder], card.label, keys).items()}
    if card.actions:
        found = read_actions([folder], card.actions, keys)
        check_action_width(card, len(found.mean))
        actions = found.by_key
    if card.text:
        texts = {key: str(value) for key, value in read_column([folder], card.text, keys).items()}
    values = [labels, {key: rows.tolist() for key, rows in actions.items()}, *([texts] if card.text else [])]
    return ClipConditions(labels, actions, texts, sha256_bytes(canonical_json(values)))


def parse_actions(value: Any, where: str) -> np.ndarray:
    """Parse the actions of one clip.

    Args:
        value: JSON list of numbers, or of lists of numbers of one length; as text or parsed.

    Returns:
        Actions ``t a`` float32.

    Raises:
        UsageError: the value is malformed.
    """
    try:
        rows = np.array(json.loads(value) if isinstance(value, str) else value, dtype=np.float32)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(f"{where} is not a JSON list with one number, or one list of numbers, per frame") from error
    rows = rows[:, None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or not rows.size or not np.isfinite(rows).all():
        raise UsageError(
            f"{where} has shape {rows.shape}; it must be a JSON list with a row of finite numbers per frame"
        )
    return rows


def read_actions(folders: Collection[str], name: str, keys: Collection[str] | None = None) -> Actions:
    """Read the actions of clips in some directories.

    Args:
        name: column, as for :func:`read_column`.
        keys: keys of the clips, as for :func:`read_column`.

    Raises:
        UsageError: none of the clips has the column, a value is malformed, or clips differ in the length of their rows.
    """
    values = read_column(folders, name, keys)
    by_key = {key: parse_actions(value, f"column {name} of {key}") for key, value in values.items()}
    widths = {rows.shape[1] for rows in by_key.values()}
    if len(widths) > 1:
        raise UsageError(
            f"column {name} has {min(widths)} to {max(widths)} numbers per frame; all clips need the same number"
        )
    frames = np.concatenate(list(by_key.values()))
    # In fp32 the deviation of a constant is not exactly 0, and sums over many frames lose digits.
    mean, scale = frames.mean(axis=0, dtype=np.float64), frames.std(axis=0, dtype=np.float64)
    scale[scale == 0] = 1
    rows, counts = np.unique(frames, axis=0, return_counts=True)
    choices = rows[np.argsort(-counts, kind="stable")[:_CHOICES]]
    return Actions(by_key, tuple(mean.tolist()), tuple(scale.tolist()), tuple(map(tuple, choices.tolist())))


def latent_actions(rows: np.ndarray, latents: np.ndarray, card: GeneratorCard) -> np.ndarray:
    """Gather and normalize the actions of latent frames.

    Args:
        rows: actions ``t a`` of the frames of a clip; the last row is repeated for frames beyond it.
        latents: indices ``lt`` of the latent frames.

    Returns:
        ``lt n`` float32: the actions of all frames of a group, concatenated.
    """
    r = card.tokenizer.temporal_factor
    # Latent frame 0 is frame 0; latent frame j is the r frames from 1 + (j - 1) r.
    frames = np.where(latents[:, None] == 0, 0, 1 + (latents[:, None] - 1) * r + np.arange(r))
    chosen = rows[np.minimum(frames, len(rows) - 1)]
    normalized = (chosen - np.array(card.action_mean)) / np.array(card.action_scale)
    return normalized.reshape(len(latents), -1).astype(np.float32)


def actions_per_latent(card: GeneratorCard) -> int:
    """Return the length of the action condition of one latent frame; 0 without actions."""
    return card.tokenizer.temporal_factor * len(card.action_mean)


def check_action_width(card: GeneratorCard, width: int) -> None:
    """Check that actions have as many components as those the generator was trained with.

    Args:
        width: components of an action.

    Raises:
        UsageError: they have another number.
    """
    if width != len(card.action_mean):
        raise UsageError(
            f"column {card.actions} has {width} numbers per frame; this generator was trained with "
            f"{len(card.action_mean)}"
        )


def label_index(card: GeneratorCard, name: Any) -> int:
    """Return the index of a class in the model, from 1.

    Raises:
        UsageError: the generator was trained without classes, or not on this one.
    """
    if not card.labels:
        raise UsageError(f"class={name}: this generator was trained without classes")
    if str(name) not in card.labels:
        raise UsageError(f"class={name} was never seen in training; available: {_join_names(card.labels)}")
    return 1 + card.labels.index(str(name))


def _join_names(names: Collection[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return (", ".join(sorted(names)[:_MOST_NAMES]) or "none") + more
