"""The tokenizer: video to codes and codes to video, whole or as a stream, with the same result.

Frame 0 stands alone (an image is a video of one frame), then come groups of ``temporal_factor`` frames. Frame 0 goes
through the network as a group of its own copies, so that every step has one shape; since kernels are chosen by shape,
whole videos are encoded by the very steps a stream takes, one sample and one tile of a large frame at a time. That is
why tokens depend neither on how a video is cut into calls nor on what else is in the batch.
"""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from einops import repeat
from torch import Tensor

from vidvq.errors import UsageError
from vidvq.model.encoder import Decoder, Encoder, Shape, StackConfig
from vidvq.model.interface import Codebook, Tokenizer
from vidvq.model.layers import Causality, Past
from vidvq.model.patch import PatchKind
from vidvq.model.quantize import QuantizerConfig, SpatiotemporalQuantizer
from vidvq.model.quantize.spatiotemporal import codebook_config
from vidvq.model.quantize.vq import TRAINING_STATE
from vidvq.model.tiles import Tiles


@dataclass(frozen=True)
class TokenizerConfig:
    """A tokenizer's architecture.

    Attributes:
        temporal_factor: frames per group and latent frame.
        patch: transform of each block of pixels at the input and output.
        patch_size: height and width of a block; each stage after the first halves them again.
        patch_frames: frames of a block; None: all of a group. The first stages after the first halve what is left.
        causality: whether a convolution over time may see to the end of its group, or the past alone.
        encoder, decoder: stages, finest first; as many in both.
        quantizer: codebooks.
        tile: frames much larger than this, pixels, go through the networks in overlapping tiles, in memory that does
            not grow with the frame. (It decides how sums are rounded, and so belongs to the architecture.)
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    temporal_factor: int = 4
    patch: PatchKind = "unshuffle"
    patch_size: int = 4
    patch_frames: int | None = None
    causality: Causality = "group"
    encoder: StackConfig = field(default_factory=StackConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    decoder: StackConfig = field(default_factory=lambda: StackConfig(blocks=(2, 3)))
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
                f"encoder has {len(self.encoder.channels)} stages, decoder {len(self.decoder.channels)}; give as many"
            )

        per_block, changes = self.frames_per_block, len(self.encoder.channels) - 1
        if per_block > self.temporal_factor or self.temporal_factor // per_block > 1 << changes:
            raise UsageError(
                f"patch_frames={per_block} must be from {max(self.temporal_factor >> changes, 1)} to "
                f"temporal_factor={self.temporal_factor}: {changes + 1} stages halve time at most {changes} times"
            )
        if self.tile < self.spatial_factor:
            raise UsageError(f"tile={self.tile} must be at least the spatial factor, {self.spatial_factor}")

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent, in height and width."""
        return self.patch_size << (len(self.encoder.channels) - 1)

    @property
    def frames_per_block(self) -> int:
        """Frames that the block transform takes together."""
        return self.temporal_factor if self.patch_frames is None else self.patch_frames

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return _listed(asdict(self))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "TokenizerConfig":
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: a field is unknown, missing or wrong.
        """
        parts = dict(data)
        if "quantizer" in parts:
            quantizer = dict(parts["quantizer"])
            for name in ("spatial", "temporal"):
                if quantizer.get(name) is not None:
                    quantizer[name] = _build_codebook(quantizer[name])
            parts["quantizer"] = _build(QuantizerConfig, quantizer)
        for name in {"encoder", "decoder"} & parts.keys():
            parts[name] = _build(StackConfig, {key: tuple(value) for key, value in parts[name].items()})
        return _build(cls, parts)


class Reconstruction(NamedTuple):
    """What a training step sees: the video come back, the codes it went through, and the quantizer's loss."""

    reconstruction: Tensor
    codes: Tensor
    commitment_loss: Tensor


@dataclass(frozen=True)
class StreamState:
    """Where a stream stands: the past groups its causal layers need. A value; a step returns a new one.

    Attributes:
        kind: ``encode`` or ``decode``.
        shape: batch, height and width of what is fed.
        groups: how many groups were fed.
        past: tensors, one per causal layer, of every tile of every sample.
        config: of the tokenizer that made it; another one's layers would take the tensors for something else.
    """

    kind: str
    shape: tuple[int, int, int]
    groups: int
    past: tuple[Tensor, ...]
    config: TokenizerConfig


class VideoTokenizer(Tokenizer):
    """A group-causal 3D-convolutional VQ autoencoder with spatiotemporal codebooks."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.temporal_factor = config.temporal_factor
        self.spatial_factor = config.spatial_factor
        shape = Shape(
            config.patch,
            config.frames_per_block,
            config.patch_size,
            config.temporal_factor,
            config.quantizer.dim,
            config.causality,
        )
        self.encoder = Encoder(config.encoder, shape)
        self.quantizer = SpatiotemporalQuantizer(config.quantizer)
        self.decoder = Decoder(config.decoder, shape)

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> "VideoTokenizer":
        """Load a checkpoint folder, or the newest checkpoint of a training run; in eval mode, on the CPU.

        Raises:
            ValueError: there is none, it is damaged, or its weights do not fit its config.
        """
        from vidvq.model.checkpoint import load_tokenizer

        tokenizer = load_tokenizer(Path(path))[0]
        if not isinstance(tokenizer, VideoTokenizer):
            raise UsageError(
                f"{path} holds another library's tokenizer; vidvq.model.checkpoint.load_tokenizer loads it"
            )
        return tokenizer

    @classmethod
    def from_pretrained(cls, name: str | Path, **where: Any) -> "VideoTokenizer":
        """Load a checkpoint folder, or a repository of the Hugging Face hub; in eval mode, on the CPU.

        Needs ``huggingface_hub``. Weights are safetensors, and proved to be those that their fingerprint names.

        Args:
            name: a folder, or ``owner/name``.
            where: ``revision``, ``cache_dir``, ``token``, ``local_files_only`` and the like, as the hub takes them.

        Raises:
            ValueError: there is none, it is damaged, or its weights do not fit its config.
        """
        return _hub().from_pretrained(str(name), **where).tokenizer

    def save_pretrained(self, folder: str | Path, **where: Any) -> None:
        """Write a checkpoint folder with a model card; ``repo_id=`` and ``push_to_hub=True`` put it on the hub too."""
        _hub()(self).save_pretrained(Path(folder), **where)

    @property
    def codebooks(self) -> list[Codebook]:
        """The codebooks, in the order of their offsets in a flat vocabulary."""
        return self.quantizer.codebooks

    def forward(self, video: Tensor) -> Reconstruction:
        """Reconstruct whole videos, all groups at once; the training step.

        Args:
            video: ``b c t h w`` in [-1, 1]; t is 1 + a multiple of the temporal factor, h and w multiples of the
                spatial factor.

        Raises:
            ValueError: a size is not such a multiple.
        """
        self._check_video(video)
        t, h, w = video.shape[2:]
        if (t - 1) % self.temporal_factor:
            low = t - (t - 1) % self.temporal_factor
            raise UsageError(
                f"num_frames={t} must be 1 + a multiple of {self.temporal_factor}; "
                f"nearest: {low} or {low + self.temporal_factor}"
            )
        if h % self.spatial_factor or w % self.spatial_factor:
            raise UsageError(f"height={h} width={w} must be multiples of {self.spatial_factor}")
        quantized = self.quantizer(self.encoder(self._open(video), Past()))
        groups = self.decoder(quantized.latents, Past())
        return Reconstruction(self._close(groups), quantized.codes, quantized.commitment_loss)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Video to codes.

        Args:
            video: ``b c t h w`` float in [-1, 1]; any number of frames and any size. The last frame is repeated to
                fill the last group, the borders to fill the last patches.

        Returns:
            ``b lt lh lw`` int64, local to the codebook of their place: ``spatial`` at lt = 0, else ``temporal``.

        Raises:
            ValueError: wrong rank, channels, type or range.
        """
        self._check_video(video)
        padded = self._pad(video)
        return torch.cat([self._encode_whole(sample) for sample in padded.split(1)])

    @torch.no_grad()
    def encode_tiled(self, video: Tensor) -> Tensor:
        """What :meth:`encode` returns, for frames too large to be on the model's device as a whole.

        One tile goes through all of time after another; of the video only that tile is moved to the device.

        Args:
            video: as for :meth:`encode`; on any device.

        Raises:
            ValueError: as for :meth:`encode`.
        """
        self._check_video(video, anywhere=True)
        padded = self._pad(video)
        tiles, scale = (
            self._tiles("encode", padded.shape[3] // self.spatial_factor, padded.shape[4] // self.spatial_factor),
            self.spatial_factor,
        )
        windows = tiles.cut(padded, scale)
        kept = [
            tiles.keep(self._encode_whole(windows[index : index + 1].to(self.device)), index)
            for index in range(len(windows))
        ]
        return tiles.join(kept)

    @torch.no_grad()
    def encode_step(
        self, frames: Tensor, state: StreamState | None = None, together: bool = False
    ) -> tuple[Tensor, StreamState]:
        """Encode the next frames of a stream.

        Args:
            frames: ``b c t h w`` in [-1, 1]: the first frame alone where ``state`` is None, then whole groups.
                Height and width are multiples of the spatial factor.
            state: what the step before returned.
            together: the whole batch goes through the network at once, not one sample after another. Faster on a GPU;
                but the kernels are of the batch's size then, and round as they do for it. Frames that are cut into
                tiles go one by one all the same.

        Returns:
            codes ``b g lh lw`` of the groups given, and the state for the next step.

        Raises:
            ValueError: an incomplete group, a wrong size, or the state of another stream.
        """
        self._check_video(frames)
        b, _, t, h, w = frames.shape
        r, s = self.temporal_factor, self.spatial_factor
        if (state is None and t != 1) or (state is not None and (t == 0 or t % r)):
            rule = "1 at the start of a stream" if state is None else f"a multiple of {r}"
            raise UsageError(f"num_frames={t} must be {rule}")
        if h % s or w % s:
            raise UsageError(f"height={h} width={w} must be multiples of {s}")
        self._check_state(state, "encode", (b, h, w))
        return self._encode_groups(frames, state, together)

    @torch.no_grad()
    def decode(self, codes: Tensor, num_frames: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """Codes to video.

        Args:
            codes: ``b lt lh lw`` integers, as :meth:`encode` returns them.
            num_frames: keep this many; all of the last group by default.
            size: keep this height and width; the whole grid by default.

        Returns:
            ``b c t h w`` in [-1, 1].

        Raises:
            ValueError: wrong rank or type, a code out of range, or more frames or pixels asked for than there are.
        """
        self._check_codes(codes, first=True)
        keep_t, keep_h, keep_w = self._kept(codes, num_frames, size)
        samples = []
        for sample in codes.split(1):
            video, state = self._decode_groups(sample[:, :1], None)
            rest = self._decode_groups(sample[:, 1:], state)[0] if codes.shape[1] > 1 else video[:, :, :0]
            samples.append(torch.cat([video, rest], dim=2))
        return torch.cat(samples)[:, :, :keep_t, :keep_h, :keep_w]

    @torch.no_grad()
    def decode_step(self, codes: Tensor, state: StreamState | None = None) -> tuple[Tensor, StreamState]:
        """Decode the next groups of a stream.

        Args:
            codes: ``b g lh lw``: the first group alone where ``state`` is None.
            state: what the step before returned.

        Returns:
            frames ``b c t h w`` in [-1, 1] (one frame for the first group), and the state for the next step.

        Raises:
            ValueError: as for :meth:`decode`, or the state of another stream.
        """
        self._check_codes(codes, first=state is None)
        b, g, h, w = codes.shape
        if state is None and g != 1:
            raise UsageError(f"groups={g} must be 1 at the start of a stream")
        self._check_state(state, "decode", (b, h, w))
        return self._decode_groups(codes, state)

    @property
    def dtype(self) -> torch.dtype:
        """Of the networks' weights."""
        return self.encoder.head.weight.dtype

    def inference_state_dict(self) -> dict[str, Tensor]:
        """The tensors that inference needs: both networks and the codebooks, without training statistics."""
        return {name: tensor for name, tensor in self.state_dict().items() if not _is_training_state(name)}

    def load_inference_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Load what :meth:`inference_state_dict` returned.

        Raises:
            ValueError: a tensor is missing, unknown or of another shape; names it.
        """
        mine = self.inference_state_dict()
        for name in sorted(mine.keys() ^ tensors.keys()):
            raise UsageError(f"tensor {name} is {'missing' if name in mine else 'not part of this architecture'}")
        for name, tensor in mine.items():
            if tensor.shape != tensors[name].shape:
                raise UsageError(f"tensor {name} has shape {tuple(tensors[name].shape)}, not {tuple(tensor.shape)}")
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(tensors[name])

    def _encode_whole(self, sample: Tensor) -> Tensor:
        codes, state = self._encode_groups(sample[:, :, :1], None)
        rest = self._encode_groups(sample[:, :, 1:], state)[0] if sample.shape[2] > 1 else codes[:, :0]
        return torch.cat([codes, rest], dim=1)

    def _encode_groups(
        self, frames: Tensor, state: StreamState | None, together: bool = False
    ) -> tuple[Tensor, StreamState]:
        """The first frame where there is no state, else whole groups; the arguments are known to be right."""
        b, h, w = frames.shape[0], *frames.shape[3:]
        r, s = self.temporal_factor, self.spatial_factor
        tiles = self._tiles("encode", h // s, w // s)
        parts = []
        for group in (repeat(frames, "b c 1 h w -> b c r h w", r=r),) if state is None else frames.split(r, dim=2):
            run = _at_once if together and len(tiles.spans) == 1 else _one_by_one
            latents, past = run(self.encoder, tiles.cut(group.to(self.dtype), s), state)
            kept = [
                self.quantizer.encode(tiles.keep(window, index), first=state is None)
                for index, window in enumerate(latents.split(1))
            ]
            parts.append(tiles.join(kept))
            state = StreamState("encode", (b, h, w), (state.groups if state else 0) + 1, past, self.config)
        assert state is not None
        return torch.cat(parts, dim=1), state

    def _decode_groups(self, codes: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        """The first group where there is no state, else any number; the arguments are known to be right."""
        b, h, w = codes.shape[0], *codes.shape[2:]
        s = self.spatial_factor
        tiles = self._tiles("decode", h, w)
        parts = []
        for group in codes.split(1, dim=1):
            latents = self.quantizer.lookup(group, first=state is None).to(self.dtype)
            windows, past = _one_by_one(self.decoder, tiles.cut(latents), state)
            frames = tiles.join([tiles.keep(window, index, s) for index, window in enumerate(windows.split(1))])
            parts.append((frames.mean(dim=2, keepdim=True) if state is None else frames).float().clamp(-1, 1))
            state = StreamState("decode", (b, h, w), (state.groups if state else 0) + 1, past, self.config)
        assert state is not None
        return torch.cat(parts, dim=2), state

    def _tiles(self, kind: str, height: int, width: int) -> Tiles:
        """How a frame of that many latents is cut."""
        reach = self.encoder.reach if kind == "encode" else self.decoder.reach
        return Tiles.over((height, width), self.config.tile // self.spatial_factor, reach)

    def _open(self, video: Tensor) -> Tensor:
        first = repeat(video[:, :, :1], "b c 1 h w -> b c r h w", r=self.temporal_factor)
        return torch.cat([first, video[:, :, 1:]], dim=2)

    def _close(self, groups: Tensor) -> Tensor:
        r = self.temporal_factor
        return torch.cat([groups[:, :, :r].mean(dim=2, keepdim=True), groups[:, :, r:]], dim=2)

    def _check_state(self, state: StreamState | None, kind: str, shape: tuple[int, int, int]) -> None:
        if state is not None and state.config != self.config:
            raise UsageError(
                "the state is of a stream through a tokenizer of another config. "
                "Pass the state that this stream's last step returned"
            )
        if state is not None and (state.kind, state.shape) != (kind, shape):
            raise UsageError(
                f"the state is of a stream to {state.kind} with batch, height, width {state.shape}; this step is to "
                f"{kind} {shape}. Pass the state that this stream's last step returned"
            )


def _hub() -> Any:
    try:
        from vidvq.model.hub import HubTokenizer
    except ModuleNotFoundError as error:
        raise UsageError(f"this needs {error.name}; run `pip install 'vidvq[interop]'`") from error
    return HubTokenizer


def _one_by_one(network: Encoder | Decoder, x: Tensor, state: StreamState | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one group of each sample or tile by itself; returns the outputs and what the next step needs of the past.

    A kernel for a batch of five rounds otherwise than one for a batch of one: latents differ in their last bits, and
    a latent midway between two codes by its code.
    """
    if len(x) == 1:
        return _at_once(network, x, state)
    outputs, pasts = [], []
    for index, sample in enumerate(x.split(1)):
        past = Past(tuple(tensor[index : index + 1] for tensor in state.past) if state else None)
        outputs.append(network(sample, past))
        pasts.append(past.collected)
    return torch.cat(outputs), tuple(torch.cat(tensors) for tensors in zip(*pasts, strict=True))


def _at_once(network: Encoder | Decoder, x: Tensor, state: StreamState | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    past = Past(state.past if state else None)
    return network(x, past), tuple(past.collected)


def _is_training_state(name: str) -> bool:
    return name.startswith("quantizer.") and name.rpartition(".")[2] in TRAINING_STATE


def _build_codebook(data: dict[str, Any]) -> Any:
    parts = dict(data)
    if "levels" in parts:
        parts["levels"] = tuple(parts["levels"])
    if "layer" in parts:
        parts["layer"] = _build_codebook(parts["layer"])
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
