"""A grid to a sequence and back, in every order."""

import numpy as np
import pytest

from vidvq.export import ExportConfig, Layout, grid_to_sequence, sequence_to_grid
from vidvq.formats.token_shard import Codebook, TokenizerCard

CARD = TokenizerCard(
    token_fingerprint="aa" * 32,
    decoder_fingerprint="bb" * 32,
    codebooks=(Codebook("spatial", 16, 0), Codebook("temporal", 100, 16)),
    temporal_factor=4,
    spatial_factor=8,
    preprocessing={},
)
CODES = np.array([[[0, 15], [1, 2]], [[99, 0], [50, 3]], [[4, 5], [6, 7]]], dtype=np.uint16)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ExportConfig("raster", "none"), [0, 15, 1, 2, 115, 16, 66, 19, 20, 21, 22, 23]),
        (ExportConfig("temporal", "clip"), [116, 0, 115, 20, 15, 16, 21, 1, 66, 22, 2, 19, 23, 117]),
        (
            ExportConfig("raster", "group"),
            [116, 118, 0, 15, 1, 2, 118, 115, 16, 66, 19, 118, 20, 21, 22, 23, 117],
        ),
    ],
)
def test_the_sequence_is_the_declared_one_and_comes_back(config, expected):
    layout = Layout(CARD, config)
    sequence = grid_to_sequence(CODES, layout)
    assert sequence.tolist() == expected
    back = sequence_to_grid(sequence, CODES.shape, layout)
    assert back.dtype == CODES.dtype and (back == CODES).all()


@pytest.mark.parametrize("order", ["raster", "temporal"])
@pytest.mark.parametrize("grid", [(1, 1, 1), (5, 3, 2), (1, 4, 7), (9, 1, 1)])
def test_any_grid_comes_back(order, grid):
    codes = np.random.default_rng(0).integers(0, 16, grid)
    layout = Layout(CARD, ExportConfig(order))
    assert (sequence_to_grid(grid_to_sequence(codes, layout), grid, layout) == codes).all()


def test_a_wrong_sequence_is_refused():
    layout = Layout(CARD, ExportConfig())
    sequence = grid_to_sequence(CODES, layout)
    with pytest.raises(ValueError, match="14 ids; got 13"):
        sequence_to_grid(sequence[:-1], CODES.shape, layout)
    with pytest.raises(ValueError, match="must be between"):
        sequence_to_grid(sequence[::-1], CODES.shape, layout)
    # A code of the temporal codebook at time 0.
    sequence[1] = 16
    with pytest.raises(ValueError, match="out of range"):
        sequence_to_grid(sequence, CODES.shape, layout)


def test_groups_need_raster_order():
    with pytest.raises(ValueError, match="specials=group needs order=raster"):
        ExportConfig("temporal", "group")
