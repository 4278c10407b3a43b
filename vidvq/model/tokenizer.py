"""The tokenizer that vidvq trains: video to codes and codes to video, whole or as a stream, with the same result.

Frame 0 is encoded on its own (an image is a video of one frame), then come groups of ``temporal_factor`` frames. Frame
0 goes through the network as a group of its own copies, so that every step has one shape; since kernels are chosen by
shape, whole videos are encoded by the very steps a stream takes, one sample and one tile of a large frame at a time.
That is why tokens depend neither on how a video is cut into calls nor on what else is in the batch.
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
    """Output of a training step.

    Attributes:
        reconstruction: ``b c t h w``, not clamped.
        codes: ``b lt lh lw`` int64.
        commitment_loss: the quantizer's loss, a scalar.
    """

    reconstruction: Tensor
    codes: Tensor
    commitment_loss: Tensor


class VideoTokenizer(Tokenizer):
    """A group-causal 3D-convolutional VQ autoencoder with spatiotemporal codebooks."""

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
        """The codebooks, in the order of their offsets in a flat vocabulary."""
        return self.quantizer.codebooks

    @property
    def dtype(self) -> torch.dtype:
        """Type of the networks' weights."""
        return self.encoder.head.weight.dtype

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
        self._check_multiples(h, w)
        quantized = self.quantizer(self.encoder(self._replicate_first_frame(video), TemporalCache()))
        groups = self.decoder(quantized.latents, TemporalCache())
        return Reconstruction(self._merge_first_group(groups), quantized.codes, quantized.commitment_loss)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Video to codes.

        Args:
            video: ``b c t h w`` float in [-1, 1]; any number of frames and any size. The last frame is repeated to
                fill the last group, the borders to fill the last patches.

        Returns:
            ``b lt lh lw`` int64, local to the codebook of their group: ``spatial`` at lt = 0, else ``temporal``.

        Raises:
            ValueError: wrong rank, channels, type or range.
        """
        self._check_video(video)
        return torch.cat([self._encode_whole(sample) for sample in self.pad(video).split(1)])

    @torch.no_grad()
    def encode_tiled(self, video: Tensor) -> Tensor:
        """The codes of :meth:`encode`, for frames too large to be on the model's device as a whole.

        Each tile is encoded from the first frame to the last before the next; only that tile is moved to the device.

        Args:
            video: as for :meth:`encode`; on any device.

        Raises:
            ValueError: as for :meth:`encode`.
        """
        self._check_video(video, any_device=True)
        padded, scale = self.pad(video), self.spatial_factor
        tiles = self._tiles("encode", padded.shape[3] // scale, padded.shape[4] // scale)
        windows = tiles.cut(padded, scale)
        kept = [
            tiles.keep(self._encode_whole(windows[index : index + 1].to(self.device)), index)
            for index in range(len(windows))
        ]
        return tiles.join(kept)

    @torch.no_grad()
    def encode_step(
        self, frames: Tensor, state: StreamState | None = None, batched: bool = False
    ) -> tuple[Tensor, StreamState]:
        """Encode the next frames of a batch of streams; see :meth:`Tokenizer.encode_step`.

        ``batched`` has no effect on frames that are cut into tiles: tiles go through the network one by one.

        Raises:
            ValueError: an incomplete group, a wrong size, or the state of another stream.
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
        """Codes to video.

        Args:
            codes: ``b lt lh lw`` integers, as :meth:`encode` returns them.
            num_frames: frames to keep; all of the last group by default.
            size: height and width to keep; the whole grid by default.

        Returns:
            ``b c t h w`` in [-1, 1].

        Raises:
            ValueError: wrong rank or type, a code out of range, or more frames or pixels asked for than there are.
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
            ValueError: as for :meth:`decode`, or the state of another stream.
        """
        self._check_codes(codes, first=state is None)
        b, g, h, w = codes.shape
        if state is None and g != 1:
            raise UsageError(f"groups={g} must be 1 at the start of a stream")
        self._check_state(state, "decode", (b, h, w))
        return self._decode_groups(codes, state)

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
        self, frames: Tensor, state: StreamState | None, batched: bool = False
    ) -> tuple[Tensor, StreamState]:
        """Frame 0 where there is no state, else whole groups; the arguments are known to be right."""
        b, h, w = frames.shape[0], *frames.shape[3:]
        r, s = self.temporal_factor, self.spatial_factor
        tiles = self._tiles("encode", h // s, w // s)
        run = run_batched if batched and len(tiles.spans) == 1 else run_per_sample
        parts = []
        for group in (repeat(frames, "b c 1 h w -> b c r h w", r=r),) if state is None else frames.split(r, dim=2):
            latents, past = run(self.encoder, tiles.cut(group.to(self.dtype), s), state.past if state else None)
            kept = [
                self.quantizer.encode(tiles.keep(window, index), first=state is None)
                for index, window in enumerate(latents.split(1))
            ]
            parts.append(tiles.join(kept))
            state = StreamState("encode", (b, h, w), past, self.config)
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
            windows, past = run_per_sample(self.decoder, tiles.cut(latents), state.past if state else None)
            frames = tiles.join([tiles.keep(window, index, s) for index, window in enumerate(windows.split(1))])
            parts.append((frames.mean(dim=2, keepdim=True) if state is None else frames).float().clamp(-1, 1))
            state = StreamState("decode", (b, h, w), past, self.config)
        assert state is not None
        return torch.cat(parts, dim=2), state

    def _tiles(self, kind: str, height: int, width: int) -> Tiles:
        """How a frame of that many latents is cut."""
        margin = self.encoder.receptive_radius if kind == "encode" else self.decoder.receptive_radius
        return Tiles.over((height, width), self.config.tile // self.spatial_factor, margin)

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
                "the state is of a stream through a tokenizer of another config. "
                "Pass the state that this stream's last step returned"
            )
        if state is not None and (state.kind, state.shape) != (kind, shape):
            raise UsageError(
                f"the state is of a stream to {state.kind} with batch, height, width {state.shape}; this step is to "
                f"{kind} {shape}. Pass the state that this stream's last step returned"
            )


def _is_training_state(name: str) -> bool:
    return name.startswith("quantizer.") and name.rpartition(".")[2] in TRAINING_STATE
