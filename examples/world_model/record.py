r"""Plays Crafter (https://pypi.org/project/crafter/, MIT licence) by a script, and records video with the actions.

    pip install crafter
    python examples/world_model/record.py OUT --episodes 40 --frames 450 --seed 0

Writes `OUT/000.mp4` ... and `OUT/list.jsonl`, whose rows have the path of a video and the action that led to each of
its frames. The player walks at random. The game is made easier for a small model: it is always noon, because nights are
dark and noisy, the player cannot die, and no creatures appear or vanish. Equal seeds give equal episodes.
"""

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path

import crafter
import numpy as np

from vidvq.video.write import TimedFrame, VideoShape, write_frames

# Action of the game, and what the generator sees of it: right, down, use.
MOVES = {1: (-1, 0, 0), 2: (1, 0, 0), 3: (0, -1, 0), 4: (0, 1, 0)}
STAND, USE = 0, 5
ACTIONS = MOVES | {STAND: (0, 0, 0), USE: (0, 0, 1)}
FPS = 8
# Nine cells of eight pixels, so that a cell is a latent.
SIZE = (72, 72)


class Wanderer:
    """Walks where it can: keeps a direction for some frames, and rarely stands still or uses what it faces."""

    def __init__(self, seed: int) -> None:
        self._random, self._direction, self._left = np.random.default_rng(seed), 1, 0

    def act(self, game: crafter.Env) -> int:
        """The next action."""
        if self._random.random() < 0.05:
            return int(self._random.choice([STAND, USE]))
        player = game._player
        free = [
            action
            for action, (right, down, _) in MOVES.items()
            if player.is_free(player.pos + np.array([right, down]), crafter.constants.walkable)
        ]
        if not free:
            return USE
        if not self._left or self._direction not in free:
            self._direction, self._left = int(self._random.choice(free)), int(self._random.integers(2, 9))
        self._left -= 1
        return self._direction


def play(seed: int, frames: int) -> Iterator[tuple[np.ndarray, tuple[int, ...]]]:
    """Yield frames `h w c` uint8 of one episode, each with the action that led to it."""
    game, player = crafter.Env(size=SIZE, seed=seed), Wanderer(seed)
    game._update_time = lambda: setattr(game._world, "daylight", 1.0)
    # The game chooses among creatures in the order of memory addresses, so a seed would not repeat.
    game._balance_chunk = lambda *_: None
    yield game.reset(), ACTIONS[STAND]
    for _ in range(frames - 1):
        action = player.act(game)
        game._player.health = 9
        yield game.step(action)[0], ACTIONS[action]


def record(out: Path, index: int, seed: int, frames: int) -> dict[str, str]:
    """Record an episode; returns its row of the list."""
    name, (pictures, actions) = f"{index:03d}.mp4", zip(*play(seed, frames), strict=True)
    shape = VideoShape(len(pictures), SIZE[1], SIZE[0], Fraction(1, FPS))
    timed = (TimedFrame(frame, Fraction(at, FPS), Fraction(at + 1, FPS)) for at, frame in enumerate(pictures))
    write_frames(out / name, "mp4", timed, shape, crf=4)
    return {"path": name, "played": json.dumps(actions)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--frames", type=int, default=450)
    parser.add_argument("--seed", type=int, default=0, help="of the first episode")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        jobs = [
            pool.submit(record, options.out, index, options.seed + index, options.frames)
            for index in range(options.episodes)
        ]
        rows = [job.result() for job in jobs]
    (options.out / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
