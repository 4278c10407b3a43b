"""How much of each codebook is in use, over a window of steps and all ranks."""

from collections.abc import Iterator

import torch
from torch import Tensor

from vidvq.metrics.codes import use_of
from vidvq.model import VideoTokenizer
from vidvq.train.world import World, summed

# Of a codebook, in tokens per code: fewer than this say nothing of the codes that were not seen.
_ENOUGH = 10


class CodeUsage:
    """Counts codes in windows of ``every`` steps; what it tells is of the last whole window and the present one."""

    def __init__(self, tokenizer: VideoTokenizer, every: int, world: World) -> None:
        self._books, self._every, self._world = tokenizer.codebooks, every, world
        quantizer = tokenizer.config.quantizer
        parts = [part for part in (quantizer.spatial, quantizer.temporal) if part]
        # Until its codes are placed a codebook has no use to speak of.
        self._settled = every + max(getattr(getattr(part, "layer", part), "warmup", 0) for part in parts)
        self.counts = {book.name: torch.zeros(2, book.size, device=world.device) for book in self._books}

    def add(self, codes: Tensor) -> None:
        """Count the codes ``b lt lh lw`` of one pass."""
        for name, part in self._split(codes):
            counts = self.counts[name]
            counts[1] += torch.bincount(part.flatten(), minlength=counts.shape[1])

    def turn(self, done: int) -> None:
        """End a step; a window that is full becomes the last whole one."""
        if done % self._every == 0:
            for counts in self.counts.values():
                counts[0] = counts[1]
                counts[1] = 0

    def measure(self) -> dict[str, float]:
        """Share of codes in use, perplexity and number of dead codes, by codebook; every rank calls it."""
        metrics: dict[str, float] = {}
        for book in self._books:
            counts = summed(self.counts[book.name].sum(dim=0), self._world)
            use = use_of(book.name, counts.cpu().numpy())
            metrics[f"usage_{book.name}"], metrics[f"perplexity_{book.name}"] = use.share, use.perplexity
            metrics[f"dead_{book.name}"] = float(use.size - use.used)
            metrics[f"tokens_{book.name}"] = float(use.tokens)
        return metrics

    def alarms(self, metrics: dict[str, float], low: float, step: int) -> dict[str, str]:
        """A line for each codebook of which too little is in use, where enough was seen to say so."""
        if step < self._settled:
            return {}
        return {
            book.name: f"only {metrics[f'usage_{book.name}']:.0%} of the {book.size} {book.name} codes are in use"
            for book in self._books
            if metrics[f"usage_{book.name}"] < low and metrics[f"tokens_{book.name}"] >= _ENOUGH * book.size
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The counts of all ranks; every rank calls it."""
        return {name: summed(counts.clone(), self._world).cpu() for name, counts in self.counts.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from :meth:`state_dict`; rank 0 takes the counts of all."""
        for name, counts in self.counts.items():
            counts.copy_(state[name] if self._world.rank == 0 else torch.zeros_like(counts))

    def _split(self, codes: Tensor) -> Iterator[tuple[str, Tensor]]:
        if len(self._books) == 1:
            yield self._books[0].name, codes
            return
        yield self._books[0].name, codes[:, :1]
        yield self._books[1].name, codes[:, 1:]
