"""Codebook usage over a window of steps and all ranks."""

import torch
from torch import Tensor

from vidvq.codebook import codebook_spans
from vidvq.metrics.codes import CodebookUsage, codebook_usage
from vidvq.model import VideoTokenizer
from vidvq.training.distributed import DistributedContext, all_reduce_sum

# With fewer tokens per code, a code without tokens may still be in use.
_MIN_TOKENS_PER_CODE = 10


def count_codes(counts: Tensor, codes: Tensor) -> None:
    """Add the occurrences of ``codes``, of any shape, to ``counts``, ``size`` int32: fp32 stops at 2^24."""
    used = codes.flatten()
    # Not bincount, which reads the largest code from the device.
    counts.index_add_(0, used, torch.ones_like(used, dtype=counts.dtype))


def measure_usage(name: str, counts: Tensor) -> CodebookUsage:
    """Return the usage of a codebook by its ``counts`` on all ranks, ``size``. Collective: call on every rank."""
    total = all_reduce_sum(counts)
    # A large codebook has far more codes than occur.
    return codebook_usage(name, len(total), total[total > 0].cpu().numpy())


class UsageCounter:
    """Counts code usage. Metrics cover the last complete window of steps and the current one.

    Args:
        tokenizer: tokenizer with the codebooks.
        every: length of a window (steps).
        context: this process in the job.

    Attributes:
        counts: by codebook, occurrences of each code in the last complete window and the current one, ``2 size``.
    """

    def __init__(self, tokenizer: VideoTokenizer, every: int, context: DistributedContext) -> None:
        self._books, self._every, self._context = tokenizer.codebooks, every, context
        quantizer = tokenizer.config.quantizer
        refresh = quantizer.differential and quantizer.differential.refresh
        parts = [part for part in (quantizer.spatial, quantizer.temporal, refresh) if part]
        # Codes are initialized at the end of the warm-up.
        self._settled = every + max(getattr(part, "warmup", 0) for part in parts)
        self.counts = {
            book.name: torch.zeros(2, book.size, dtype=torch.int32, device=context.device) for book in self._books
        }

    def add(self, codes: Tensor) -> None:
        """Count the codes ``b lt lh lw`` of a micro-batch on this rank."""
        for book, frames in codebook_spans(self._books):
            count_codes(self.counts[book.name][1], codes[:, frames])

    def finish_step(self, step: int) -> None:
        """Start a new window after step ``step`` if the current window is complete."""
        if step % self._every == 0:
            for counts in self.counts.values():
                counts[0] = counts[1]
                counts[1] = 0

    def measure(self) -> dict[str, float]:
        """Return usage, perplexity, dead codes and tokens of each codebook. Collective: call on every rank."""
        metrics: dict[str, float] = {}
        for book in self._books:
            last, current = self.counts[book.name]
            use = measure_usage(book.name, last + current)
            metrics[f"usage_{book.name}"], metrics[f"perplexity_{book.name}"] = use.share, use.perplexity
            metrics[f"dead_{book.name}"] = float(use.size - use.used)
            metrics[f"tokens_{book.name}"] = float(use.tokens)
        return metrics

    def alarms(self, metrics: dict[str, float], low: float, step: int) -> dict[str, str]:
        """Return a warning for each codebook with low usage, once enough tokens are counted.

        Args:
            metrics: metrics returned by :meth:`measure`.
            low: fraction of codes in use below which to warn.
            step: number of finished steps.
        """
        if step < self._settled:
            return {}
        return {
            book.name: f"only {metrics[f'usage_{book.name}']:.0%} of the {book.size} {book.name} codes are in use"
            for book in self._books
            if metrics[f"usage_{book.name}"] < low
            and metrics[f"tokens_{book.name}"] >= _MIN_TOKENS_PER_CODE * book.size
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Return the counts above 0 and their positions, summed over all ranks. Collective: call on every rank."""
        state: dict[str, Tensor] = {}
        for name, counts in self.counts.items():
            total = all_reduce_sum(counts.clone()).flatten()
            positions = total.nonzero().flatten()
            state |= {f"{name}.places": positions.cpu(), f"{name}.counts": total[positions].cpu()}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the counts that :meth:`state_dict` returned, on rank 0; counts that are missing become 0."""
        for name, counts in self.counts.items():
            counts.zero_()
            if f"{name}.places" in state and self._context.rank == 0:
                positions, saved = (state[f"{name}.{part}"].to(counts.device) for part in ("places", "counts"))
                # Older states hold floats.
                counts.view(-1)[positions] = saved.to(counts.dtype)
