"""The tokenizer interface that the pipeline stages depend on.

Stages query the capabilities of a :class:`Tokenizer` and never check its class. :mod:`vidvq.model.tokenizer` is the
implementation that vidvq trains; :mod:`vidvq.pretrained.adapters` wraps tokenizers of other libraries.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import wraps
from math import log2
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidvq.arguments import as_integer
from vidvq.codebook import Codebook, codebook_spans
from vidvq.errors import UsageError
from vidvq.model.pixels import MAX_PIXEL, check_dense, unreversed
from vidvq.model.step_shape import StepShape
from vidvq.model.stream_state import StreamState, check_state

P = ParamSpec("P")
R = TypeVar("R")
# Types that are neither integers nor floating-point numbers.
_NO_CODES = (torch.bool, torch.complex64, torch.complex128)
# Types of 8-bit floats have no arithmetic.
_VIDEO_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SHAPES = ("step_shape", "decode_shape")
_KINDS = ("encode", "decode")


def without_autocast(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Disable autocast in a method, so that it gives the same results as in the jobs that write shards."""

    @wraps(method)
    def run(self: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast(self.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return run


class Tokenizer(nn.Module):
    """Converts video to a grid of codes and back.

    Frame 0 is a group on its own; each later group has ``temporal_factor`` frames.

    Attributes:
        temporal_factor: frames per code, after frame 0.
        spatial_factor: pixels per code, along height and width.
        upscale: height and width of the decoded frames relative to the encoded ones.
        lookahead: later groups that the frames of a group depend on; :meth:`decode_step` waits for them.
        supports_streaming: whether :meth:`encode_step` and :meth:`decode_step` are implemented.
        takes_bytes: whether :meth:`encode_step` takes uint8 pixels as well, and converts them itself.
        step_shape: streams and groups of one call of the network. Tokens depend on it, because kernels round
            differently per shape; tokenizers without streaming process one sample at a time.
        decode_shape: the same for decoding.
        checks_range: whether steps and training check that pixels are in [-1, 1], which waits for the device.
    """

    supports_streaming: ClassVar[bool] = False
    takes_bytes: ClassVar[bool] = False
    step_shape: StepShape = StepShape()
    decode_shape: StepShape = StepShape()
    checks_range: bool = True
    upscale: int = 1
    lookahead: int = 0
    temporal_factor: int
    spatial_factor: int

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _SHAPES and not isinstance(value, StepShape):
            raise UsageError(f"{name}={value!r} must be a vidvq.model.StepShape, such as StepShape(streams=8)")
        super().__setattr__(name, cast(Any, value))

    @property
    @abstractmethod
    def codebooks(self) -> list[Codebook]:
        """Codebooks, in the order of their offsets in a flat vocabulary."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @abstractmethod
    def encode(self, video: Tensor) -> Tensor:
        """Encode video.

        Args:
            video: ``b c t h w`` in [-1, 1], a tensor or a NumPy array; any number of frames and any size.

        Returns:
            Codes ``b lt lh lw`` int64.
        """

    @abstractmethod
    def decode(self, codes: Tensor, num_frames: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """Decode codes.

        Args:
            codes: ``b lt lh lw``, a tensor or a NumPy array of any integer type.
            num_frames: number of frames to keep; None keeps all.
            size: height and width of the encoded video to keep (pixels); None keeps all.

        Returns:
            Video ``b c t h w`` in [-1, 1].
        """

    def latents(self, codes: Tensor) -> Tensor:
        """Return the quantized latents that codes stand for: the input of the decoder.

        Args:
            codes: ``b lt lh lw`` int64.

        Returns:
            Latents ``b d lt lh lw`` fp32.

        Raises:
            UsageError: the tokenizer does not expose its latents.
        """
        raise UsageError(f"a {type(self).__name__} does not expose its latents")

    def encode_step(self, frames: Tensor, state: StreamState | None = None) -> tuple[Tensor, StreamState]:
        """Encode the next frames of a batch of streams. The concatenated codes equal those of :meth:`encode`.

        Streams of several groups per step (:attr:`step_shape`) take whole steps until their last one;
        :func:`vidvq.model.iter_encode` collects frames into them.

        Args:
            frames: ``b c t h w`` in [-1, 1], or uint8 if the tokenizer takes bytes: frame 0 alone if ``state`` is None,
                otherwise complete groups. Height and width are multiples of the spatial factor, as :meth:`pad` makes
                them. With several groups per step, the first ones follow frame 0.
            state: state after the previous step; None at the start of the streams.

        Returns:
            Codes ``b g lh lw`` int64, and the state for the next step.

        Raises:
            UsageError: streaming is not supported, a group is incomplete, the size is not a multiple of the spatial
                factor, or the state belongs to other streams or is that of an ended stream.
        """
        raise UsageError(
            f"a {type(self).__name__} encodes whole clips and does not support streaming; cut the video into clips"
        )

    def decode_step(self, codes: Tensor, state: StreamState | None = None) -> tuple[Tensor, StreamState]:
        """Decode the next groups of a batch of streams. The concatenated frames equal those of :meth:`decode`.

        Args:
            codes: ``b g lh lw`` integers: the first group alone if ``state`` is None. Streams of several groups per
                step (:attr:`decode_shape`) take whole steps until their last one.
            state: state after the previous step; None at the start of the streams.

        Returns:
            Frames ``b c t h w`` in [-1, 1] (one frame for the first group), and the state for the next step. With
            :attr:`lookahead` these are the frames of earlier groups, none at first; at the end of the streams
            :meth:`decode_rest` returns the others.

        Raises:
            UsageError: streaming is not supported, a code is out of range, or the state belongs to other streams or is
                that of an ended stream.
        """
        raise UsageError(f"a {type(self).__name__} decodes whole clips and does not support streaming; use decode")

    def decode_rest(self, state: StreamState) -> Tensor:
        """Decode the groups that :meth:`decode_step` still holds at the end of a batch of streams.

        Args:
            state: state after the last step. It stays valid, so that a player may show the newest frames early.

        Returns:
            Frames ``b c t h w`` in [-1, 1]; none without :attr:`lookahead`.

        Raises:
            UsageError: it is not a state, or that of other streams.
        """
        check_state(state)
        b, h, w = state.shape
        scale = self.spatial_factor * self.upscale
        return torch.zeros(b, 3, 0, h * scale, w * scale, device=self.device, dtype=torch.float32)

    def use_half(self, dtype: torch.dtype) -> None:
        """Run the networks in a 16-bit type; quantization stays fp32. Without streaming there is no effect.

        Args:
            dtype: ``torch.bfloat16`` or ``torch.float16``; ``torch.float32`` for no change.

        Raises:
            UsageError: another type.
        """

    def use_triton(self) -> None:
        """Encode with Triton kernels, whose rounding does not depend on the step shape or the frame size.

        Raises:
            UsageError: the tokenizer has no such kernels, or Triton is not installed.
        """
        raise UsageError(f"a {type(self).__name__} has no Triton kernels; set kernels=torch")

    def compile_steps(self, capture: bool = False, **options: Any) -> None:
        """Compile the calls that encoding and decoding consist of. Without streaming there is no effect.

        Args:
            capture: record each call as a CUDA graph and replay it.
            **options: arguments of ``torch.compile``.
        """

    @property
    def warmup_s(self) -> float:
        """Time spent on compiling and recording steps so far (seconds)."""
        return 0.0

    def shape_for(self, height: int, width: int, kind: str = "encode") -> StepShape:
        """Return the step shape for frames of a size.

        Args:
            height: height of a padded frame (pixels).
            width: width of a padded frame (pixels).
            kind: ``encode`` or ``decode``.

        Raises:
            UsageError: another kind.
        """
        if kind not in _KINDS:
            raise UsageError(f"kind={kind!r} must be one of {', '.join(_KINDS)}")
        shape = self.step_shape if kind == "encode" else self.decode_shape
        return shape.for_frames(height, width, self.temporal_factor)

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the shape ``lt lh lw`` of the codes of a video.

        Args:
            num_frames: number of frames.
            height: height of a frame (pixels).
            width: width of a frame (pixels).

        Raises:
            UsageError: a size is not an integer, or below 1.
        """
        num_frames, height, width = (
            as_integer(*each) for each in (("num_frames", num_frames), ("height", height), ("width", width))
        )
        if min(num_frames, height, width) < 1:
            raise UsageError(f"a video of {num_frames} frames of {width}x{height} must have at least 1 of each")
        s = self.spatial_factor
        return 1 + -(-(num_frames - 1) // self.temporal_factor), -(-height // s), -(-width // s)

    def bits_per_pixel(self, num_frames: int, height: int, width: int) -> float:
        """Return the bits of all codes of a video (log2 of the codebook size each) per pixel."""
        lt, lh, lw = self.latent_shape(num_frames, height, width)
        first, later = self.codebooks[0], self.codebooks[-1]
        return lh * lw * (log2(first.size) + (lt - 1) * log2(later.size)) / (num_frames * height * width)

    def pad(self, video: Tensor, first: bool = True) -> Tensor:
        """Pad a video to complete groups and latents by repeating its last frame and its border pixels.

        Args:
            video: ``b c t h w``.
            first: whether the video starts with frame 0, a group on its own; False if it continues a stream.

        Raises:
            UsageError: wrong type or rank.
        """
        video = self._as_tensor(video, "video")
        if video.ndim != 5:
            raise UsageError(f"video has shape {tuple(video.shape)}; it must be b c t h w")
        t, h, w = video.shape[2:]
        s = self.spatial_factor
        missing = (0, -w % s, 0, -h % s, 0, -(t - 1 if first else t) % self.temporal_factor)
        if not any(missing):
            return video
        if video.is_floating_point():
            return F.pad(video, missing, mode="replicate")
        # torch replicates floats only.
        for dim in 2, 3, 4:
            if extra := missing[2 * (4 - dim) + 1]:
                last = video.narrow(dim, video.shape[dim] - 1, 1)
                video = torch.cat([video, last.expand(*last.shape[:dim], extra, *last.shape[dim + 1 :])], dim=dim)
        return video

    def crop_size(
        self, grid: Sequence[int], num_frames: int | None, size: tuple[int, int] | None
    ) -> tuple[int, int, int]:
        """Return the number of frames, the height and the width of the decoded video.

        Args:
            grid: shape of the codes, ``lt lh lw``.
            num_frames: number of frames to keep; None keeps all.
            size: height and width of the encoded video to keep (pixels); None keeps all.

        Raises:
            UsageError: an argument is of another type, or a video of that size has codes of another shape.
        """
        lt, lh, lw = grid
        frames = 1 + (lt - 1) * self.temporal_factor
        keep_t = frames if num_frames is None else num_frames
        keep_h, keep_w = lh * self.spatial_factor, lw * self.spatial_factor
        if size is not None:
            try:
                height, width = size
                keep_h, keep_w = as_integer("height", height), as_integer("width", width)
            except (TypeError, ValueError) as error:
                raise UsageError(
                    f"size={size!r} must be two integers, height and width in pixels, or None for the whole frame"
                ) from error
        if self.latent_shape(keep_t, keep_h, keep_w) != (lt, lh, lw):
            raise UsageError(
                f"num_frames={keep_t} of {keep_h}x{keep_w} do not become a grid of {lt}x{lh}x{lw} codes; "
                f"the whole grid is {frames} of {lh * self.spatial_factor}x{lw * self.spatial_factor}"
            )
        return keep_t, keep_h * self.upscale, keep_w * self.upscale

    def _as_tensor(self, value: Any, name: str) -> Tensor:
        """Return a tensor as it is, and an array as a tensor on this device."""
        check_dense(value, name)
        if isinstance(value, Tensor):
            return value
        try:
            if not hasattr(value, "__array__"):
                raise TypeError("no array")
            return torch.tensor(unreversed(value), device=self.device)
        except (TypeError, ValueError) as error:
            kind = f"{type(value).__name__} of {value.dtype}" if hasattr(value, "dtype") else type(value).__name__
            raise UsageError(f"{name} is a {kind}; it must be a tensor or a NumPy array of numbers") from error

    def _as_codes(self, codes: Any) -> Tensor:
        """Return codes of any integer type as int64; other values as they are."""
        codes = self._as_tensor(codes, "codes")
        return codes if codes.is_floating_point() or codes.dtype in _NO_CODES else codes.long()

    def _check_video(self, video: Tensor, any_device: bool = False, takes_bytes: bool = False) -> None:
        if video.ndim != 5 or video.shape[1] != 3:
            raise UsageError(f"video has shape {tuple(video.shape)}; it must be b 3 t h w")
        is_bytes = takes_bytes and video.dtype == torch.uint8
        if not (video.dtype in _VIDEO_TYPES or is_bytes):
            raise UsageError(
                f"video is {video.dtype}; it must be float of 16 to 64 bits in [-1, 1] (uint8 frames: x / 127.5 - 1)"
            )
        if 0 in video.shape:
            raise UsageError(f"video has shape {tuple(video.shape)}; it must not be empty")
        if not any_device:
            self._check_device(video, "video")
        # A compiled step cannot branch on values.
        if torch.compiler.is_compiling() or not self.checks_range or is_bytes:
            return
        low, high = (float(value) for value in torch.aminmax(video))
        # Negated comparisons, so that NaN is rejected too.
        if not (low >= -MAX_PIXEL and high <= MAX_PIXEL):
            raise UsageError(
                f"video has values from {low:g} to {high:g}; they must be in [-1, 1] (uint8 frames: x / 127.5 - 1)"
            )

    def _check_device(self, tensor: Tensor, name: str) -> None:
        if tensor.device != self.device:
            raise UsageError(f"{name} is on {tensor.device}, the tokenizer on {self.device}; move one to the other")

    def _check_codes(self, codes: Tensor, first: bool) -> None:
        if codes.ndim != 4 or codes.is_floating_point() or codes.dtype in _NO_CODES or 0 in codes.shape:
            raise UsageError(f"codes are {codes.dtype} {tuple(codes.shape)}; they must be integers, b lt lh lw")
        self._check_device(codes, "codes")
        if torch.compiler.is_compiling() or not self.checks_range:
            return
        for book, frames in codebook_spans(self.codebooks, first):
            part = codes[:, frames]
            if part.numel() and not 0 <= int(part.min()) <= int(part.max()) < book.size:
                worst = int(part.min()) if int(part.min()) < 0 else int(part.max())
                raise UsageError(
                    f"code {worst} is out of range; the {book.name} codebook has codes 0 to {book.size - 1}"
                )
