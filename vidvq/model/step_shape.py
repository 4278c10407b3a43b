"""Shape of one call of a network. Kernels are selected by shape, so it alone determines how sums are rounded."""

from dataclasses import dataclass, replace

from vidvq.arguments import as_integer

# Pixels of one call that fit a GPU of 40 GB with the largest configuration.
_CALL_PIXELS = 1 << 27


@dataclass(frozen=True)
class StepShape:
    """Number of streams and of groups that one call of the encoder or decoder processes.

    Shorter input is padded to the shape, and the result is cropped. Equal shapes give equal tokens, independent of the
    number of workers, the other streams of a call, and the chunks in which frames arrive.

    Attributes:
        streams: streams per call (1 or more).
        groups: consecutive groups of each stream per call (1 or more); the first group of a stream is frame 0 alone.
        max_pixels: maximum number of pixels of a call; streams, then groups, are halved for larger frames.
    """

    streams: int = 1
    groups: int = 1
    max_pixels: int = _CALL_PIXELS

    def __post_init__(self) -> None:
        for name in ("streams", "groups", "max_pixels"):
            as_integer(name, getattr(self, name), least=1)

    def for_frames(self, height: int, width: int, temporal_factor: int) -> "StepShape":
        """Return the shape for frames of a size, with at most ``max_pixels`` pixels per call where that is possible.

        Args:
            height: height of a frame, or of a tile of it (pixels).
            width: width of a frame, or of a tile of it (pixels).
            temporal_factor: frames per group.
        """
        streams, groups = self.streams, self.groups
        group_pixels = temporal_factor * height * width
        while streams > 1 and streams * groups * group_pixels > self.max_pixels:
            streams //= 2
        while groups > 1 and groups * group_pixels > self.max_pixels:
            groups //= 2
        return replace(self, streams=streams, groups=groups)

    def num_frames(self, temporal_factor: int, first: bool) -> int:
        """Return the frames of a stream that one call encodes.

        Args:
            temporal_factor: frames per group.
            first: whether the call starts the stream.
        """
        return self.groups * temporal_factor - (temporal_factor - 1 if first else 0)

    def __str__(self) -> str:
        return f"{self.streams}x{self.groups}"


# One stream at a time on a GPU, where one group per call is too little work for the launches that it takes.
GPU_STREAM = StepShape(groups=8)
