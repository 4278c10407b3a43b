"""Protocols of published tables: which clips are scored, and how."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

from vidvq.errors import UsageError
from vidvq.formats.clip_shard import ClipInfo

ProtocolName = Literal["mcl-jcv-17x256x256", "tokenbench"]
_LOSSLESS = ("ffv1", "frames")


@dataclass(frozen=True)
class Protocol:
    """A protocol.

    Attributes:
        cite: where it is published.
        sources: number of videos; None for any.
        num_frames: frames of a clip; the last clip of a video may be shorter.
        seconds: clips may also have this duration (seconds), if that is longer; None for no such rule.
        size: height and width of a clip (pixels); None for those of the videos.
        max_short_side: largest short side (pixels); None for any.
        clips_per_source: clips of each video, from its start; None for all.
        psnr: whether PSNR is that of the error of a clip, or the mean over its frames.
        ssim: window of SSIM: Gaussian with sigma 1.5, or 7x7 pixels of equal weight.
        shard: settings of `vidvq shard` that make such clips.
    """

    cite: str
    sources: int | None
    num_frames: int
    seconds: float | None
    size: tuple[int, int] | None
    max_short_side: int | None
    clips_per_source: int | None
    psnr: Literal["clip", "frame"]
    ssim: Literal["gaussian", "uniform"]
    shard: str

    def check(self, infos: Mapping[str, ClipInfo], made_from: Mapping[str, Any]) -> None:
        """Check that clips are those of the protocol.

        Args:
            infos: JSON of each clip, by key.
            made_from: what the plan of the clips was made from.

        Raises:
            UsageError: they are not; the message names the rule and the first clip that breaks it.
        """
        remedy = f"make the clips with vidvq shard VIDEOS --out CLIPS {self.shard}"
        clip, cut = (made_from.get(name) or {} for name in ("clip", "cut"))
        encoding = clip.get("encoding")
        if encoding not in _LOSSLESS:
            raise UsageError(f"the clips were compressed again (clip.encoding={encoding}); {remedy}")
        # Frames that no clip holds leave no trace in the clips.
        for name, value, holds in (
            ("clip.num_frames", clip.get("num_frames"), clip.get("num_frames", 0) >= self.num_frames),
            ("clip.min_frames", clip.get("min_frames"), clip.get("min_frames") == 1),
            ("clip.fps", clip.get("fps"), clip.get("fps") is None),
            ("clip.stride", clip.get("stride"), self.clips_per_source or clip.get("stride") in (None, self.num_frames)),
            ("cut.kind", cut.get("kind"), cut.get("kind") == "windows"),
        ):
            if not holds:
                raise UsageError(f"the clips were made with {name}={value}, which leaves out frames; {remedy}")
        clips = Counter(info.source for info in infos.values())
        if self.sources is not None and len(clips) != self.sources:
            raise UsageError(f"the clips are of {len(clips)} videos, the protocol has {self.sources}; {remedy}")
        last = dict.fromkeys(clips, 0)
        for info in infos.values():
            last[info.source] = max(last[info.source], info.clip_index)
        for key, info in infos.items():
            if broken := self._broken_by(info, clips[info.source], info.clip_index == last[info.source]):
                raise UsageError(f"clip {key} {broken}; {remedy}")

    def _broken_by(self, info: ClipInfo, count: int, is_last: bool) -> str | None:
        if self.clips_per_source is not None and (count > self.clips_per_source or info.clip_index):
            return f"is one of {count} of {info.source}, the protocol has the first {self.clips_per_source}"
        longest = max(self.num_frames, ceil(info.fps * self.seconds) if self.seconds else 0)
        if info.num_frames > longest or (info.num_frames < self.num_frames and not is_last):
            return f"has {info.num_frames} frames, the protocol {longest}"
        if self.size and (info.height, info.width) != self.size:
            return f"is {info.width}x{info.height}, the protocol {self.size[1]}x{self.size[0]}"
        if self.max_short_side and min(info.height, info.width) > self.max_short_side:
            return f"has a short side of {min(info.height, info.width)}, the protocol at most {self.max_short_side}"
        return None


PROTOCOLS: dict[str, Protocol] = {
    # All windows of 17 frames of the 30 videos; every frame, because 24 to 30 fps round to an interval of 1 at 30 fps.
    "mcl-jcv-17x256x256": Protocol(
        cite=(
            "VidTok, arXiv:2412.13061, https://github.com/microsoft/VidTok (scripts/inference_evaluate.py); MCL-JCV, "
            "Wang et al. 2016"
        ),
        sources=30,
        num_frames=17,
        seconds=None,
        size=(256, 256),
        max_short_side=None,
        clips_per_source=None,
        psnr="frame",
        ssim="gaussian",
        shard="clip.num_frames=17 clip.min_frames=1 clip.size=[256,256] clip.encoding=ffv1",
    ),
    # The first ten seconds, or 300 frames if that is more, as the scripts of the benchmark leave the videos.
    "tokenbench": Protocol(
        cite="TokenBench, arXiv:2501.03575, https://github.com/NVlabs/TokenBench (token_bench/metrics_cli.py)",
        sources=None,
        num_frames=300,
        seconds=10,
        size=None,
        max_short_side=1080,
        clips_per_source=1,
        psnr="clip",
        ssim="uniform",
        shard=(
            "clip.num_frames=300 clip.min_frames=1 clip.stride=1000000 clip.short_side=null clip.multiple=1 "
            "clip.encoding=ffv1"
        ),
    ),
}
