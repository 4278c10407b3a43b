"""The tokenizer that vidvq trains. Whole-video and streaming inference give identical results.

Frame 0 is encoded on its own (an image is a video of one frame), followed by groups of ``temporal_factor`` frames.
Frame 0 passes through the network as a group of copies, so every call has the same shape. Kernels are selected by
shape, so whole videos are encoded with the same calls as a stream, of :attr:`Tokenizer.step_shape`: by default one
group of one sample or tile. Tokens therefore depend neither on how a video is split into calls nor on the other samples
of the batch.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any, ClassVar, NamedTuple

import torch
from einops import repeat
from torch import Tensor

from vidvq.codebook import Codebook
from vidvq.errors import UsageError
from vidvq.model.capture import CapturedCall, GraphMemory
from vidvq.model.compilation import compile_graph
from vidvq.model.config import TokenizerConfig
from vidvq.model.encoder import CodecLayout, Decoder, Encoder, run_in_blocks, run_network
from vidvq.model.interface import StreamState, Tokenizer, without_autocast
from vidvq.model.layers import TemporalCache
from vidvq.model.pixels import normalize
from vidvq.model.quantize import SpatiotemporalQuantizer
from vidvq.model.quantize.vq import TRAINING_STATE
from vidvq.model.step_shape import StepShape
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


class StepCalls(NamedTuple):
    """The calls that encoding and decoding consist of: plain methods, compiled, or captured.

    Attributes:
        encode: maps ``first``, frames and cached frames to codes and cached frames.
        decode: maps ``first``, codes and cached frames to frames and cached frames.
        render: maps ``first``, latents (with those of later groups) and cached frames to frames and cached frames.
    """

    encode: Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
    decode: Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
    render: Callable[..., tuple[Tensor, tuple[Tensor, ...]]]


class VideoTokenizer(Tokenizer):
    """A group-causal (2+1)D-convolutional VQ autoencoder with spatiotemporal codebooks.

    Args:
        config: architecture of the networks and codebooks.
    """

    supports_streaming: ClassVar[bool] = True
    takes_bytes: ClassVar[bool] = True

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.temporal_factor = config.temporal_factor
        self.spatial_factor = config.spatial_factor
        self.upscale, self.lookahead = config.decoder.upscale, config.decoder.lookahead
        layout = CodecLayout(
            config.patch,
            config.frames_per_block,
            config.patch_size,
            config.temporal_factor,
            config.quantizer.dim,
            config.causality,
            config.linear,
        )
        self.encoder = Encoder(config.encoder, layout)
        self.quantizer = SpatiotemporalQuantizer(config.quantizer)
        self.decoder = Decoder(config.decoder, layout)
        self._calls = StepCalls(self._encode_call, self._decode_call, self._render_call)
        self._compiled_pass: Callable[[Tensor], Reconstruction] | None = None

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
            The reconstruction (``upscale`` times as high and wide), codes and commitment loss.

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
        # K-means at the end of a warm-up has loops that depend on data.
        if self._compiled_pass is None or self.quantizer.warming_up:
            return self._reconstruct(video)
        self.quantizer.begin_pass(1 + (t - 1) // self.temporal_factor)
        return self._compiled_pass(video)

    def compile_training(self, **options: Any) -> None:
        """Compile the training forward pass after the warm-up of the codebooks.

        Args:
            **options: arguments of ``torch.compile``.
        """
        self._compiled_pass = compile_graph(self._reconstruct, **options)

    def use_half(self, dtype: torch.dtype) -> None:
        """See :meth:`Tokenizer.use_half`."""
        self.encoder.to(dtype)
        self.decoder.to(dtype)

    def use_triton(self) -> None:
        """See :meth:`Tokenizer.use_triton`."""
        if find_spec("triton") is None:
            raise UsageError("Triton is not installed; install torch for CUDA, which brings it, or set kernels=torch")
        self.encoder.fused = True

    def compile_steps(self, capture: bool = False, **options: Any) -> None:
        """See :meth:`Tokenizer.compile_steps`. Triton kernels are compiled already."""
        if "backend" not in options:
            # Inductor would choose among reductions by timing them, and round differently from one worker to the next.
            options["options"] = {"deterministic": True} | options.get("options", {})
        calls = [self._encode_call, self._decode_call, self._render_call]
        for index in range(1 if self.encoder.fused else 0, len(calls)):
            calls[index] = compile_graph(calls[index], **options)
        shared = GraphMemory()
        self._calls = StepCalls(*(CapturedCall(call, shared) for call in calls) if capture else calls)

    @property
    def warmup_s(self) -> float:
        """See :attr:`Tokenizer.warmup_s`."""
        return sum(call.warmup_s for call in self._calls if isinstance(call, CapturedCall))

    def _reconstruct(self, video: Tensor) -> Reconstruction:
        quantized = self.quantizer(self.encoder(self._replicate_first_frame(video), TemporalCache()))
        groups = self.decoder(self.decoder.extend(quantized.latents), TemporalCache())
        return Reconstruction(self._merge_first_group(groups), quantized.codes, quantized.commitment_loss)

    @torch.no_grad()
    @without_autocast
    def encode(self, video: Tensor) -> Tensor:
        """Encode video.

        Args:
            video: ``b c t h w`` float in [-1, 1], a tensor or a NumPy array; any number of frames and any size.
                :meth:`pad` fills the last group and the border patches.

        Returns:
            Codes ``b lt lh lw`` int64, local to the codebook of their group: ``spatial`` for lt = 0, ``temporal``
            otherwise.

        Raises:
            UsageError: wrong rank, channels, type, range or device.
        """
        video = self._as_tensor(video, "video")
        self._check_video(video)
        return self._encode_groups(self.pad(video), None)[0]

    @torch.no_grad()
    @without_autocast
    def encode_tiled(self, video: Tensor) -> Tensor:
        """Encode video whose frames do not fit on the device. Returns the same codes as :meth:`encode`.

        As many tiles as a call has streams are moved to the device at a time and encoded over all frames.

        Args:
            video: ``b c t h w`` float in [-1, 1], on any device.

        Returns:
            Codes ``b lt lh lw`` int64.

        Raises:
            UsageError: wrong rank, channels, type or range.
        """
        video = self._as_tensor(video, "video")
        self._check_video(video, any_device=True)
        padded, scale = self.pad(video), self.spatial_factor
        tiles = self._tiles("encode", padded.shape[3] // scale, padded.shape[4] // scale)
        windows = tiles.split(padded, scale)
        streams = self.shape_for(padded.shape[3], padded.shape[4]).streams
        kept = []
        for start in range(0, len(windows), streams):
            codes = self._encode_groups(windows[start : start + streams].to(self.device), None)[0]
            kept += [tiles.crop(window, start + index) for index, window in enumerate(codes.split(1))]
        return tiles.merge(kept)

    @torch.no_grad()
    @without_autocast
    def encode_step(self, frames: Tensor, state: StreamState | None = None) -> tuple[Tensor, StreamState]:
        """Encode the next frames of a batch of streams; see :meth:`Tokenizer.encode_step`.

        Raises:
            UsageError: a group is incomplete, the size is not a multiple of the spatial factor, or the state belongs to
                other streams or is that of an ended stream.
        """
        frames = self._as_tensor(frames, "video")
        self._check_video(frames, takes_bytes=True)
        b, _, t, h, w = frames.shape
        r = self.temporal_factor
        longer = self.step_shape.groups > 1
        if t % r if state is not None else (t - 1) % r or (t > 1 and not longer):
            starting = f"1 + a multiple of {r}" if longer else "1"
            rule = f"{starting} at the start of a stream" if state is None else f"a multiple of {r}"
            raise UsageError(f"num_frames={t} must be {rule}")
        self._check_multiples(h, w)
        self._check_state(state, "encode", (b, h, w))
        return self._encode_groups(frames, state)

    @torch.no_grad()
    @without_autocast
    def decode(self, codes: Tensor, num_frames: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """Decode codes.

        Args:
            codes: ``b lt lh lw``, a tensor or a NumPy array of any integer type, local to the codebook of their group.
            num_frames: number of frames to keep; None keeps the complete last group.
            size: height and width of the encoded video to keep (pixels); None keeps the complete grid.

        Returns:
            Video ``b c t h w`` in [-1, 1], ``upscale`` times as high and wide as the encoded one.

        Raises:
            UsageError: wrong rank or type, a code out of range, or a size that does not match the codes.
        """
        codes = self._as_codes(codes)
        self._check_codes(codes, first=True)
        keep_t, keep_h, keep_w = self.crop_size(codes.shape[1:], num_frames, size)
        video, state = self._decode_groups(codes, None)
        if self.lookahead:
            video = torch.cat([video, self._render(state, ends=True)[0]], dim=2)
        return video[:, :, :keep_t, :keep_h, :keep_w]

    @torch.no_grad()
    @without_autocast
    def latents(self, codes: Tensor) -> Tensor:
        """Return the quantized latents of codes; see :meth:`Tokenizer.latents`."""
        codes = self._as_codes(codes)
        self._check_codes(codes, first=True)
        return self.quantizer.lookup(codes, first=True)[0]

    @torch.no_grad()
    @without_autocast
    def decode_step(self, codes: Tensor, state: StreamState | None = None) -> tuple[Tensor, StreamState]:
        """Decode the next groups of a batch of streams; see :meth:`Tokenizer.decode_step`.

        Raises:
            UsageError: wrong rank or type, a code out of range, or the state belongs to other streams or is that of an
                ended stream.
        """
        codes = self._as_codes(codes)
        self._check_codes(codes, first=state is None)
        b, g, h, w = codes.shape
        if state is None and g != 1 and self.decode_shape.groups == 1:
            raise UsageError(f"groups={g} must be 1 at the start of a stream")
        self._check_state(state, "decode", (b, h, w))
        return self._decode_groups(codes, state)

    @torch.no_grad()
    @without_autocast
    def decode_rest(self, state: StreamState) -> Tensor:
        """Decode the groups that :meth:`decode_step` still holds; see :meth:`Tokenizer.decode_rest`.

        Raises:
            UsageError: the state belongs to other streams or is that of an ended stream.
        """
        self._check_state(state, "decode", state.shape)
        return self._render(state, ends=True)[0] if self.lookahead else super().decode_rest(state)

    def shape_for(self, height: int, width: int, kind: str = "encode") -> StepShape:
        """Return the step shape for frames of a size, one tile of which is an element of a call."""
        s = self.spatial_factor
        window = self._tiles(kind, height // s, width // s).window(s if kind == "encode" else s * self.upscale)
        return super().shape_for(*window, kind)

    def decode_latents(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize and decode latents of complete streams; gradients pass the quantizer straight through.

        Args:
            latents: ``b d g h w`` fp32.

        Returns:
            Video ``b c t h w``, not clamped, and codes ``b g h w``.
        """
        with torch.no_grad():
            codes, _ = self.quantizer.encode(latents, first=True)
            vectors, _ = self.quantizer.lookup(codes, first=True)
            offset = vectors - latents
        decoded = self.decoder.extend(latents + offset).to(self.dtype)
        groups = self.decoder(decoded, TemporalCache())
        return self._merge_first_group(groups).float(), codes

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

    def _encode_groups(self, frames: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        """Encode complete groups of validated input, from frame 0 without a state."""
        b, h, w = frames.shape[0], *frames.shape[3:]
        r, s = self.temporal_factor, self.spatial_factor
        tiles = self._tiles("encode", h // s, w // s)
        shape = self.shape_for(h, w)
        parts, start = [], 0
        while start < frames.shape[2]:
            first = state is None
            piece = frames[:, :, start : start + shape.num_frames(r, first)]
            start += piece.shape[2]
            head = [repeat(piece[:, :, :1], "b c 1 h w -> b c r h w", r=r), piece[:, :, 1:]] if first else [piece]
            groups = -(-piece.shape[2] // r) if not first else 1 + (piece.shape[2] - 1) // r
            if groups < shape.groups:
                head.append(piece[:, :, -1:].expand(-1, -1, (shape.groups - groups) * r, -1, -1))
            x = tiles.split(torch.cat(head, dim=2) if len(head) > 1 else piece, s)
            codes, past = self._encode_windows(x, state, tiles, shape.streams)
            parts.append(codes[:, :groups])
            state = StreamState("encode", (b, h, w), past, self.config, ended=groups < shape.groups)
        assert state is not None
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0], state

    def _encode_windows(
        self, windows: Tensor, state: StreamState | None, tiles: Tiles, streams: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encode one step of all windows ``(b n) c t h w``; returns codes ``b g lh lw`` and the cached frames."""
        first, past = state is None, state.past if state else None
        if len(tiles.spans) == 1:
            return run_in_blocks(partial(self._calls.encode, first), windows, past, streams)
        if streams == 1 and not self.quantizer.num_state_tensors:
            # Margins are cropped before the search, whose sums are rounded by the number of latents.
            latents, past = run_in_blocks(self._encode_latents, windows, past, streams)
            kept = [
                self.quantizer.encode(tiles.crop(window, index), first)[0]
                for index, window in enumerate(latents.split(1))
            ]
        else:
            codes, past = run_in_blocks(partial(self._calls.encode, first), windows, past, streams)
            kept = [tiles.crop(window, index) for index, window in enumerate(codes.split(1))]
        return tiles.merge(kept), past

    def _decode_groups(self, codes: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        """Decode any number of groups of validated codes, from the first group without a state."""
        if self.lookahead:
            return self._render(self._look_up(codes, state))
        b, h, w = codes.shape[0], *codes.shape[2:]
        s, scale = self.spatial_factor, self.spatial_factor * self.upscale
        tiles = self._tiles("decode", h, w)
        shape = self.shape_for(h * s, w * s, "decode")
        parts = []
        for piece in codes.split(shape.groups, dim=1):
            first, past, groups = state is None, state.past if state else None, piece.shape[1]
            if groups < shape.groups:
                piece = torch.cat([piece, piece[:, -1:].expand(-1, shape.groups - groups, -1, -1)], dim=1)
            frames, past = run_in_blocks(partial(self._calls.decode, first), tiles.split(piece), past, shape.streams)
            if len(tiles.spans) > 1:
                frames = tiles.merge([tiles.crop(window, index, scale) for index, window in enumerate(frames.split(1))])
            parts.append(frames[:, :, : StepShape(groups=groups).num_frames(self.temporal_factor, first)])
            state = StreamState("decode", (b, h, w), past, self.config, ended=groups < shape.groups)
        assert state is not None
        return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0], state

    def _look_up(self, codes: Tensor, state: StreamState | None) -> StreamState:
        """Append the latents of codes ``b g h w`` to those that a stream holds for a decoder with lookahead."""
        cached, held, known = self._split_held(state)
        latents, known = self.quantizer.lookup(codes, state is None, known)
        held = (torch.cat([*held, latents], dim=2),)
        b, _, h, w = codes.shape
        starts = state is None or state.starts
        return StreamState("decode", (b, h, w), (*cached, *held, *known), self.config, starts=starts)

    def _render(self, state: StreamState, ends: bool = False) -> tuple[Tensor, StreamState]:
        """Decode the latents that a stream holds, as far as those of the groups after them are known.

        Args:
            state: state with latents that are not decoded yet.
            ends: whether the streams end with them; copies of the last ones then take the place of later groups.

        Returns:
            Frames ``b c t h w``, and the state with the latents that are left.
        """
        cached, (line,), known = self._split_held(state)
        height, width = (side * self.spatial_factor for side in line.shape[3:])
        tiles, shape = self._tiles("decode", *line.shape[3:]), self.shape_for(height, width, "decode")
        scale, groups, left = self.spatial_factor * self.upscale, shape.groups, line.shape[2]
        if ends:
            line = torch.cat([line, *[line[:, :, -1:]] * (-left % groups + self.lookahead)], dim=2)
        parts, first = [line.new_zeros(len(line), 3, 0, height * self.upscale, width * self.upscale)], state.starts
        while line.shape[2] >= groups + self.lookahead:
            windows = tiles.split(line[:, :, : groups + self.lookahead].to(self.dtype))
            call = partial(self._calls.render, first)
            frames, cached = run_in_blocks(call, windows, None if first else cached, shape.streams)
            if len(tiles.spans) > 1:
                frames = tiles.merge([tiles.crop(window, index, scale) for index, window in enumerate(frames.split(1))])
            parts.append(frames[:, :, : StepShape(groups=min(groups, left)).num_frames(self.temporal_factor, first)])
            line, left, first = line[:, :, groups:], left - groups, False
        # A copy: the rest of a long line should not hold all of it.
        past = (*cached, line.clone(), *known)
        return torch.cat(parts, dim=2), replace(state, past=past, starts=first)

    def _split_held(
        self, state: StreamState | None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Split the state of a stream into cached frames, held latents ``b d g h w`` and the state of the quantizer."""
        if state is None:
            return (), (), ()
        past, known = self._split_state(state.past)
        assert past is not None
        return past[:-1], past[-1:], known

    def _render_call(
        self, first: bool, latents: Tensor, past: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Map latents ``b d (g + lookahead) h w`` to frames ``b c t h w`` in [-1, 1]."""
        frames, after = run_network(self.decoder, latents, past)
        return self._finish(frames, first), _own(after, latents.shape[2] - self.lookahead)

    def _encode_call(
        self, first: bool, frames: Tensor, past: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Map frames ``b c (g r) h w`` to codes ``b g lh lw``; ``first``: whether they start a stream."""
        past, known = self._split_state(past)
        latents, after = self._encode_latents(frames, past)
        codes, known = self.quantizer.encode(latents, first, known)
        return codes, _own((*after, *known), latents.shape[2])

    def _encode_latents(self, frames: Tensor, past: tuple[Tensor, ...] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Map frames ``b c (g r) h w``, uint8 or in [-1, 1], to latents ``b d g lh lw``."""
        video = normalize(frames) if frames.dtype == torch.uint8 else frames
        return run_network(self.encoder, video.to(self.dtype), past)

    def _decode_call(
        self, first: bool, codes: Tensor, past: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Map codes ``b g lh lw`` to frames ``b c t h w`` in [-1, 1]; ``first``: whether they start a stream."""
        past, known = self._split_state(past)
        latents, known = self.quantizer.lookup(codes, first, known)
        frames, after = run_network(self.decoder, latents.to(self.dtype), past)
        return self._finish(frames, first), _own((*after, *known), codes.shape[1])

    def _split_state(self, past: tuple[Tensor, ...] | None) -> tuple[tuple[Tensor, ...] | None, tuple[Tensor, ...]]:
        """Split the state of a stream into the cached frames of the network and the state of the quantizer."""
        count = self.quantizer.num_state_tensors
        return (past, ()) if past is None or not count else (past[:-count], past[-count:])

    def _finish(self, frames: Tensor, first: bool) -> Tensor:
        return (self._merge_first_group(frames) if first else frames).float().clamp(-1, 1)

    def _tiles(self, kind: str, height: int, width: int) -> Tiles:
        """Return the tiling of a frame of ``height`` x ``width`` latents."""
        if kind == "encode":
            return Tiles.cover((height, width), self.config.tile // self.spatial_factor, self.encoder.receptive_radius)
        size = self.config.tile // (self.spatial_factor * self.upscale)
        return Tiles.cover((height, width), size, self.decoder.receptive_radius)

    def _replicate_first_frame(self, video: Tensor) -> Tensor:
        first = repeat(video[:, :, :1], "b c 1 h w -> b c r h w", r=self.temporal_factor)
        return torch.cat([first, video[:, :, 1:]], dim=2)

    def _merge_first_group(self, groups: Tensor) -> Tensor:
        r = self.temporal_factor
        first = groups[:, :, :r].mean(dim=2, keepdim=True)
        return torch.cat([first, groups[:, :, r:]], dim=2) if groups.shape[2] > r else first

    def _check_multiples(self, height: int, width: int) -> None:
        if height % self.spatial_factor or width % self.spatial_factor:
            raise UsageError(f"height={height} width={width} must be multiples of {self.spatial_factor}")

    def _check_state(self, state: StreamState | None, kind: str, shape: tuple[int, int, int]) -> None:
        if state is not None and state.config != self.config:
            raise UsageError(
                "the state is of a stream through a tokenizer of another config; "
                "pass the state that the last step of this stream returned"
            )
        if state is not None and state.ended:
            groups = (self.step_shape if kind == "encode" else self.decode_shape).groups
            raise UsageError(
                f"the stream has ended with a step of fewer than {groups} groups; pass whole steps of {groups} groups "
                "until its end"
            )
        if state is not None and (state.kind, state.shape) != (kind, shape):
            raise UsageError(
                f"the state is of a stream to {state.kind} with batch, height, width {state.shape}, this step to "
                f"{kind} {shape}; pass the state that the last step of this stream returned"
            )


def _own(past: tuple[Tensor, ...], groups: int) -> tuple[Tensor, ...]:
    """Copy cached frames, which are views, so that a state does not hold the activations of a long call."""
    return tuple(tensor.clone() for tensor in past) if groups > 1 else past


def _is_training_state(name: str) -> bool:
    return name.startswith("quantizer.") and name.rpartition(".")[2] in TRAINING_STATE
