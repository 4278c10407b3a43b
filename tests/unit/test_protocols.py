"""Protocols of published tables: clips that do not fit are named with the rule."""

import numpy as np
import pytest

from vidvq.config import load
from vidvq.errors import UsageError
from vidvq.evaluate import EvaluateConfig
from vidvq.evaluate.protocols import PROTOCOLS
from vidvq.evaluate.scores import VideoScorer
from vidvq.formats.clip_shard import ClipInfo
from vidvq.metrics.pixel import frame_psnr, psnr
from vidvq.shard.config import ShardConfig

CLIP = {"encoding": "ffv1", "num_frames": 300, "min_frames": 1, "fps": None, "stride": None}
LOSSLESS = {"clip": CLIP, "cut": {"kind": "windows"}}


def clip(source: int, index: int, frames: int = 17, size: tuple[int, int] = (256, 256), fps: float = 25.0) -> ClipInfo:
    pts = tuple(range(frames))
    return ClipInfo(f"{source}.mp4", index, "1/25", pts, frames, fps, *size, decoder="pyav", policy={})


@pytest.fixture
def windows() -> dict[str, ClipInfo]:
    """Two windows of each of 30 videos, the last of which is shorter."""
    return {f"{s}-{i}": clip(s, i, 17 if i == 0 else 3) for s in range(30) for i in range(2)}


def test_the_clips_of_the_protocol_pass(windows):
    PROTOCOLS["mcl-jcv-17x256x256"].check(windows, LOSSLESS)
    videos = {str(s): clip(s, 0, 300 if s else 120, (720, 1280)) for s in range(3)}
    videos["60 fps"] = clip(9, 0, 600, (1080, 1920), fps=60.0)
    PROTOCOLS["tokenbench"].check(videos, LOSSLESS)


def test_the_clips_are_passed_over_a_fixed_number_of_times():
    class Counted(dict[str, ClipInfo]):
        passes = 0

        def values(self):
            self.passes += 1
            return super().values()

    videos = Counted({str(s): clip(s, 0, 300) for s in range(50)})
    PROTOCOLS["tokenbench"].check(videos, LOSSLESS)
    assert videos.passes < 5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"3-0": clip(3, 0, 16)}, "clip 3-0 has 16 frames, the protocol 17"),
        ({"3-1": clip(3, 1, 33)}, "clip 3-1 has 33 frames, the protocol 17"),
        ({"3-0": clip(3, 0, size=(256, 448))}, "clip 3-0 is 448x256, the protocol 256x256"),
        ({"extra": clip(30, 0)}, "the clips are of 31 videos, the protocol has 30"),
    ],
)
def test_clips_that_do_not_fit_are_named_with_the_rule_and_the_remedy(windows, changed, message):
    with pytest.raises(UsageError) as caught:
        PROTOCOLS["mcl-jcv-17x256x256"].check(windows | changed, LOSSLESS)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert "make the clips with vidvq shard VIDEOS --out CLIPS clip.num_frames=17" in str(caught.value)


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        ([clip(0, 0, 301)], "has 301 frames, the protocol 300"),
        ([clip(0, 0, 300, (1440, 2560))], "has a short side of 1440, the protocol at most 1080"),
        ([clip(0, 0, 300), clip(0, 1, 300)], "is one of 2 of 0.mp4, the protocol has the first 1"),
    ],
)
def test_videos_of_tokenbench_that_do_not_fit_are_named(videos, message):
    with pytest.raises(UsageError, match=message):
        PROTOCOLS["tokenbench"].check({str(at): each for at, each in enumerate(videos)}, LOSSLESS)


def test_clips_that_were_compressed_again_do_not_fit(windows):
    with pytest.raises(UsageError, match=r"compressed again \(clip.encoding=h264\)"):
        PROTOCOLS["mcl-jcv-17x256x256"].check(windows, {"clip": {"encoding": "h264"}})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clip": CLIP | {"min_frames": 17}}, "the clips were made with clip.min_frames=17, which leaves out frames"),
        ({"clip": CLIP | {"stride": 100}}, "clip.stride=100"),
        ({"clip": CLIP | {"fps": 12.5}}, "clip.fps=12.5"),
        ({"cut": {"kind": "shots"}}, "cut.kind=shots"),
    ],
)
def test_clips_made_with_settings_that_leave_out_frames_do_not_fit(windows, changed, message):
    with pytest.raises(UsageError, match=message):
        PROTOCOLS["mcl-jcv-17x256x256"].check(windows, LOSSLESS | changed)


def test_clips_that_end_before_their_video_does_are_not_those_of_tokenbench():
    with pytest.raises(UsageError, match=r"clip.num_frames=30, which leaves out frames; make .* clip.num_frames=300"):
        PROTOCOLS["tokenbench"].check({"0": clip(0, 0, 30)}, LOSSLESS | {"clip": CLIP | {"num_frames": 30}})
    PROTOCOLS["tokenbench"].check({"0": clip(0, 0, 300)}, LOSSLESS | {"clip": CLIP | {"stride": 1000000}})


def test_psnr_and_ssim_follow_the_protocol():
    from skimage.metrics import structural_similarity

    rng = np.random.default_rng(0)
    original = rng.integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)
    noise = rng.integers(-1, 2, original.shape) * np.array([1, 20, 60])[:, None, None, None]
    other = np.clip(original + noise, 0, 255).astype(np.uint8)
    mask = np.zeros((24, 24), dtype=bool)
    by_frame = VideoScorer(EvaluateConfig(protocol="mcl-jcv-17x256x256")).score(original, other, mask)
    by_clip = VideoScorer(EvaluateConfig(protocol="tokenbench")).score(original, other, mask)
    plain = VideoScorer(EvaluateConfig()).score(original, other, mask)
    assert by_frame.psnr == pytest.approx(np.mean(frame_psnr(original, other)))
    assert by_clip.psnr == plain.psnr == psnr(original, other) < by_frame.psnr
    uniform = [
        structural_similarity(a, b, channel_axis=-1, data_range=255) for a, b in zip(original, other, strict=True)
    ]
    assert by_clip.ssim == pytest.approx(np.mean(uniform))
    assert by_frame.ssim == plain.ssim != by_clip.ssim


def test_every_protocol_cites_its_source():
    assert all("arXiv:" in each.cite and "https://" in each.cite for each in PROTOCOLS.values())


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_remedy_is_settings_of_shard(name):
    config = load(ShardConfig, None, PROTOCOLS[name].shard.split())
    assert config.clip.num_frames == PROTOCOLS[name].num_frames
    assert config.clip.encoding in {"ffv1", "frames"}
    assert config.clip.size == PROTOCOLS[name].size
