"""Architecture of a tokenizer, as stored in configs and checkpoints."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from vidvq.errors import UsageError
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.layers import Causality
from vidvq.model.patch import PatchKind
from vidvq.model.quantize import DifferentialConfig, QuantizerConfig, VQConfig
from vidvq.model.quantize.spatiotemporal import codebook_config

# Pixels of a latent, whose frequencies the linear path lists.
_MAX_PIXELS = 1 << 18


@dataclass(frozen=True)
class TokenizerConfig:
    """Architecture of a tokenizer.

    Attributes:
        temporal_factor: temporal compression: frames per group, after frame 0 (a power of two). Each group becomes one
            latent frame.
        patch: transform between pixels and channels: ``unshuffle`` (pixel unshuffle) or ``haar`` (orthonormal Haar
            transform).
        patch_size: height and width of a patch (pixels, a power of two); each stage after the first halves the
            resolution again.
        patch_frames: frames of a patch (a power of two); None uses the whole group. The stages halve what remains of
            ``temporal_factor``, the finest first.
        causality: context of the convolutions over time: ``group`` sees up to the end of its group, ``strict`` only the
            past.
        encoder: channels and blocks of the encoder's stages, finest first.
        decoder: channels and blocks of the decoder's stages, finest first; must have as many stages as the encoder.
            Optionally the enlargement of its frames.
        quantizer: latent channels and codebooks.
        linear: latent channels, among those of the quantizer, with a linear path beside the networks from the pixels of
            a block to its latent, and back (0 to ``quantizer.dim``). Fine detail of static scenes passes through them.
        tile: tile size (pixels). Frames much larger than a tile are processed in overlapping tiles, so that memory does
            not grow with the frame. Tiling affects rounding, so it is part of the architecture.
    """

    temporal_factor: int = 4
    patch: PatchKind = "unshuffle"
    patch_size: int = 4
    patch_frames: int | None = None
    causality: Causality = "group"
    encoder: StackConfig = field(default_factory=StackConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    linear: int = 0
    tile: int = 1024

    def __post_init__(self) -> None:
        for name in ("temporal_factor", "patch_size", "patch_frames"):
            value = getattr(self, name)
            if value is not None and (value < 1 or value & (value - 1)):
                raise UsageError(f"{name}={value} must be a power of two")
        for name, known in (("patch", ("haar", "unshuffle")), ("causality", ("group", "strict"))):
            if getattr(self, name) not in known:
                raise UsageError(f"{name}={getattr(self, name)!r} must be {known[0]} or {known[1]}")
        if len(self.encoder.channels) != len(self.decoder.channels):
            raise UsageError(
                f"encoder has {len(self.encoder.channels)} stages, decoder {len(self.decoder.channels)}; "
                "they must have the same number"
            )

        per_block, changes = self.frames_per_block, len(self.encoder.channels) - 1
        if per_block > self.temporal_factor or self.temporal_factor // per_block > 1 << changes:
            raise UsageError(
                f"patch_frames={per_block} must be from {max(self.temporal_factor >> changes, 1)} to "
                f"temporal_factor={self.temporal_factor}: {changes + 1} stages halve time at most {changes} times"
            )
        if self.temporal_factor * self.spatial_factor**2 > _MAX_PIXELS:
            raise UsageError(
                f"a latent of {self.temporal_factor} frames of {self.spatial_factor}x{self.spatial_factor} pixels must "
                f"have at most {_MAX_PIXELS} pixels; reduce temporal_factor, patch_size or the number of stages"
            )
        if not 0 <= self.linear <= self.quantizer.dim:
            raise UsageError(f"linear={self.linear} must be from 0 to quantizer.dim={self.quantizer.dim}")
        if self.tile < self.spatial_factor * self.decoder.upscale:
            side = "the spatial factor" + (", times decoder.upscale" if self.decoder.upscale > 1 else "")
            raise UsageError(f"tile={self.tile} must be at least {side}, {self.spatial_factor * self.decoder.upscale}")

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent, in height and width."""
        return self.patch_size << (len(self.encoder.channels) - 1)

    @property
    def frames_per_block(self) -> int:
        """Frames of a patch."""
        return self.temporal_factor if self.patch_frames is None else self.patch_frames

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain JSON types."""
        data = _listed(asdict(self))
        # Fingerprints cover the config: those written before these fields existed must stay as they are.
        if self.quantizer.differential is None:
            del data["quantizer"]["differential"]
        elif self.quantizer.differential.refresh is None:
            del data["quantizer"]["differential"]["refresh"]
        if not self.linear:
            del data["linear"]
        for name, default in {"upscale": 1, "lookahead": 0, "denoise": 0, "overlap": False, "blend": 0}.items():
            if data["decoder"][name] == default:
                del data["decoder"][name]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "TokenizerConfig":
        """Build a config from the dictionary that :meth:`to_dict` returns.

        Raises:
            UsageError: a field is unknown or its value is invalid.
            TypeError: a field is missing or has the wrong type.
        """
        parts = dict(data)
        if "quantizer" in parts:
            quantizer = dict(parts["quantizer"])
            for name in ("spatial", "temporal"):
                if quantizer.get(name) is not None:
                    quantizer[name] = _build_codebook(quantizer[name])
            if quantizer.get("differential") is not None:
                differential = dict(quantizer["differential"])
                if differential.get("refresh") is not None:
                    differential["refresh"] = _build(VQConfig, dict(differential["refresh"]))
                quantizer["differential"] = _build(DifferentialConfig, differential)
            parts["quantizer"] = _build(QuantizerConfig, quantizer)
        for name, kind in {"encoder": StackConfig, "decoder": DecoderConfig}.items():
            if name in parts:
                stack = dict(parts[name])
                lists = {key: tuple(stack[key]) for key in ("channels", "blocks") if key in stack}
                parts[name] = _build(kind, stack | lists)
        return _build(cls, parts)


def _build_codebook(data: dict[str, Any]) -> Any:
    parts = dict(data)
    if "levels" in parts:
        parts["levels"] = tuple(parts["levels"])
    if "layer" in parts:
        parts["layer"] = _build(VQConfig, dict(parts["layer"]))
    return _build(codebook_config(data), parts)


def _build(kind: Any, data: dict[str, Any]) -> Any:
    known = {entry.name for entry in fields(kind)}
    for name in data.keys() - known:
        raise UsageError(f"{kind.__name__} has no field {name}; its fields are {', '.join(sorted(known))}")
    return kind(**data)


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, tuple | list) else value
