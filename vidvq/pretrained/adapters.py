"""Adapters for tokenizers of other libraries, which make them usable in the whole pipeline.

The ``config.json`` of a folder determines its kind:

- ``Emu3VQVAE`` of transformers, as written by ``save_pretrained`` (``"model_type": "emu3_vqgan"``), and the same
  network as BAAI publishes it (``"model_type": "Emu3VisionVQ"``), which needs no code of theirs;
- ``VQModel`` of diffusers, as written by ``save_pretrained`` (``"_class_name": "VQModel"``), applied to each frame;
- ``AutoencoderVidTok`` of diffusers (``"_class_name": "AutoencoderVidTok"``), if it is causal and its latents are
  quantized (``"regularizer": "fsq"``);
- a TorchScript pair ``encoder.jit`` and ``decoder.jit`` with a ``config.json`` such as ``{"format":
  "vidvq.torchscript/1", "temporal_factor": 4, "spatial_factor": 8, "codebook_size": 64000}``;
- without such a config, the pair is one of the discrete video tokenizers of Cosmos-Tokenizer, as published; its factors
  are measured.

Fingerprints cover the weights, or the TorchScript files. Weights are read only from safetensors. TorchScript files
contain code: load them only from sources that you trust.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from einops import rearrange
from safetensors import SafetensorError
from torch import Tensor, nn

from vidvq.codebook import Codebook
from vidvq.errors import UsageError
from vidvq.formats.checkpoint import Fingerprints, fingerprint
from vidvq.model import Tokenizer
from vidvq.model.groups import merge_first_group, replicate_first_frame
from vidvq.model.interface import without_autocast
from vidvq.model.pixels import PREPROCESSING
from vidvq.pretrained.interface_checks import check_declaration
from vidvq.storage import file_exists, read_json

SCRIPT_FORMAT = "vidvq.torchscript/1"
# FSQ levels 8, 8, 8, 5, 5, 5 (Agarwal et al. 2025, "Cosmos World Foundation Model Platform", sec. 4).
_COSMOS_CODES = 64000
# A video of 1 + 16 frames of 64x64 has whole codes at every published compression.
_COSMOS_PROBE = (17, 64)
# Fields of the published config of Emu3 and those of transformers.
_EMU3_FIELDS = {
    "codebook_size": "codebook_size",
    "embed_dim": "embed_dim",
    "z_channels": "latent_channels",
    "double_z": "double_latent",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "temporal_downsample_factor": "temporal_downsample_factor",
    "ch": "base_channels",
    "ch_mult": "channel_multiplier",
    "num_res_blocks": "num_res_blocks",
    "attn_resolutions": "attn_resolutions",
}
# Names of the published tensors of Emu3 and those of transformers, in the order of application.
_EMU3_NAMES = (
    (r"\.mid\.attn_1\.norm\.", ".middle_block.attn_norm."),
    (r"\.mid\.", ".middle_block."),
    (r"^encoder\.down\.", "encoder.down_block.down."),
    (r"^decoder\.up\.", "decoder.up_block.up."),
    (r"\.attn\.(\d+)\.norm\.", r".attn_norms.\1."),
    (r"(\.attn_1|\.attn\.\d+)\.([qkv])\.", r"\1.\2_proj."),
    (r"(\.attn_1|\.attn\.\d+)\.proj_out\.", r"\1.out_proj."),
)
# Fields of a config.json that do not affect the network; excluded from fingerprints.
_INCIDENTAL = {"transformers_version", "torch_dtype", "dtype", "architectures", "_diffusers_version", "_name_or_path"}


class TokenizerAdapter(Tokenizer):
    """Base class of adapters: one joint codebook, no streaming.

    Samples are processed one at a time, so that codes do not depend on the batch.

    Attributes:
        model: the network.
        codebook_size: number of codes.
        token_side: prefixes of the names of the weights that affect codes.
    """

    model: Any
    codebook_size: int
    token_side: ClassVar[tuple[str, ...]] = ("encoder.",)

    @property
    def codebooks(self) -> list[Codebook]:
        """The single joint codebook."""
        return [Codebook("joint", self.codebook_size, 0)]

    @torch.no_grad()
    @without_autocast
    def encode(self, video: Tensor) -> Tensor:
        """Encode video; see :meth:`Tokenizer.encode`.

        Raises:
            UsageError: wrong rank, channels, type, range or device.
        """
        video = self._as_tensor(video, "video")
        self._check_video(video)
        return torch.cat([self._to_codes(sample.float()) for sample in self.pad(video).split(1)]).long()

    @torch.no_grad()
    @without_autocast
    def decode(self, codes: Tensor, num_frames: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """Decode codes; see :meth:`Tokenizer.decode`.

        Raises:
            UsageError: wrong rank or type, a code out of range, or a size that does not match the codes.
        """
        codes = self._as_codes(codes)
        self._check_codes(codes, first=True)
        t, h, w = self.crop_size(codes.shape[1:], num_frames, size)
        return torch.cat([self._to_video(sample).float().clamp(-1, 1)[:, :, :t, :h, :w] for sample in codes.split(1)])

    def _to_codes(self, video: Tensor) -> Tensor:
        """Map video ``1 c t h w`` of complete groups to codes ``1 lt lh lw``."""
        raise NotImplementedError

    def _to_video(self, codes: Tensor) -> Tensor:
        """Map codes ``1 lt lh lw`` to video ``1 c t h w`` of complete groups."""
        raise NotImplementedError

    def named_weights(self) -> dict[str, Tensor]:
        """Return the weights that fingerprints cover. Names start with ``encoder.`` (affects codes) or ``decoder.``."""
        return {
            f"{'encoder' if name.startswith(self.token_side) else 'decoder'}.{name}": tensor
            for name, tensor in self.model.state_dict().items()
        }


class Emu3Tokenizer(TokenizerAdapter):
    """Adapter for ``Emu3VQVAE`` of transformers (Wang et al. 2024). Frame 0 is encoded as a group of copies."""

    token_side = ("encoder.", "quant_conv.", "quantize.")

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.temporal_factor = model.config.temporal_downsample_factor
        self.spatial_factor = model.spatial_scale_factor
        self.codebook_size = model.config.codebook_size

    def _to_codes(self, video: Tensor) -> Tensor:
        frames = rearrange(replicate_first_frame(video, self.temporal_factor), "b c t h w -> b t c h w")
        t, h = frames.shape[1], frames.shape[3]
        # The model crops the first two axes, for video time and height, to `image_sizes`: keep everything.
        whole = [(t // self.temporal_factor * self.spatial_factor, h)]
        return self.model.encode(frames, image_sizes=whole).image_tokens[0][None]

    def _to_video(self, codes: Tensor) -> Tensor:
        frames = rearrange(self.model.decode(codes), "b t c h w -> b c t h w")
        return merge_first_group(frames, self.temporal_factor)


class VQModelTokenizer(TokenizerAdapter):
    """Adapter for ``VQModel`` of diffusers (Esser et al. 2021), applied frame by frame."""

    temporal_factor = 1
    token_side = ("encoder.", "quant_conv.", "quantize.")

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.spatial_factor = 1 << (len(model.config.block_out_channels) - 1)
        self.codebook_size = model.config.num_vq_embeddings

    def _to_codes(self, video: Tensor) -> Tensor:
        grids = []
        for frame in video.unbind(dim=2):
            latents = self.model.encode(frame).latents
            indices = self.model.quantize(latents)[2][2]
            grids.append(indices.view(len(frame), *latents.shape[-2:]))
        return torch.stack(grids, dim=1)

    def _to_video(self, codes: Tensor) -> Tensor:
        frames = []
        for grid in codes.unbind(dim=1):
            latents = rearrange(self.model.quantize.embedding(grid), "b h w d -> b d h w")
            spatial = latents if self.model.config.norm_type == "spatial" else None
            frames.append(self.model.decoder(self.model.post_quant_conv(latents), spatial))
        return torch.stack(frames, dim=2)


class VidTokTokenizer(TokenizerAdapter):
    """Adapter for a causal ``AutoencoderVidTok`` of diffusers with FSQ (Tang et al. 2024).

    Frame 0 is encoded as a group of copies, of which the model returns the last one.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.temporal_factor = model.temporal_compression_ratio
        self.spatial_factor = 1 << len(model.encoder.spatial_ds)
        self.codebook_size = model.regularization.codebook_size

    def _to_codes(self, video: Tensor) -> Tensor:
        return self.model.encode(replicate_first_frame(video, self.temporal_factor))[1]

    def _to_video(self, codes: Tensor) -> Tensor:
        return self.model.decode(codes, decode_from_indices=True)


@dataclass(frozen=True)
class TorchScriptConfig:
    """``config.json`` of a TorchScript pair.

    Attributes:
        temporal_factor: frames per code, after frame 0.
        spatial_factor: pixels per code, along height and width.
        codebook_size: number of codes.
        dtype: data type of the input of the encoder.
    """

    temporal_factor: int
    spatial_factor: int
    codebook_size: int
    dtype: str = "bfloat16"


class TorchScriptTokenizer(TokenizerAdapter):
    """Adapter for a TorchScript pair.

    Args:
        encoder: maps ``1 + k r`` frames to codes, or to a tuple that starts with them.
        files: contents of the TorchScript files, by name; the fingerprints cover them.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, config: TorchScriptConfig, files: dict[str, Tensor]
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self._files = encoder, decoder, files
        self.temporal_factor, self.spatial_factor = config.temporal_factor, config.spatial_factor
        self.codebook_size, self._dtype = config.codebook_size, getattr(torch, config.dtype, None)
        if not isinstance(self._dtype, torch.dtype):
            raise UsageError(f"dtype={config.dtype!r} in config.json must be a type of torch, such as float32")
        # A frozen script has no parameters that reveal its device.
        self.register_buffer("_anchor", torch.empty(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """Device of the scripts."""
        return self._buffers["_anchor"].device  # type: ignore[union-attr]

    def _to_codes(self, video: Tensor) -> Tensor:
        output = self.encoder(video.to(self._dtype))
        return output[0] if isinstance(output, tuple | list) else output

    def _to_video(self, codes: Tensor) -> Tensor:
        return self.decoder(codes)

    def named_weights(self) -> dict[str, Tensor]:
        """Return the weights that fingerprints cover; see :meth:`TokenizerAdapter.named_weights`."""
        return self._files


def adapter_kind(path: Path) -> str | None:
    """Return the kind of adapter that a folder needs, by its files and ``config.json``; None if it is not supported."""
    config = _read_config(path)
    if not isinstance(config, dict):
        return None
    if config.get("format") == SCRIPT_FORMAT:
        return "torchscript"
    if config.get("model_type") == "emu3_vqgan":
        return "emu3"
    if config.get("model_type") == "Emu3VisionVQ":
        return "emu3-published"
    if config.get("_class_name") == "VQModel":
        return "vqmodel"
    if config.get("_class_name") == "AutoencoderVidTok":
        return "vidtok"
    is_pair = "format" not in config and all(file_exists(path / f"{side}.jit") for side in ("encoder", "decoder"))
    return "cosmos" if is_pair else None


def load_adapter(path: Path) -> tuple[TokenizerAdapter, Fingerprints]:
    """Load a folder supported by :func:`adapter_kind`.

    Returns:
        The tokenizer and its fingerprints.

    Raises:
        UsageError: a package or file is missing, or a file is damaged or does not match the config.
    """
    kind, config = adapter_kind(path), _read_config(path)
    try:
        tokenizer = _LOADERS[str(kind)](path, config)
        check_declaration(tokenizer)
    except ModuleNotFoundError as error:
        raise UsageError(f"{path} needs {error.name}; run `pip install 'vidvq[interop]'`") from error
    except (OSError, RuntimeError, TypeError, ValueError, AttributeError, LookupError, SafetensorError) as error:
        raise UsageError(f"{path} is not a readable {kind} tokenizer: {' '.join(str(error).split())[:300]}") from error
    arrays = {name: tensor.detach().numpy() for name, tensor in tokenizer.named_weights().items()}
    model = {"kind": kind} | {name: value for name, value in config.items() if name not in _INCIDENTAL}
    return tokenizer, fingerprint(model, PREPROCESSING, arrays)


def _read_config(path: Path) -> Any:
    return read_json(path / "config.json") if file_exists(path / "config.json") else {}


def _load_emu3(path: Path, _: dict[str, Any]) -> TokenizerAdapter:
    from transformers.models.emu3.modeling_emu3 import Emu3VQVAE

    # The annotated return type lacks the loading report.
    load: Any = Emu3VQVAE.from_pretrained
    model, report = load(
        path, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    _check_complete(report)
    return Emu3Tokenizer(model)


def _load_emu3_published(path: Path, config: dict[str, Any]) -> TokenizerAdapter:
    """Load the published weights into the network of transformers, which has other names for the same tensors."""
    from safetensors.torch import load_file
    from transformers.models.emu3.configuration_emu3 import Emu3VQVAEConfig
    from transformers.models.emu3.modeling_emu3 import Emu3VQVAE

    fields = {new: config[old] for old, new in _EMU3_FIELDS.items() if old in config}
    # Attention is as wide as the deepest stage.
    fields["hidden_size"] = config.get("ch", 256) * list(config.get("ch_mult", (1, 2, 2, 4)))[-1]
    if not (path / "model.safetensors").is_file():
        raise UsageError("model.safetensors is missing")
    model: Any = Emu3VQVAE(Emu3VQVAEConfig(**fields))
    wanted = model.state_dict()
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(path / "model.safetensors").items():
        for pattern, replacement in _EMU3_NAMES:
            name = re.sub(pattern, replacement, name)
        # Attention is published as 1x1 convolutions.
        is_linear = name in wanted and wanted[name].ndim == 2 and tensor.ndim == 4
        tensors[name] = (tensor[:, :, 0, 0] if is_linear else tensor).float()
    for what, names in (("missing", wanted.keys() - tensors.keys()), ("unexpected", tensors.keys() - wanted.keys())):
        # Counters of batch norms do not affect the output.
        if lacking := [name for name in names if not name.endswith("num_batches_tracked")]:
            raise UsageError(f"its weights have {what} keys: {', '.join(sorted(lacking)[:3])}")
    model.load_state_dict(tensors, strict=False)
    return Emu3Tokenizer(model.eval())


def _load_vqmodel(path: Path, _: dict[str, Any]) -> TokenizerAdapter:
    from diffusers.models.autoencoders.vq_model import VQModel

    return VQModelTokenizer(_load_diffusers(VQModel, path))


def _load_vidtok(path: Path, config: dict[str, Any]) -> TokenizerAdapter:
    from diffusers.models.autoencoders.autoencoder_vidtok import AutoencoderVidTok

    for name, needed, absent in (("regularizer", "fsq", "kl"), ("is_causal", True, True)):
        if (given := config.get(name, absent)) != needed:
            raise UsageError(f"{name}={given} in config.json; only causal models with FSQ can be used, {name}={needed}")
    return VidTokTokenizer(_load_diffusers(AutoencoderVidTok, path))


# The annotated return type of from_pretrained lacks the loading report.
def _load_diffusers(kind: Any, path: Path) -> Any:
    model, report = kind.from_pretrained(
        path, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
    )
    _check_complete(report)
    return model.float()


def _check_complete(report: dict[str, Any]) -> None:
    """Reject incomplete weights, which the library would complete with random ones."""
    for name in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(name):
            raise UsageError(
                f"its weights have {name.replace('_', ' ')}: {', '.join(map(str, sorted(report[name])[:3]))}"
            )


def _load_script(path: Path, config: dict[str, Any]) -> TokenizerAdapter:
    fields = TorchScriptConfig(**{name: value for name, value in config.items() if name != "format"})
    encoder, decoder, files = _read_scripts(path)
    return TorchScriptTokenizer(encoder, decoder, fields, files)


def _load_cosmos(path: Path, _: dict[str, Any]) -> TokenizerAdapter:
    """Load a published pair. Its config.json, if any, has no factors: they follow from the codes of a black video."""
    encoder, decoder, files = _read_scripts(path)
    frames, side = _COSMOS_PROBE
    video = torch.zeros(1, 3, frames, side, side, dtype=torch.bfloat16)
    with torch.no_grad():
        output = encoder(video)
    codes = output[0] if isinstance(output, tuple | list) else output
    if codes.is_floating_point() or codes.ndim != 4 or codes.shape[1] < 2:
        kind = str(codes.dtype).removeprefix("torch.")
        raise UsageError(
            f"encoder.jit gives {kind} {tuple(codes.shape)} for {frames} frames; only discrete video tokenizers (DV) "
            "have integer codes b lt lh lw"
        )
    fields = TorchScriptConfig((frames - 1) // (codes.shape[1] - 1), side // codes.shape[2], _COSMOS_CODES)
    return TorchScriptTokenizer(encoder, decoder, fields, files)


def _read_scripts(path: Path) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
    """Read the encoder, the decoder, and the bytes of both files."""
    parts = {side: path / f"{side}.jit" for side in ("encoder", "decoder")}
    for file in parts.values():
        if not file.is_file():
            raise UsageError(f"{file.name} is missing")
    files = {
        f"{side}.file": torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
        for side, file in parts.items()
    }
    encoder, decoder = (torch.jit.load(str(file), map_location="cpu") for file in parts.values())
    return encoder, decoder, files


_LOADERS = {
    "emu3": _load_emu3,
    "emu3-published": _load_emu3_published,
    "vqmodel": _load_vqmodel,
    "vidtok": _load_vidtok,
    "torchscript": _load_script,
    "cosmos": _load_cosmos,
}
