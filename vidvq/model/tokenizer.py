"""The tokenizer that vidvq trains. Whole-video and streaming inference give identical results.

Frame 0 is encoded on its own (an image is a video of one frame), followed by groups of ``temporal_factor`` frames.
Frame 0 passes through the network as a group of copies, so every step has the same shape. Kernels are selected by
shape, so whole videos are encoded with the same steps as a stream, one sample and one tile at a time. Tokens therefore
depend neither on how a video is split into calls nor on the other samples of the batch.
"""

from typing import ClassVar, NamedTuple

import torch
from einops import repeat
from torch import Tensor

from vidvq.codebook import Codebook
from vidvq.errors import UsageError
from vidvq.model.config import TokenizerConfig
from vidvq.model.encoder import CodecLayout, Decoder, Encoder, run_batched, run_per_sample
from vidvq.model.interface import StreamState, Tokenizer
from vidvq.model.layers import TemporalCache
from vidvq.model.quantize import SpatiotemporalQuantizer
from vidvq.model.quantize.vq import TRAINING_STATE
from vidvq.model.tiles import Tiles


class Reconstruction(NamedTuple):
    """Output of a training forward pass.

    Attributes:
        reconstruction: video ``b c t h w``, not clamped.
        codes: ``b lt lh lw`` int64.
        commitment_loss: loss of the quantizer, a scalar.
    """

    reconstruction: Tensor
    codes: Tensor
    commitment_loss: Tensor


class VideoTokenizer(Tokenizer):
    """A group-causal (2+1)D-convolutional VQ autoencoder with spatiotemporal codebooks.

    Args:
        config: architecture of the networks and codebooks.
    """

    supports_streaming: ClassVar[bool] = True

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.temporal_factor = config.temporal_factor
        self.spatial_factor = config.spatial_factor
        layout = CodecLayout(
            config.patch,
            config.frames_per_block,
            config.patch_size,
            config.temporal_factor,
            config.quantizer.dim,
            config.causality,
        )
        self.encoder = Encoder(config.encoder, layout)
        self.quantizer = SpatiotemporalQuantizer(config.quantizer)
        self.decoder = Decoder(config.decoder, layout)

    @property
    def codebooks(self) -> list[Codebook]:
        """Codebooks, in the order of their offsets in a flat vocabulary."""
        return self.quantizer.codebooks

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the network weights."""
        return self.encoder.head.weight.dtype

    def forward(self, video: Tensor) -> Reconstruction:
        """Reconstruct complete videos, all groups in parallel. Used in training.

        Args:
            video: ``b c t h w`` in [-1, 1]; ``t`` is 1 + a multiple of the temporal factor, ``h`` and ``w`` are
                multiples of the spatial factor.

        Returns:
            The reconstruction, codes and commitment loss.

        Raises:
            UsageError: wrong rank, channels, type, range or size.
        """
        self._check_video(video)
        t, h, w = video.shape[2:]
        if (t - 1) % self.temporal_factor:
            low = t - (t - 1) % self.temporal_factor
            raise UsageError(
                f"num_frames={t} must be 1 + a multiple of {self.temporal_factor}; "
                f"nearest: {low} or {low + self.temporal_factor}"
            )
        self._check_multiples(h, w)
        quantized = self.quantizer(self.encoder(self._replicate_first_frame(video), TemporalCache()))
        groups = self.decoder(quantized.latents, TemporalCache())
        return Reconstruction(self._merge_first_group(groups), quantized.codes, quantized.commitment_loss)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Encode video.

        Args:
            video: ``b c t h w`` float in [-1, 1]; any number of frames and any size. :meth:`pad` fills the last group
                and the border patches.

        Returns:
            Codes ``b lt lh lw`` int64, local to the codebook of their group: ``spatial`` for lt = 0, ``temporal``
            otherwise.

        Raises:
            UsageError: wrong rank, channels, type, range or device.
        """
        self._check_video(video)
        return torch.cat([self._encode_sample(sample) for sample in self.pad(video).split(1)])

    @torch.no_grad()
    def encode_tiled(self, video: Tensor) -> Tensor:
        """Encode video whose frames do not fit on the device. Returns the same codes as :meth:`encode`.

        One tile at a time is moved to the device and encoded over all frames.

        Args:
            video: ``b c t h w`` float in [-1, 1], on any device.

        Returns:
            Codes ``b lt lh lw`` int64.

        Raises:
            UsageError: wrong rank, channels, type or range.
        """
        self._check_video(video, any_device=True)
        padded, scale = self.pad(video), self.spatial_factor
        tiles = self._tiles("encode", padded.shape[3] // scale, padded.shape[4] // scale)
        windows = tiles.split(padded, scale)
        kept = [
            tiles.crop(self._encode_sample(windows[index : index + 1].to(self.device)), index)
            for index in range(len(windows))
        ]
        return tiles.merge(kept)

    @torch.no_grad()
    def encode_step(
        self, frames: Tensor, state: StreamState | None = None, batched: bool = False
    ) -> tuple[Tensor, StreamState]:
        """Encode the next frames of a batch of streams; see :meth:`Tokenizer.encode_step`.

        ``batched`` has no effect on tiled frames: tiles are always processed one at a time.

        Raises:
            UsageError: a group is incomplete, the size is not a multiple of the spatial factor, or the state belongs to
                other streams.
        """
        self._check_video(frames)
        b, _, t, h, w = frames.shape
        r = self.temporal_factor
        if (state is None and t != 1) or (state is not None and t % r):
            rule = "1 at the start of a stream" if state is None else f"a multiple of {r}"
            raise UsageError(f"num_frames={t} must be {rule}")
        self._check_multiples(h, w)
        self._check_state(state, "encode", (b, h, w))
        return self._encode_groups(frames, state, batched)

    @torch.no_grad()
    def decode(self, codes: Tensor, num_frames: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """Decode codes.

        Args:
            codes: ``b lt lh lw`` integers, as returned by :meth:`encode`.
            num_frames: number of frames to keep; None keeps the complete last group.
            size: height and width to keep (pixels); None keeps the complete grid.

        Returns:
            Video ``b c t h w`` in [-1, 1].

        Raises:
            UsageError: wrong rank or type, a code out of range, or a size that does not match the codes.
        """
        self._check_codes(codes, first=True)
        keep_t, keep_h, keep_w = self.crop_size(codes.shape[1:], num_frames, size)
        samples = []
        for sample in codes.split(1):
            video, state = self._decode_groups(sample[:, :1], None)
            rest = self._decode_groups(sample[:, 1:], state)[0] if codes.shape[1] > 1 else video[:, :, :0]
            samples.append(torch.cat([video, rest], dim=2))
        return torch.cat(samples)[:, :, :keep_t, :keep_h, :keep_w]

    @torch.no_grad()
    def decode_step(self, codes: Tensor, state: StreamState | None = None) -> tuple[Tensor, StreamState]:
        """Decode the next groups of a batch of streams; see :meth:`Tokenizer.decode_step`.

        Raises:
            UsageError: wrong rank or type, a code out of range, or the state belongs to other streams.
        """
        self._check_codes(codes, first=state is None)
        b, g, h, w = codes.shape
        if state is None and g != 1:
            raise UsageError(f"groups={g} must be 1 at the start of a stream")
        self._check_state(state, "decode", (b, h, w))
        return self._decode_groups(codes, state)

    def inference_state_dict(self) -> dict[str, Tensor]:
        """Return the tensors required for inference: networks and codebooks, without training statistics."""
        return {name: tensor for name, tensor in self.state_dict().items() if not _is_training_state(name)}

    def load_inference_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Load the tensors that :meth:`inference_state_dict` returns.

        Raises:
            UsageError: a tensor is missing, unexpected or of another shape; nothing is loaded.
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

    def _encode_sample(self, sample: Tensor) -> Tensor:
        codes, state = self._encode_groups(sample[:, :, :1], None)
        rest = self._encode_groups(sample[:, :, 1:], state)[0] if sample.shape[2] > 1 else codes[:, :0]
        return torch.cat([codes, rest], dim=1)

    def _encode_groups(
        self, frames: Tensor, state: StreamState | None, batched: bool = False
    ) -> tuple[Tensor, StreamState]:
        """Encode frame 0 (without a state) or complete groups of validated input."""
        b, h, w = frames.shape[0], *frames.shape[3:]
        r, s = self.temporal_factor, self.spatial_factor
        tiles = self._tiles("encode", h // s, w // s)
        run = run_batched if batched and len(tiles.spans) == 1 else run_per_sample
        parts = []
        for group in (repeat(frames, "b c 1 h w -> b c r h w", r=r),) if state is None else frames.split(r, dim=2):
            latents, past = run(self.encoder, tiles.split(group.to(self.dtype), s), state.past if state else None)
            kept = [
                self.quantizer.encode(tiles.crop(window, index), first=state is None)
                for index, window in enumerate(latents.split(1))
            ]
            parts.append(tiles.merge(kept))
            state = StreamState("encode", (b, h, w), past, self.config)
        assert state is not None
        return torch.cat(parts, dim=1), state

    def _decode_groups(self, codes: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        """Decode the first group (without a state) or any number of groups of validated codes."""
        b, h, w = codes.shape[0], *codes.shape[2:]
        s = self.spatial_factor
        tiles = self._tiles("decode", h, w)
        parts = []
        for group in codes.split(1, dim=1):
            latents = self.quantizer.lookup(group, first=state is None).to(self.dtype)
            windows, past = run_per_sample(self.decoder, tiles.split(latents), state.past if state else None)
            frames = tiles.merge([tiles.crop(window, index, s) for index, window in enumerate(windows.split(1))])
            parts.append((frames.mean(dim=2, keepdim=True) if state is None else frames).float().clamp(-1, 1))
            state = StreamState("decode", (b, h, w), past, self.config)
        assert state is not None
        return torch.cat(parts, dim=2), state

    def _tiles(self, kind: str, height: int, width: int) -> Tiles:
        """Return the tiling of a frame of ``height`` x ``width`` latents."""
        margin = self.encoder.receptive_radius if kind == "encode" else self.decoder.receptive_radius
        return Tiles.cover((height, width), self.config.tile // self.spatial_factor, margin)

    def _replicate_first_frame(self, video: Tensor) -> Tensor:
        first = repeat(video[:, :, :1], "b c 1 h w -> b c r h w", r=self.temporal_factor)
        return torch.cat([first, video[:, :, 1:]], dim=2)

    def _merge_first_group(self, groups: Tensor) -> Tensor:
        r = self.temporal_factor
        return torch.cat([groups[:, :, :r].mean(dim=2, keepdim=True), groups[:, :, r:]], dim=2)

    def _check_multiples(self, height: int, width: int) -> None:
        if height % self.spatial_factor or width % self.spatial_factor:
            raise UsageError(f"height={height} width={width} must be multiples of {self.spatial_factor}")

    def _check_state(self, state: StreamState | None, kind: str, shape: tuple[int, int, int]) -> None:
        if state is not None and state.config != self.config:
            raise UsageError(
                "the state is of a stream through a tokenizer of another config; "
                "pass the state that the last step of this stream returned"
            )
        if state is not None and (state.kind, state.shape) != (kind, shape):
            raise UsageError(
                f"the state is of a stream to {state.kind} with batch, height, width {state.shape}, this step to "
                f"{kind} {shape}; pass the state that the last step of this stream returned"
            )


def _is_training_state(name: str) -> bool:
    return name.startswith("quantizer.") and name.rpartition(".")[2] in TRAINING_STATE
