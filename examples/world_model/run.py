"""A world model from nothing: plays a game, trains a tokenizer and a generator, scores it, and serves it.

    pip install crafter
    python examples/world_model/run.py runs/world

Finished stages are skipped, so the same command resumes. The last stage, `play`, runs until Ctrl-C.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from shlex import join
from time import monotonic

HERE = Path(__file__).parent
# First seed, episodes, and frames of each.
SPLITS = {"train": ("0", "40", "450"), "heldout": ("1000", "8", "72")}
# Short clips of the size that the game is drawn in.
CLIP = ["clip.num_frames=9", "clip.short_side=null", "clip.crf=8", "lists.carry=[played]", "clips_per_shard=128"]


def commands(out: Path, seed: int) -> list[list[str]]:
    """The commands, in order."""
    videos, clips, tokens, tokenizer = out / "videos", out / "clips", out / "tokens", out / "tokenizer"
    vidvq, generator = [sys.executable, "-m", "vidvq"], out / f"generator-{seed}"
    lines: list[list[str]] = []
    for split, (first, episodes, frames) in SPLITS.items():
        record = [sys.executable, str(HERE / "record.py"), str(videos / split)]
        if not (videos / split / "list.jsonl").is_file():
            lines.append([*record, "--seed", first, "--episodes", episodes, "--frames", frames])
        lines.append([*vidvq, "shard", str(videos / split / "list.jsonl"), "--out", str(clips / split), *CLIP])
        lines.append([*vidvq, "map", str(clips / split), "--function", f"{HERE / 'actions.py'}:actions"])
    data = f"data.clips={clips / 'train'}"
    lines.append([*vidvq, "train", str(HERE / "tokenizer.yaml"), data, f"out={tokenizer}"])
    for split in SPLITS:
        job = ["tokenize", str(clips / split), "--checkpoint", str(tokenizer), "--out", str(tokens / split)]
        lines.append([*vidvq, *job])
    given = [f"pixels.clips=[{clips / 'train'}]", f"seed={seed}", "--config", str(HERE / "generator.yaml")]
    lines.append([*vidvq, "generate", "train", str(tokens / "train"), "--out", str(generator), *given])
    scored = out / f"scores-{seed}.json"
    scores = ["--clips", str(clips / "heldout"), "--checkpoint", str(tokenizer), "--out", str(scored)]
    lines.append([*vidvq, "generate", "evaluate", str(generator), str(tokens / "heldout"), *scores, "clips=64"])
    keys = ["--checkpoint", str(tokenizer), "--tokens", str(tokens / "heldout"), "--config", str(HERE / "play.yaml")]
    lines.append([*vidvq, "generate", "play", str(generator), *keys])
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the generator")
    parser.add_argument("--no-play", action="store_true", help="stop after the scores")
    options = parser.parse_args()
    started = monotonic()
    for command in commands(options.out, options.seed):
        if options.no_play and "play" in command:
            break
        sys.stderr.write(f"\n{monotonic() - started:.0f} s  $ {join(command)}\n")
        if code := subprocess.run(command, check=False).returncode:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
