"""Shot boundaries of a video, found by PySceneDetect's adaptive detector on downscaled frames."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vidvq.errors import UsageError
from vidvq.shard.config import CutPolicy
from vidvq.video import VideoError
from vidvq.video.decode import FrameReader, open_reader
from vidvq.video.geometry import fit_size
from vidvq.video.probe import VideoInfo

_SHORT_SIDE = 96
_FRAMES_AT_A_TIME = 64


def find_shots(path: Path, info: VideoInfo, policy: CutPolicy) -> list[int]:
    """The index of the first frame of each shot, starting with 0. Decodes the whole video once.

    Frames that cannot be decoded are skipped.

    Raises:
        VideoError: ``decode_error``: not one frame can be decoded.
    """
    from scenedetect import AdaptiveDetector, FrameTimecode

    detector = AdaptiveDetector(
        adaptive_threshold=policy.threshold, min_scene_len=max(round(policy.min_shot_s * info.fps), 1)
    )
    size = fit_size(*info.shown_size, min(_SHORT_SIDE, info.height, info.width), 1)
    reader = open_reader(path, info, size, "pyav")
    shots = [0]
    for index, frame in _readable(reader, info.num_frames):
        bgr = np.ascontiguousarray(frame[:, :, ::-1])
        shots += [cut.frame_num for cut in detector.process_frame(FrameTimecode(index, fps=info.fps), bgr)]
    return shots


def check_installed() -> None:
    """Refuse ``cut.kind=shots`` before any work if its library is not installed.

    Raises:
        UsageError: PySceneDetect is not installed.
    """
    try:
        import scenedetect  # noqa: F401
    except ImportError as error:
        raise UsageError("cut.kind='shots' needs PySceneDetect; run `pip install 'vidvq[shots]'`") from error


def _readable(reader: FrameReader, num_frames: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the index and pixels of each frame that can be decoded."""
    failure: VideoError | None = None
    found = 0
    for start in range(0, num_frames, _FRAMES_AT_A_TIME):
        indices = range(start, min(start + _FRAMES_AT_A_TIME, num_frames))
        try:
            frames = list(zip(indices, reader.read(indices), strict=True))
        except VideoError:
            frames = []
            for index in indices:
                try:
                    frames.append((index, reader.read([index])[0]))
                except VideoError as error:
                    failure = error
        found += len(frames)
        yield from frames
    if failure is not None and not found:
        raise failure
