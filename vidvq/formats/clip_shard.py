"""Clip shards: WebDataset tars of ``KEY.mp4``, ``.mkv`` or ``.npy`` (the clip) and ``KEY.json`` (:class:`ClipInfo`)."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from vidvq.errors import UsageError
from vidvq.formats.frame_times import MAX_FRAMES
from vidvq.formats.schema import Count, Pixels, Text, Ticks, TimeBase, parse
from vidvq.formats.tar import read_members, read_samples
from vidvq.storage import canonical_json, parse_json, require_file

FORMAT = "vidvq.clip/1"
PREFIX = "clips"
# Extensions of clips.
MEDIA = ("mp4", "mkv", "npy")


@dataclass(frozen=True)
class ClipInfo:
    """The JSON of a clip.

    Attributes:
        source: uri of the video that the clip was cut from.
        clip_index: index of the clip in that video, from 0.
        time_base: length of a tick (seconds), as a fraction such as ``"1/15360"``.
        pts: presentation time of each frame on the timeline of the *source* (ticks); ``len(pts)`` is the frame count.
        duration: time from the first frame to the end of the last one (ticks).
        fps: mean frame rate of the clip (frames per second).
        height: height of a frame (pixels).
        width: width of a frame (pixels).
        decoder: library that decoded the source, with its version.
        policy: settings that the clip was made with.
        carried: columns carried from the list of inputs, such as a caption or an id.
        retimed: whether ``pts`` were repaired, because the times in the file restart, jump or contradict one another.
            The JSON has this key only if it is true.
    """

    source: Text
    clip_index: Count
    time_base: TimeBase
    pts: Annotated[tuple[Ticks, ...], Field(min_length=1, max_length=MAX_FRAMES)]
    duration: Ticks
    fps: Annotated[float, Field(ge=0)]
    height: Pixels
    width: Pixels
    decoder: Text
    policy: dict[str, Any]
    carried: dict[str, Any] = field(default_factory=dict[str, Any])
    retimed: bool = False

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return len(self.pts)

    @property
    def seconds_per_tick(self) -> Fraction:
        """The time base as an exact fraction."""
        return Fraction(self.time_base)


def clip_files(media: bytes, extension: str, info: ClipInfo) -> dict[str, bytes]:
    """The files of one clip by extension; that of the media is one of :data:`MEDIA`."""
    assert extension in MEDIA
    fields = vars(info) | {"format": FORMAT}
    if not info.retimed:
        del fields["retimed"]
    return {extension: media, "json": canonical_json(fields)}


def parse_clip_info(data: bytes, where: str) -> ClipInfo:
    """Parse the JSON of a clip.

    Raises:
        UsageError: it is damaged; ``where`` names the clip in the message.
    """
    try:
        return parse(ClipInfo, parse_json(data, "it"), FORMAT, "it", "restore the shard")
    except ValueError as error:
        raise UsageError(f"{where} has no readable clip JSON: {error}") from error


def read_clips(path: str | Path) -> Iterator[tuple[str, bytes, ClipInfo]]:
    """Yield ``(key, media, info)`` of each clip in a shard, with one in memory at a time.

    ``media`` is the content of a whole mp4, mkv or npy file.

    Args:
        path: a clip shard, or its URL.

    Raises:
        UsageError: the file does not exist or is not a clip shard, or a clip in it is damaged.
    """
    path = require_file(path, "clip shard")
    for key, files in read_samples(path):
        yield key, files[media_of(files, f"{path}: {key}")], parse_clip_info(files["json"], f"{path}: {key}")


def read_infos(path: Path) -> Iterator[tuple[str, ClipInfo]]:
    """Yield ``(key, info)`` of each clip in a shard.

    Raises:
        UsageError: the file is not a clip shard, or the JSON of a clip is damaged.
    """
    for name, data in read_members(path):
        key, _, extension = name.partition(".")
        if extension == "json":
            yield key, parse_clip_info(data, f"{path}: {key}")


def media_of(files: Collection[str], where: str) -> str:
    """The extension of the media among the files of one clip.

    Raises:
        UsageError: the files are not one media file and one JSON.
    """
    media = [extension for extension in MEDIA if extension in files]
    if len(media) != 1 or set(files) != {*media, "json"}:
        raise UsageError(f"{where} has {sorted(files)}; a clip has json and one of {', '.join(MEDIA)}")
    return media[0]
