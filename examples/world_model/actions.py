"""The actions of a clip, cut out of those of its episode, for `vidvq map`.

vidvq map CLIPS --function examples/world_model/actions.py:actions
"""

import json

import numpy as np

from vidvq.formats.clip_shard import ClipInfo


def actions(frames: np.ndarray, info: ClipInfo) -> dict[str, str]:
    """The action that led to each frame of a clip, as a JSON list.

    Args:
        frames: `t h w c` uint8.
        info: the clip's JSON, with the actions of its video in `carried`.
    """
    played = json.loads(info.carried["played"])
    rate, scale = info.fps, info.seconds_per_tick
    return {"actions": json.dumps([played[round(float(pts * scale) * rate)] for pts in info.pts])}
