"""Train a small transformer to predict the next id, from token shards or from a megatron export, on a CPU.

python examples/next_token.py runs/tokens
python examples/next_token.py runs/megatron --steps 300

The baseline is the entropy of the ids: the loss of a model that knows only the frequency of each id.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from vidvq.errors import UsageError
from vidvq.export import ExportConfig, Layout, grid_to_sequence
from vidvq.formats.token_shard import read_tokenizer_card, read_tokens

MAX_VOCABULARY = 200_000


def read_token_shards(folder: Path) -> tuple[list[np.ndarray], int]:
    """The clips of a directory of token shards as sequences of ids, and the size of the vocabulary."""
    layout = Layout(read_tokenizer_card(folder), ExportConfig())
    shards = sorted(folder.glob("tokens-*.tar"))
    clips = [grid_to_sequence(codes, layout) for shard in shards for _, codes, _ in read_tokens(shard, layout.card)]
    return clips, layout.vocabulary


def read_megatron(folder: Path) -> tuple[list[np.ndarray], int]:
    """The same from a megatron export: its ``.bin`` files are bare ids, and each clip begins with a special token."""
    header = json.loads((folder / "export.json").read_text())
    parts = [np.memmap(folder / f"{part}.bin", dtype=header["dtype"], mode="r") for part in header["parts"]]
    ids = np.concatenate(parts).astype(np.int64)
    return np.split(ids, np.flatnonzero(ids == header["specials"]["clip_start"])[1:]), header["vocabulary"]


class NextToken(nn.Module):
    """A causal transformer over ids: ``b n -> b n vocabulary``."""

    def __init__(self, vocabulary: int, context: int, width: int = 128, depth: int = 2) -> None:
        super().__init__()
        self.ids = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.zeros(context, width))
        block = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.out = nn.Linear(width, vocabulary)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        return self.out(self.blocks(self.ids(ids) + self.positions[: ids.shape[1]], mask=mask, is_causal=True))


def entropy(ids: np.ndarray) -> float:
    """Entropy of the frequencies of the ids (nats per id)."""
    shares = np.bincount(ids) / len(ids)
    return float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())


def windows(ids: np.ndarray, context: int) -> torch.Tensor:
    """A stream of ids cut into rows of ``context + 1``; the remainder is dropped."""
    return torch.from_numpy(ids[: len(ids) // (context + 1) * (context + 1)].reshape(-1, context + 1))


def loss_of(model: NextToken, rows: torch.Tensor) -> torch.Tensor:
    """Mean loss (nats per id)."""
    return functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


def train(
    clips: list[np.ndarray], vocabulary: int, steps: int, batch: int = 4, context: int = 256
) -> tuple[list[float], float]:
    """Train on all clips but every tenth (of fewer than ten, the last); return the losses and the held-out loss."""
    torch.manual_seed(0)
    first = min(9, len(clips) - 1)
    held_out = windows(np.concatenate(clips[first::10]), context)
    stream = torch.from_numpy(np.concatenate([clip for index, clip in enumerate(clips) if index % 10 != first]))
    model = NextToken(vocabulary, context)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses: list[float] = []
    for _ in range(steps):
        starts = torch.randint(len(stream) - context, (batch,)).tolist()
        loss = loss_of(model, torch.stack([stream[start : start + context + 1] for start in starts]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        # One by one: a last batch of fewer rows would count as much as the others.
        return losses, float(np.mean([loss_of(model, row[None]).item() for row in held_out]))


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="token shards, or a megatron export")
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    read = read_megatron if (arguments.folder / "export.json").is_file() else read_token_shards
    try:
        clips, vocabulary = read(arguments.folder)
    except UsageError as error:
        parser.error(str(error))
    if vocabulary > MAX_VOCABULARY:
        parser.error(f"a vocabulary of {vocabulary} ids is too large for a table of logits; use smaller codebooks")
    if len(clips) < 2:
        parser.error(f"{arguments.folder} has {len(clips)} clips; give 2 or more, because one is held out")
    losses, held_out = train(clips, vocabulary, arguments.steps)
    ids = np.concatenate(clips)
    print(f"{len(ids)} ids of {vocabulary} in {len(clips)} clips")
    print(f"a uniform guess {math.log(vocabulary):.3f}, entropy {entropy(ids):.3f}")
    print(f"loss {losses[0]:.3f} at the first step, {np.mean(losses[-10:]):.3f} over the last 10 of {len(losses)}")
    print(f"loss {held_out:.3f} on held-out clips")


if __name__ == "__main__":
    main()
