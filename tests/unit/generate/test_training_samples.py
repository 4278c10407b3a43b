"""The distance of a sample to the nearest training sample."""

import numpy as np

from vidvq.generate.training_samples import nearest_distances


def test_samples_are_compared_with_the_nearest_one_of_their_shape():
    codes = np.arange(8).reshape(2, 2, 2)
    half = codes.copy()
    half[1] = 0
    far = np.full((2, 2, 2), 9)
    longer = np.concatenate([codes, codes])
    assert nearest_distances([codes, longer], [far, half]) == [0.5, 1.0]
    assert nearest_distances([codes, half], [far, codes]) == [0.0, 0.5]
    assert nearest_distances([codes], []) == [1.0]
