"""How much a clip moves, for `vidvq map`.

vidvq map CLIPS --function examples/motion.py:motion
vidvq train CONFIG data.clips=CLIPS data.where="motion > 0.02"
"""

import numpy as np

from vidvq.formats.clip_shard import ClipInfo


def motion(frames: np.ndarray, info: ClipInfo) -> dict[str, float]:
    """The mean change of a pixel from frame to frame (0 to 1), and the largest mean change between two frames.

    Args:
        frames: `t h w c` uint8.
        info: the clip's JSON: source, frame rate, size, what its list carried.
    """
    change = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean(axis=(1, 2, 3)) / 255
    if not len(change):
        return {"motion": 0.0, "motion_peak": 0.0}
    return {"motion": float(change.mean()), "motion_peak": float(change.max())}
