"""`vidvq generate play`: a browser page in which a generator continues clips, steered by keys."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidvq.errors import UsageError
from vidvq.formats.checkpoint import checkpoint_name
from vidvq.formats.generator import GeneratorCard, read_generator
from vidvq.formats.token_index import index_tokens
from vidvq.formats.token_location import TokenLocation
from vidvq.formats.token_shard import read_tokenizer_card
from vidvq.generate.network.build import load_network
from vidvq.generate.network.code_vectors import code_vectors
from vidvq.generate.requests import PlayConfig
from vidvq.generate.sampling.codes import given_latents
from vidvq.generate.sampling.rollout import Rollout
from vidvq.html_page import json_element, render_page
from vidvq.pretrained import load_tokenizer
from vidvq.view.pictures import png_strip
from vidvq.view.serve import Route, one_at_a_time

_TEMPLATE = Path(__file__).with_name("play.html.j2")
# Number of rollouts that are kept; older ones cannot be continued.
_KEPT = 8
# Longest rollout (latent frames), which bounds its memory.
_MAX_LATENTS = 10_000


class Game:
    """Starts and rollouts, for the page.

    Args:
        tokens: directory of token shards to start from.

    Attributes:
        keys: action of each key.
        idle: action without a key; None for one that is not known.

    Raises:
        UsageError: the generator was not trained to predict, the tokens or the tokenizer do not fit it, or the keys do
            not.
    """

    def __init__(self, run: Path, tokens: Path, checkpoint: Path, config: PlayConfig) -> None:
        torch.set_num_threads(1)
        generator = read_generator(run)
        self.card: GeneratorCard = generator.card
        if "predict" not in self.card.tasks:
            raise UsageError(f"{run} was not trained to predict; train one with tasks.predict=1")
        self._config, self._given = config, given_latents(self.card, config.given)
        self.card.refuse_other_tokenizer(read_tokenizer_card(tokens).token_fingerprint, str(tokens))
        self._starts = self._find_starts(tokens)
        self.keys = _keys(self.card, config)
        still = tuple(0.0 for _ in self.card.action_mean)
        self.idle = still if still and still in {*self.keys.values(), *self.card.action_choices} else None
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = load_network(generator).to(device)
        self._tokenizer, found = load_tokenizer(checkpoint)
        self.card.refuse_other_tokenizer(found.token_fingerprint, checkpoint_name(checkpoint))
        self._tokenizer.to(device)
        takes_mean = config.sampling.takes_mean
        self._vectors = code_vectors(self._tokenizer, self._network.digits) if takes_mean else None
        self._rollouts: dict[int, tuple[Rollout, int]] = {}
        self._number = 0

    @property
    def total(self) -> int:
        """Number of starts."""
        return len(self._starts)

    def start(self, start: int) -> dict[str, Any]:
        """Begin a rollout.

        Returns:
            Its number (``rollout``) and the frames of the start as data URIs (``frames``).

        Raises:
            UsageError: the start is out of range, or its shard is damaged.
        """
        if not 0 <= start < self.total:
            raise UsageError(f"start {start} is out of range; the starts are 0 to {self.total - 1}")
        location = self._starts[start]
        codes, info = location.read(self.card.tokenizer)
        seed = f"{self._config.seed}/{location.key}"
        size = (info.height * self._tokenizer.upscale, info.width * self._tokenizer.upscale)
        rollout = Rollout(
            self._network,
            self.card,
            self._tokenizer,
            codes[: self._given],
            self._config.sampling,
            seed,
            size,
            self._vectors,
        )
        self._number += 1
        self._rollouts[self._number] = (rollout, self._given)
        while len(self._rollouts) > _KEPT:
            del self._rollouts[min(self._rollouts)]
        return {"rollout": self._number, "frames": _pictures(rollout.start())}

    def step(self, rollout: int, key: int) -> dict[str, Any]:
        """Continue a rollout by one latent frame.

        Args:
            key: index of a key, or -1 for none.

        Returns:
            The frames as data URIs (``frames``).

        Raises:
            UsageError: the rollout has ended, or there is no such key.
        """
        found, latents = self._rollouts.get(rollout, (None, 0))
        if found is None or latents >= _MAX_LATENTS:
            raise UsageError(
                f"rollout {rollout} has ended: it has {_MAX_LATENTS} latent frames, or {_KEPT} newer ones have begun; "
                "press Start again"
            )
        if not -1 <= key < len(self.keys):
            raise UsageError(f"key {key} is out of range; there are {len(self.keys)} keys")
        action = self.idle if key < 0 else list(self.keys.values())[key]
        frames = found.step(action)
        self._rollouts[rollout] = (found, latents + 1)
        return {"frames": _pictures(frames)}

    def _find_starts(self, tokens: Path) -> list[TokenLocation]:
        _, lh, lw = self.card.limits
        found: list[TokenLocation] = []
        for location in index_tokens(tokens):
            grid = location.read_info().grid
            if grid[0] >= self._given and grid[1] <= lh and grid[2] <= lw:
                found.append(location)
        if not found:
            raise UsageError(f"{tokens} has no sample of {self._given} or more latent frames of up to {lh}x{lw}")
        # Evenly spread, because neighbors are often of one video.
        chosen = np.linspace(0, len(found) - 1, min(self._config.starts, len(found))).round().astype(int)
        return [found[at] for at in chosen]


def build_play_page(game: Game) -> bytes:
    """Build the page, UTF-8."""
    data = {
        "keys": [{"key": key, "action": list(action)} for key, action in game.keys.items()],
        "starts": game.total,
        "fps": game.card.fps,
    }
    values = {
        "data": json_element(data),
        "keys": [_label(key, action) for key, action in game.keys.items()],
        "column": game.card.actions,
        "fingerprint": game.card.tokenizer.token_fingerprint[:12],
    }
    return render_page(_TEMPLATE, values)


def play_routes(game: Game) -> dict[str, Route]:
    """Functions behind the paths that the page requests; query parameters are integers."""
    return one_at_a_time({"/start": game.start, "/step": game.step})


def _keys(card: GeneratorCard, config: PlayConfig) -> dict[str, tuple[float, ...]]:
    """The action of each key."""
    width = len(card.action_mean)
    if not width:
        if config.keys:
            raise UsageError("keys: this generator was trained without actions")
        return {}
    if config.keys is None:
        return {str(1 + index): action for index, action in enumerate(card.action_choices[:9])}
    for key, action in config.keys.items():
        if len(action) != width:
            raise UsageError(
                f"keys.{key} has {len(action)} numbers; an action of this generator has {width} (column {card.actions})"
            )
    return config.keys


def _label(key: str, action: tuple[float, ...]) -> tuple[str, str]:
    """Name of a key and its action, as the page shows them."""
    return "Space" if key == " " else key, ", ".join(f"{number:g}" for number in action)


def _pictures(frames: np.ndarray) -> list[str]:
    return [png_strip(frame) for frame in frames]
