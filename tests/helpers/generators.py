"""Generators with random weights."""

from pathlib import Path

from vidvq.formats.generator import GeneratorCard, write_generator
from vidvq.formats.token_shard import TokenizerCard
from vidvq.generate.network.build import build_network

MODEL = {"width": 24, "depth": 2, "heads": 2, "mlp": 2.0, "attention": "full", "dropout": 0.0}


def make_card(tokenizer: TokenizerCard, **changes) -> GeneratorCard:
    """Return the card of a tiny generator for every task."""
    fields = {
        "tokenizer": tokenizer,
        "objective": "masked",
        "tasks": ("generate", "predict", "interpolate", "fill"),
        "shapes": ((3, 4, 5),),
        "fps": 25.0,
        "model": MODEL,
    }
    return GeneratorCard(**(fields | changes))


def write_random(folder: Path, card: GeneratorCard, seed: int = 0) -> Path:
    """Write a generator whose random weights are large enough that its samples depend on all inputs."""
    weights = build_network(card, seed).state_dict()
    scale = {name: 40 if name.startswith("embeddings.") else 4 for name in weights}
    tensors = {name: (weight * scale[name]).numpy() for name, weight in weights.items()}
    write_generator(folder, card, tensors, 1)
    return folder
