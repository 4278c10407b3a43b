"""Train a small transformer to tell the next id, from token shards or from a megatron export: the loss goes down.

python examples/next_token.py runs/tokens
python examples/next_token.py runs/megatron --steps 200
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from vidvq.export import ExportConfig, Layout, grid_to_sequence
from vidvq.formats.token_shard import read_tokenizer_card, read_tokens


def read_token_shards(folder: Path) -> tuple[np.ndarray, int]:
    """All clips of a directory of token shards as one stream of ids, and the size of the vocabulary."""
    layout = Layout(read_tokenizer_card(folder), ExportConfig())
    shards = sorted(folder.glob("tokens-*.tar"))
    clips = [grid_to_sequence(codes, layout) for shard in shards for _, codes, _ in read_tokens(shard, layout.card)]
    return np.concatenate(clips), layout.vocabulary


def read_megatron(folder: Path) -> tuple[np.ndarray, int]:
    """The same from a megatron export: its ``.bin`` files are the ids alone."""
    header = json.loads((folder / "export.json").read_text())
    parts = [np.memmap(folder / f"{part}.bin", dtype=header["dtype"], mode="r") for part in header["parts"]]
    return np.concatenate(parts).astype(np.int64), header["vocabulary"]


class NextToken(nn.Module):
    """A causal transformer over ids: ``b n -> b n vocabulary``."""

    def __init__(self, vocabulary: int, context: int, width: int = 128, depth: int = 2) -> None:
        super().__init__()
        self.ids = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.zeros(context, width))
        block = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.out = nn.Linear(width, vocabulary)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        return self.out(self.blocks(self.ids(ids) + self.places[: ids.shape[1]], mask=mask, is_causal=True))


def train(ids: np.ndarray, vocabulary: int, steps: int, batch: int = 8, context: int = 128) -> list[float]:
    """Train on windows of a stream of ids; returns the loss of each step, in nats per id."""
    torch.manual_seed(0)
    context = min(context, len(ids) - 2)
    stream = torch.from_numpy(ids)
    model = NextToken(vocabulary, context)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses: list[float] = []
    for _ in range(steps):
        starts = torch.randint(len(stream) - context, (batch,)).tolist()
        window = torch.stack([stream[start : start + context + 1] for start in starts])
        loss = functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="token shards, or a megatron export")
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    read = read_megatron if (arguments.folder / "export.json").is_file() else read_token_shards
    ids, vocabulary = read(arguments.folder)
    losses = train(ids, vocabulary, arguments.steps)
    print(f"{len(ids)} ids of {vocabulary}; a uniform guess has loss {math.log(vocabulary):.3f}")
    print(f"loss {losses[0]:.3f} at the first step, {np.mean(losses[-10:]):.3f} over the last 10 of {len(losses)}")


if __name__ == "__main__":
    main()
