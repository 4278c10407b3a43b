"""Construction of a generator's network from its card, and loading of its weights."""

from typing import Any

import numpy as np
import torch

from vidvq.config import validate
from vidvq.errors import UsageError
from vidvq.formats.generator import Generator, GeneratorCard
from vidvq.generate.conditions import actions_per_latent
from vidvq.generate.config import BLANKED_TASKS
from vidvq.generate.network.block import TransformerConfig
from vidvq.generate.network.code_vectors import DigitVectors
from vidvq.generate.network.transformer import VideoTransformer


def build_network(card: GeneratorCard, seed: int = 0) -> VideoTransformer:
    """Build the network with initial weights drawn from the seed; the global random state is unchanged.

    Raises:
        UsageError: the card holds an invalid model config.
    """
    config = validate(TransformerConfig, card.model, "the generator's model")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return VideoTransformer(
            config,
            tuple(book.size for book in card.tokenizer.codebooks),
            len(card.labels),
            actions_per_latent(card),
            bool(BLANKED_TASKS & set(card.tasks)),
            text_width=card.text_width,
        )


@torch.no_grad()
def start_from_vectors(network: VideoTransformer, vectors: list[DigitVectors], seed: int) -> None:
    """Replace the embeddings and output layers by a random projection of the code vectors, the same for both.

    Distances are kept on average, and so are the standard deviations of the initial weights.

    Args:
        vectors: result of :func:`~vidvq.generate.network.code_vectors.code_vectors`.
    """
    rng = torch.Generator().manual_seed(seed)
    for embedding, head, tables in zip(network.embeddings, network.heads, vectors, strict=True):
        width = network.config.width
        for table, output, codes in zip(embedding.tables, head.outputs, tables, strict=True):  # type: ignore[union-attr,arg-type]
            projected = (codes - codes.mean(0)) @ torch.randn(codes.shape[1], width, generator=rng)
            for weight in (table.weight, output.weight):
                weight.copy_(projected * (weight.std() / projected.std().clamp(min=1e-9)))


def load_network(generator: Generator) -> VideoTransformer:
    """Build the network of a generator with its weights, in evaluation mode and without gradients.

    Raises:
        UsageError: the weights do not fit the network, or are not finite fp32 numbers.
    """
    tensors: dict[str, Any] = {name: torch.from_numpy(np.asarray(array)) for name, array in generator.tensors.items()}
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not tensor.isfinite().all():
            raise UsageError(
                f"{generator.path}: the weights {name} are not finite fp32 numbers; give an earlier checkpoint"
            )
    try:
        # On the meta device, so that a size that the weights do not have costs no memory.
        with torch.device("meta"):
            network = build_network(generator.card)
        network.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise UsageError(
            f"{generator.path}: the weights do not fit the network: {str(error).splitlines()[-1].strip()}"
        ) from error
    return network.eval().requires_grad_(False)
