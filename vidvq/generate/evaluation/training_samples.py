"""The training samples of a generator, to start from and to find copies of."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vidvq.config import leaves, read_yaml
from vidvq.errors import UsageError
from vidvq.formats.generator import GeneratorCard
from vidvq.formats.token_index import index_tokens
from vidvq.log import warn
from vidvq.storage import resolve_path


def training_tokens(run: Path) -> list[Path]:
    """Return the directories of the training tokens that a run's config names; empty for a generator without a run."""
    for folder in (run, run.parent.parent):
        if (folder / "config.yaml").is_file():
            named = dict(leaves(read_yaml(folder / "config.yaml"))).get("data.tokens")
            # Another program may have written the file.
            return [resolve_path(each) for each in named if isinstance(each, str)] if isinstance(named, list) else []
    return []


def read_training_samples(run: Path, card: GeneratorCard, count: int) -> list[np.ndarray]:
    """Read the codes ``lt lh lw`` of training samples of a run; empty, with a warning, if they are unavailable.

    Args:
        count: largest number of samples, spread evenly over all.
    """
    folders = training_tokens(run)
    if not folders:
        warn(f"{run} has no config.yaml; skipping comparisons with the training tokens")
    try:
        locations = [location for folder in folders for location in index_tokens(folder)]
        # Evenly, because neighbors are often of one video.
        chosen = np.linspace(0, len(locations) - 1, min(count, len(locations))).round().astype(int)
        return [locations[at].read(card.tokenizer)[0] for at in chosen]
    except (UsageError, OSError) as error:
        warn(f"the training tokens cannot be read; skipping comparisons with them: {error}")
        return []


def nearest_distances(samples: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> list[float]:
    """Return for each sample ``lt lh lw`` the fraction of its codes that differ from the nearest of the others.

    Only samples of the same shape are compared; 1 if there is none.
    """
    by_shape: dict[tuple[int, ...], list[np.ndarray]] = defaultdict(list)
    for codes in others:
        by_shape[codes.shape].append(codes)
    return [min((float((codes != other).mean()) for other in by_shape[codes.shape]), default=1.0) for codes in samples]
