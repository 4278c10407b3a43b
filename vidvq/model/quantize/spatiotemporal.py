"""Spatiotemporal codebooks: one for what a stream starts with (appearance), one for what follows (motion)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from vidvq.codebook import Codebook
from vidvq.errors import UsageError
from vidvq.model.quantize.fsq import FiniteScalarQuantizer, FSQConfig
from vidvq.model.quantize.interface import Quantizer
from vidvq.model.quantize.lfq import LFQConfig, LookupFreeQuantizer
from vidvq.model.quantize.residual import ResidualConfig, ResidualQuantizer
from vidvq.model.quantize.vq import VectorQuantizer, VQConfig


class CodebookKind(NamedTuple):
    """One value of a codebook's ``kind``: its config, and the quantizer of that config and a latent's channels."""

    config: type[VQConfig | FSQConfig | LFQConfig | ResidualConfig]
    quantizer: Callable[[Any, int], Quantizer]


CODEBOOK_KINDS = {
    "vq": CodebookKind(VQConfig, VectorQuantizer),
    "fsq": CodebookKind(FSQConfig, FiniteScalarQuantizer),
    "lfq": CodebookKind(LFQConfig, LookupFreeQuantizer),
    "residual": CodebookKind(ResidualConfig, ResidualQuantizer),
}


class _ByKind:
    """A pydantic schema in which ``kind`` alone decides the config class of a mapping.

    For a plain union pydantic would report the wrong fields of every member. A schema is a dict: it needs no import.
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


CodebookConfig = Annotated[VQConfig | FSQConfig | LFQConfig | ResidualConfig, _ByKind()]


def codebook_config(data: dict[str, Any]) -> type[VQConfig | FSQConfig | LFQConfig | ResidualConfig]:
    """The config class of a mapping of fields, by its ``kind`` (default ``vq``).

    Raises:
        ValueError: there is no such kind.
    """
    kind = _kind_of(data)
    if not isinstance(kind, str) or kind not in CODEBOOK_KINDS:
        raise UsageError(f"kind={kind!r} must be one of {', '.join(CODEBOOK_KINDS)}")
    return CODEBOOK_KINDS[kind].config


@dataclass(frozen=True)
class QuantizerConfig:
    """The codebooks of a tokenizer.

    Attributes:
        dim: number of channels of a latent.
        spatial: the codebook of a stream's first latent frame.
        temporal: the codebook of all later ones; None makes ``spatial`` one joint codebook for all.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    dim: int = 16
    spatial: CodebookConfig = field(default_factory=lambda: VQConfig(size=512))
    temporal: CodebookConfig | None = field(default_factory=lambda: VQConfig(size=1024))

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise UsageError(f"dim={self.dim} must be at least 1")


class Quantized(NamedTuple):
    """Latents after quantization.

    Attributes:
        latents: ``b d g h w``.
        codes: ``b g h w`` int64, local to the codebook of their group.
        commitment_loss: scalar, averaged over positions.
    """

    latents: Tensor
    codes: Tensor
    commitment_loss: Tensor


class SpatiotemporalQuantizer(nn.Module):
    """Latents ``b d g h w`` to codes ``b g h w``, each group by the codebook it belongs to."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.spatial = _make(config.spatial, config.dim)
        self.temporal = _make(config.temporal, config.dim) if config.temporal else None

    @property
    def codebooks(self) -> list[Codebook]:
        """The codebooks, in the order of their offsets."""
        if self.temporal is None:
            return [Codebook("joint", self.spatial.size, 0)]
        return [
            Codebook("spatial", self.spatial.size, 0),
            Codebook("temporal", self.temporal.size, self.spatial.size),
        ]

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize whole streams, from their first group on."""
        parts = latents.split([1, latents.shape[2] - 1], dim=2) if self.temporal is not None else (latents,)
        done = [self._quantize(part, self.spatial if index == 0 else self.temporal) for index, part in enumerate(parts)]
        total = latents.shape[0] * latents[0, 0].numel()
        loss = sum((part.commitment_loss * (part.codes.numel() / total) for part in done), latents.new_zeros(()))
        return Quantized(
            torch.cat([part.latents for part in done], dim=2), torch.cat([part.codes for part in done], dim=1), loss
        )

    def encode(self, latents: Tensor, first: bool) -> Tensor:
        """Codes ``b g h w`` of some groups of a stream; ``first``: whether they start it (then there is one)."""
        flat = rearrange(latents, "b d g h w -> (b g h w) d")
        codes = self._book(first).encode(flat)
        return codes.view(latents.shape[0], *latents.shape[2:])

    def lookup(self, codes: Tensor, first: bool) -> Tensor:
        """Latents ``b d g h w`` of codes ``b g h w``."""
        return rearrange(self._book(first).lookup(codes), "b g h w d -> b d g h w")

    def _book(self, first: bool) -> Quantizer:
        return self.spatial if first or self.temporal is None else self.temporal

    @staticmethod
    def _quantize(latents: Tensor, book: Quantizer | None) -> Quantized:
        assert book is not None
        b, _, g, h, w = latents.shape
        quantized, codes, loss = book(rearrange(latents, "b d g h w -> (b g h w) d"))
        shape = {"b": b, "g": g, "h": h, "w": w}
        return Quantized(
            rearrange(quantized, "(b g h w) d -> b d g h w", **shape),
            rearrange(codes, "(b g h w) -> b g h w", **shape),
            loss,
        )


def _make(config: CodebookConfig, dim: int) -> Quantizer:
    return CODEBOOK_KINDS[config.kind].quantizer(config, dim)
