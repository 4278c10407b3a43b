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
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from vidvq.arguments import check_type
from vidvq.codebook import Codebook
from vidvq.errors import UsageError
from vidvq.model.calls import Call
from vidvq.model.capture import CapturedCall, GraphMemory
from vidvq.model.compilation import compile_graph
from vidvq.model.config import TokenizerConfig
from vidvq.model.encoder import CodecLayout, Decoder, Encoder
from vidvq.model.groups import merge_first_group, replicate_first_frame
from vidvq.model.interface import Tokenizer, without_autocast
from vidvq.model.kernels import HAS_TRITON
from vidvq.model.layers import TemporalCache
from vidvq.model.lookahead_decoder import LookaheadDecoder
from vidvq.model.quantize import SpatiotemporalQuantizer
from vidvq.model.quantize.vq import TRAINING_STATE
from vidvq.model.step_shape import StepShape
from vidvq.model.stream_decoder import StreamDecoder
from vidvq.model.stream_encoder import StreamEncoder
from vidvq.model.stream_state import StreamState, check_state

_NETWORK_TYPES = (torch.bfloat16, torch.float16, torch.float32)


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
    takes_bytes: ClassVar[bool] = True

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        check_type("config", config, TokenizerConfig)
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
        self._stream_encoder = StreamEncoder(config, self.encoder, self.quantizer)
        decode = LookaheadDecoder if self.lookahead else StreamDecoder
        self._stream_decoder = decode(config, self.decoder, self.quantizer)
        self._compiled_pass: Callable[[Tensor], Reconstruction] | None = None
        self._uses_triton = False

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
        video = self._as_tensor(video, "video")
        self._check_video(video)
        video = video.to(self.dtype)
        t, h, w = video.shape[2:]
        if (t - 1) % self.temporal_factor:
            low = t - (t - 1) % self.temporal_factor
            raise UsageError(
                f"num_frames={t} must be 1 + a multiple of {self.temporal_factor}; "
                f"nearest: {low} or {low + self.temporal_factor}"
            )
        self._check_multiples(h, w)
        groups = 1 + (t - 1) // self.temporal_factor
        # K-means, at the end of a warm-up, has data-dependent loops and cannot be compiled.
        if self._compiled_pass is None or self.quantizer.warms_up(groups):
            return self._reconstruct(video)
        self.quantizer.begin_pass(groups)
        return self._compiled_pass(video)

    def compile_training(self, **options: Any) -> None:
        """Compile the training forward pass after the warm-up of the codebooks.

        Args:
            **options: arguments of ``torch.compile``.
        """
        self._compiled_pass = compile_graph(self._reconstruct, **options)

    def use_half(self, dtype: torch.dtype) -> None:
        """See :meth:`Tokenizer.use_half`."""
        if dtype not in _NETWORK_TYPES:
            raise UsageError(f"dtype={dtype!r} must be torch.bfloat16 or torch.float16, or torch.float32 for no change")
        self.encoder.to(dtype)
        self.decoder.to(dtype)

    def use_triton(self) -> None:
        """See :meth:`Tokenizer.use_triton`."""
        if not HAS_TRITON:
            raise UsageError("Triton is not installed; install torch for CUDA, which brings it, or set kernels=torch")
        from vidvq.model.kernels.encoder import encode

        self.encoder.forward = partial(encode, self.encoder)  # type: ignore[method-assign]
        self._uses_triton = True

    def compile_steps(self, capture: bool = False, **options: Any) -> None:
        """See :meth:`Tokenizer.compile_steps`. Triton kernels need no compilation."""
        if "backend" not in options:
            # Inductor would choose reductions by timing them, so that workers would round differently.
            options["options"] = {"deterministic": True} | options.get("options", {})
        memory = GraphMemory()

        def prepare(call: Call, compiled: bool = True) -> Call:
            call = compile_graph(call, **options) if compiled else call
            return CapturedCall(call, memory) if capture else call

        self._stream_encoder.call = prepare(self._stream_encoder.encode_call, not self._uses_triton)
        self._stream_decoder.call = prepare(self._stream_decoder.decode_call)

    @property
    def warmup_s(self) -> float:
        """See :attr:`Tokenizer.warmup_s`."""
        calls = (self._stream_encoder.call, self._stream_decoder.call)
        return sum(call.warmup_s for call in calls if isinstance(call, CapturedCall))

    def _reconstruct(self, video: Tensor) -> Reconstruction:
        frames = replicate_first_frame(video, self.temporal_factor)
        quantized = self.quantizer(self.encoder(frames, TemporalCache()))
        groups = self.decoder(self.decoder.extend(quantized.latents), TemporalCache())
        reconstruction = merge_first_group(groups, self.temporal_factor)
        return Reconstruction(reconstruction, quantized.codes, quantized.commitment_loss)

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
        return self._encode_stream(self.pad(video), None)[0]

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
        tiles = self._stream_encoder.tiles(padded.shape[3] // scale, padded.shape[4] // scale)
        windows = tiles.split(padded, scale)
        streams = self.shape_for(padded.shape[3], padded.shape[4]).streams
        kept = []
        for start in range(0, len(windows), streams):
            codes = self._encode_stream(windows[start : start + streams].to(self.device), None)[0]
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
        return self._encode_stream(frames, state)

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
        video, state = self._decode_stream(codes, None)
        if self.lookahead:
            video = torch.cat([video, self._decode_rest(state)], dim=2)
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
        return self._decode_stream(codes, state)

    @torch.no_grad()
    @without_autocast
    def decode_rest(self, state: StreamState) -> Tensor:
        """Decode the groups that :meth:`decode_step` still holds; see :meth:`Tokenizer.decode_rest`.

        Raises:
            UsageError: it is not a state, or that of other streams.
        """
        check_state(state)
        self._check_state(replace(state, ended=False), "decode", state.shape)
        return self._decode_rest(state)

    def shape_for(self, height: int, width: int, kind: str = "encode") -> StepShape:
        """Return the step shape for frames of a size, one tile of which is an element of a call."""
        s = self.spatial_factor
        if kind == "encode":
            return super().shape_for(*self._stream_encoder.tiles(height // s, width // s).window(s), kind)
        return super().shape_for(*self._stream_decoder.tiles(height // s, width // s).window(s * self.upscale), kind)

    def decode_latents(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize and decode latents of complete streams; gradients pass the quantizer straight through.

        Args:
            latents: ``b d g h w`` fp32.

        Returns:
            Video ``b c t h w``, not clamped, and codes ``b g h w``.

        Raises:
            UsageError: the latents are of another rank or number of channels.
        """
        check_type("latents", latents, Tensor)
        if latents.ndim != 5 or latents.shape[1] != self.config.quantizer.dim:
            raise UsageError(
                f"latents have shape {tuple(latents.shape)}; it must be b {self.config.quantizer.dim} g h w"
            )
        with torch.no_grad():
            codes, _ = self.quantizer.encode(latents, first=True)
            vectors, _ = self.quantizer.lookup(codes, first=True)
            offset = vectors - latents
        decoded = self.decoder.extend(latents + offset).to(self.dtype)
        groups = self.decoder(decoded, TemporalCache())
        return merge_first_group(groups, self.temporal_factor).float(), codes

    def inference_state_dict(self) -> dict[str, Tensor]:
        """Return the tensors required for inference: networks and codebooks, without training statistics."""
        return {name: tensor for name, tensor in self.state_dict().items() if not _is_training_state(name)}

    def load_inference_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Load the tensors that :meth:`inference_state_dict` returns.

        Raises:
            UsageError: a tensor is missing, unexpected or of another shape, or a value is none; nothing is loaded.
        """
        check_type("tensors", tensors, dict)
        mine = self.inference_state_dict()
        for name in sorted(mine.keys() ^ tensors.keys()):
            raise UsageError(f"tensor {name} is {'missing' if name in mine else 'not part of this architecture'}")
        for name, tensor in mine.items():
            check_type(f"tensor {name}", tensors[name], Tensor)
            if tensor.shape != tensors[name].shape:
                raise UsageError(f"tensor {name} has shape {tuple(tensors[name].shape)}, not {tuple(tensor.shape)}")
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(tensors[name])

    def _encode_stream(self, frames: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        return self._stream_encoder.encode(frames, state, self.shape_for(frames.shape[3], frames.shape[4]))

    def _decode_stream(self, codes: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        return self._stream_decoder.decode(codes, state, self._shape_for_codes(codes.shape[2], codes.shape[3]))

    def _decode_rest(self, state: StreamState) -> Tensor:
        return self._stream_decoder.rest(state, self._shape_for_codes(*state.shape[1:]))

    def _shape_for_codes(self, height: int, width: int) -> StepShape:
        return self.shape_for(height * self.spatial_factor, width * self.spatial_factor, "decode")

    def _check_multiples(self, height: int, width: int) -> None:
        if height % self.spatial_factor or width % self.spatial_factor:
            raise UsageError(f"height={height} width={width} must be multiples of {self.spatial_factor}")

    def _check_state(self, state: StreamState | None, kind: str, shape: tuple[int, int, int]) -> None:
        if state is None:
            return
        check_state(state)
        for tensor in state.past[:1]:
            self._check_device(tensor, "the state")
        if state.config != self.config:
            raise UsageError(
                "the state belongs to a stream of a tokenizer with another config; "
                "pass the state that the last step of this stream returned"
            )
        if state.ended:
            groups = (self.step_shape if kind == "encode" else self.decode_shape).groups
            raise UsageError(
                f"the stream has ended with a step of fewer than {groups} groups; pass whole steps of {groups} groups "
                "until its end"
            )
        if (state.kind, state.shape) != (kind, shape):
            raise UsageError(
                f"the state belongs to a stream to {state.kind} with batch, height, width {state.shape}; this step is "
                f"to {kind} {shape}; pass the state that the last step of this stream returned"
            )


def _is_training_state(name: str) -> bool:
    return name.startswith("quantizer.") and name.rpartition(".")[2] in TRAINING_STATE
