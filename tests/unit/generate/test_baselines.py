"""Trivial baselines: the last frame, the linear blend, the surrounding mean."""

import numpy as np

from vidvq.generate.evaluation.baselines import blend, repeat_last, surrounding_mean


def ramp(*values):
    return np.array(values, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 6, 3), dtype=np.uint8)


def test_the_last_given_frame_is_repeated():
    assert repeat_last(ramp(1, 2, 3, 4), 2)[:, 0, 0, 0].tolist() == [1, 2, 2, 2]


def test_frames_between_kept_ones_are_blended_in_time():
    assert blend(ramp(10, 0, 0, 0, 50), [0, 4])[:, 0, 0, 0].tolist() == [10, 20, 30, 40, 50]
    assert blend(ramp(10, 99, 30, 99, 20), [0, 2, 4])[:, 0, 0, 0].tolist() == [10, 20, 30, 25, 20]


def test_a_box_is_filled_with_the_mean_around_it():
    frames = np.full((1, 40, 40, 3), 200, dtype=np.uint8)
    frames[:, 10:30, 10:30] = 100
    hidden = np.zeros((1, 40, 40), dtype=bool)
    hidden[:, 15:25, 15:25] = True
    frames[hidden] = 7
    filled = surrounding_mean(frames, hidden)
    # The ring is 26 pixels wide: 400 - 100 dark pixels, 676 - 400 light ones.
    assert np.unique(filled[hidden]).tolist() == [round((300 * 100 + 276 * 200) / 576)]
    assert (filled[~hidden] == frames[~hidden]).all() and (frames[hidden] == 7).all()
