"""Times of clips that are cut or continued."""

import pytest

from vidvq.formats.token_shard import TokenInfo
from vidvq.generate.sampling.pipeline import extend_times


@pytest.mark.parametrize(
    ("pts", "duration", "frames", "new_pts", "new_duration"),
    [
        ((3, 13, 23, 33, 50), 60, 5, (3, 13, 23, 33, 50), 60),
        ((3, 13, 23, 33, 50), 60, 3, (3, 13, 23), 30),
        ((3, 13, 23, 33, 50), 60, 7, (3, 13, 23, 33, 50, 67, 84), 98),
        ((3,), 40, 3, (3, 43, 83), 120),
        ((3,), 0, 2, (3, 4), 2),
    ],
    ids=["whole", "cut", "continued", "image", "image without a duration"],
)
def test_a_clip_is_cut_or_continued_with_its_last_interval(pts, duration, frames, new_pts, new_duration):
    info = TokenInfo("a.mp4", 0, (1, 1, 1), len(pts), 8, 8, 25.0, "1/100", pts, duration, {"psnr": 30.0})
    found = extend_times(info, frames)
    assert (found.pts, found.duration, found.num_frames, found.quality) == (new_pts, new_duration, frames, None)
