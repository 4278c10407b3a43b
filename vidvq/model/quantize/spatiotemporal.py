"""Spatiotemporal codebooks: one for the first latent frame of a stream (appearance), one for the rest (motion)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from vidvq.codebook import Codebook
from vidvq.errors import UsageError
from vidvq.model.quantize.differential import Books, DifferentialCoding, DifferentialConfig, Prediction
from vidvq.model.quantize.fsq import FiniteScalarQuantizer, FSQConfig
from vidvq.model.quantize.interface import Quantizer
from vidvq.model.quantize.lfq import LFQConfig, LookupFreeQuantizer
from vidvq.model.quantize.residual import ResidualConfig, ResidualQuantizer
from vidvq.model.quantize.simvq import SimVectorQuantizer, SimVQConfig
from vidvq.model.quantize.vq import MAX_CODEBOOK_SIZE, VectorQuantizer, VQConfig

AnyCodebook = VQConfig | SimVQConfig | FSQConfig | LFQConfig | ResidualConfig


class CodebookKind(NamedTuple):
    """Classes of one kind of codebook.

    Attributes:
        config: config class.
        quantizer: constructor of the quantizer, from a config and the number of latent channels.
    """

    config: type[AnyCodebook]
    quantizer: Callable[[Any, int], Quantizer]


CODEBOOK_KINDS = {
    "vq": CodebookKind(VQConfig, VectorQuantizer),
    "simvq": CodebookKind(SimVQConfig, SimVectorQuantizer),
    "fsq": CodebookKind(FSQConfig, FiniteScalarQuantizer),
    "lfq": CodebookKind(LFQConfig, LookupFreeQuantizer),
    "residual": CodebookKind(ResidualConfig, ResidualQuantizer),
}


class _ByKind:
    """A pydantic schema that selects the config class of a mapping by its ``kind``.

    For a plain union pydantic reports the errors of all members. A schema is a dict, so pydantic is not imported.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        kinds = [*CODEBOOK_KINDS]
        return {
            "type": "tagged-union",
            "discriminator": _kind_of,
            "choices": {name: handler.generate_schema(kind.config) for name, kind in CODEBOOK_KINDS.items()},
            "custom_error_type": "codebook_kind",
            "custom_error_message": f"must be a mapping of kind {', '.join(kinds[:-1])} or {kinds[-1]}",
        }


def _kind_of(data: Any) -> Any:
    return data.get("kind", "vq") if isinstance(data, dict) else getattr(data, "kind", None)


CodebookConfig = Annotated[AnyCodebook, _ByKind()]


def codebook_config(data: dict[str, Any]) -> type[AnyCodebook]:
    """Return the config class of a mapping by its ``kind`` (default ``vq``).

    Raises:
        UsageError: the kind is unknown.
    """
    kind = _kind_of(data)
    if not isinstance(kind, str) or kind not in CODEBOOK_KINDS:
        raise UsageError(f"kind={kind!r} must be one of {', '.join(CODEBOOK_KINDS)}")
    return CODEBOOK_KINDS[kind].config


@dataclass(frozen=True)
class QuantizerConfig:
    """Latent channels and codebooks of a tokenizer.

    Attributes:
        dim: number of latent channels (1 or more).
        spatial: codebook of the first latent frame of a stream.
        temporal: codebook of all later latent frames; None uses ``spatial`` as a joint codebook for all frames.
        differential: quantize differences to a prediction from past codes with the temporal codebook; None quantizes
            each latent frame by itself.
    """

    dim: int = 16
    spatial: CodebookConfig = field(default_factory=lambda: VQConfig(size=512))
    temporal: CodebookConfig | None = field(default_factory=lambda: VQConfig(size=1024))
    differential: DifferentialConfig | None = None

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise UsageError(f"dim={self.dim} must be at least 1")
        if self.differential and self.temporal is None:
            raise UsageError("differential needs a temporal codebook: differences and latents cannot share one")
        if self.differential and self.differential.refresh:
            if not isinstance(self.temporal, VQConfig) or self.temporal.cosine:
                raise UsageError("differential.refresh needs a temporal codebook of kind vq without cosine")
            if self.temporal.size + self.differential.refresh.size > MAX_CODEBOOK_SIZE:
                raise UsageError(f"temporal and differential.refresh may have {MAX_CODEBOOK_SIZE} codes together")


class Quantized(NamedTuple):
    """Output of a quantizer.

    Attributes:
        latents: quantized latents ``b d g h w``.
        codes: ``b g h w`` int64, local to the codebook of their group.
        commitment_loss: loss averaged over positions, a scalar.
    """

    latents: Tensor
    codes: Tensor
    commitment_loss: Tensor


class SpatiotemporalQuantizer(nn.Module):
    """Quantizes latents ``b d g h w`` to codes ``b g h w``, each group with its codebook.

    Args:
        config: latent channels and codebooks.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.spatial = _make_quantizer(config.spatial, config.dim)
        self.temporal = _make_quantizer(config.temporal, config.dim) if config.temporal else None
        self.coding = DifferentialCoding(config.differential) if config.differential else None
        refresh = config.differential and config.differential.refresh
        self.refresh = VectorQuantizer(refresh, config.dim) if refresh else None

    @property
    def num_state_tensors(self) -> int:
        """Number of tensors that a stream keeps between two groups for the quantizer."""
        return len(Prediction._fields) if self.coding else 0

    @property
    def codebooks(self) -> list[Codebook]:
        """Codebooks, in the order of their offsets in a flat vocabulary."""
        if self.temporal is None:
            return [Codebook("joint", self.spatial.size, 0)]
        return [
            Codebook("spatial", self.spatial.size, 0),
            Codebook("temporal", self.temporal.size + (self.refresh.size if self.refresh else 0), self.spatial.size),
        ]

    def warms_up(self, groups: int) -> bool:
        """Return whether the next training pass, of this number of groups, passes latents unquantized."""
        return any(book.warming_up for book in self._trained(groups))

    def skip_warmup(self) -> None:
        """Train the present codebooks further, as if their warm-up had ended."""
        for book in self._books:
            book.skip_warmup()

    def begin_pass(self, groups: int) -> None:
        """See :meth:`Quantizer.begin_pass`; for a compiled pass, which cannot decide.

        Args:
            groups: number of groups of the pass.
        """
        for book in self._trained(groups):
            book.begin_pass()

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize complete streams ``b d g h w``; in training mode also update the codebooks."""
        if self.temporal is None:
            done = [self._quantize(latents, self.spatial)]
        else:
            first, later = latents.split([1, latents.shape[2] - 1], dim=2)
            done = [self._quantize(first, self.spatial)]
            done.append(self._quantize(later, self.temporal, done[0].latents))
        total = latents.shape[0] * latents[0, 0].numel()
        loss = sum((part.commitment_loss * (part.codes.numel() / total) for part in done), latents.new_zeros(()))
        return Quantized(
            torch.cat([part.latents for part in done], dim=2), torch.cat([part.codes for part in done], dim=1), loss
        )

    def encode(self, latents: Tensor, first: bool, past: tuple[Tensor, ...] = ()) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encode consecutive groups of a stream.

        Args:
            latents: ``b d g h w``.
            first: whether the first of them is the first group of the stream.
            past: state after the previous group of the stream; without ``first`` only.

        Returns:
            Codes ``b g h w`` int64, and the state after the last group, ``num_state_tensors`` tensors with the batch
            first.
        """
        parts = []
        for book, start, stop in self._spans(latents.shape[2], first):
            part = latents[:, :, start:stop]
            if self.coding and book is self.temporal:
                codes, past = self.coding.encode(Books(book, self.refresh), part, Prediction(*past))
            else:
                codes = book.encode(rearrange(part, "b d g h w -> (b g h w) d")).view(part.shape[0], *part.shape[2:])
                if self.coding:
                    past = self.coding.start(book.lookup(codes[:, 0]))
            parts.append(codes)
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)), past

    def lookup(self, codes: Tensor, first: bool, past: tuple[Tensor, ...] = ()) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Map codes ``b g h w`` to latents ``b d g h w`` fp32.

        Args:
            codes: codes of consecutive groups of a stream.
            first: as for :meth:`encode`.
            past: as for :meth:`encode`.

        Returns:
            The latents, and the state after the last group.
        """
        parts = []
        for book, start, stop in self._spans(codes.shape[1], first):
            if self.coding and book is self.temporal:
                books = Books(book, self.refresh)
                vectors, past = self.coding.decode(books, codes[:, start:stop], Prediction(*past))
            else:
                vectors = book.lookup(codes[:, start:stop])
                if self.coding:
                    past = self.coding.start(vectors[:, 0])
            parts.append(vectors)
        vectors = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return rearrange(vectors, "b g h w d -> b d g h w"), past

    @property
    def _books(self) -> list[Quantizer]:
        return [book for book in (self.spatial, self.temporal, self.refresh) if book is not None]

    def _trained(self, groups: int) -> list[Quantizer]:
        """Return the codebooks that a training pass of a number of groups trains; of images, the spatial one alone."""
        return self._books if groups > 1 else [self.spatial]

    def _spans(self, groups: int, first: bool) -> list[tuple[Quantizer, int, int]]:
        """Return each codebook that encodes consecutive groups, with the first group and the one after the last."""
        if self.temporal is None:
            return [(self.spatial, 0, groups)]
        if not first:
            return [(self.temporal, 0, groups)]
        spans = [(self.spatial, 0, 1), (self.temporal, 1, groups)]
        return [span for span in spans if span[1] < span[2]]

    def _quantize(self, latents: Tensor, book: Quantizer, before: Tensor | None = None) -> Quantized:
        """Quantize groups with one codebook; ``before``: the quantized group before them, ``b d 1 h w``."""
        if self.coding and before is not None and latents.shape[2]:
            past = self.coding.start(rearrange(before.detach(), "b d 1 h w -> b h w d"))
            return Quantized(*self.coding.train_pass(Books(book, self.refresh), latents, past))
        b, _, g, h, w = latents.shape
        quantized, codes, loss = book(rearrange(latents, "b d g h w -> (b g h w) d"))
        shape = {"b": b, "g": g, "h": h, "w": w}
        return Quantized(
            rearrange(quantized, "(b g h w) d -> b d g h w", **shape),
            rearrange(codes, "(b g h w) -> b g h w", **shape),
            loss,
        )


def _make_quantizer(config: CodebookConfig, dim: int) -> Quantizer:
    return CODEBOOK_KINDS[config.kind].quantizer(config, dim)
