"""Packed codes come back as they were, and damage is refused."""

import numpy as np
import pytest

from vidvq.formats import token_bits
from vidvq.formats.token_bits import pack_codes, unpack_codes
from vidvq.formats.token_shard import PACKED, Codebook, TokenInfo, TokenizerCard, parse_tokens, token_files

CARD = TokenizerCard("a" * 64, "b" * 64, (Codebook("spatial", 512, 0), Codebook("temporal", 1000, 512)), 4, 8, {})
CODES = np.random.default_rng(0).integers(0, 512, (3, 5, 7), dtype=np.uint16)
INFO = TokenInfo("v.mp4", 0, (3, 5, 7), 9, 40, 56, 25.0, "1/25", tuple(range(9)), 9)


def test_a_packed_sample_reads_as_any_other_and_takes_fewer_bytes():
    files = token_files(CODES, INFO, CARD, pack=True)
    assert files.keys() == {PACKED, "json"}
    assert len(files[PACKED]) < CODES.size * 2 * 0.75
    codes, info = parse_tokens(files, CARD, "x")
    assert info == INFO and codes.dtype == np.uint16 and np.array_equal(codes, CODES)


@pytest.mark.parametrize("size", [1, 2, 3, 512, 513, 1 << 16, (1 << 20) + 1])
def test_every_size_of_codebook(size):
    book = Codebook("joint", size, 0)
    codes = np.array([[[0, size - 1, size // 2]]], dtype=np.uint32)
    data = pack_codes(codes, lambda t: book)
    assert np.array_equal(unpack_codes(data, (1, 1, 3), lambda t: book, np.uint32), codes)


@pytest.mark.parametrize(("spatial", "temporal"), [(5, 300), (1 << 16, 3), (100, (1 << 20) + 1), ((1 << 32) - 1, 7)])
def test_runs_of_two_widths_on_any_bit(spatial, temporal):
    books = (Codebook("spatial", spatial, 0), Codebook("temporal", temporal, spatial))
    rng = np.random.default_rng(0)
    groups = [rng.integers(0, books[min(t, 1)].size, (3, 5), dtype=np.uint32) for t in range(6)]
    data = pack_codes(np.stack(groups), lambda t: books[min(t, 1)])
    assert np.array_equal(unpack_codes(data, (6, 3, 5), lambda t: books[min(t, 1)], np.uint32), np.stack(groups))


def test_a_long_sample_is_unpacked_in_pieces(monkeypatch):
    from_bits, counts = token_bits._from_bits, []
    monkeypatch.setattr(token_bits, "_CHUNK", 13)
    monkeypatch.setattr(token_bits, "_from_bits", lambda *given: counts.append(given[2]) or from_bits(*given))
    data = pack_codes(CODES, CARD.codebook_of)
    assert np.array_equal(unpack_codes(data, CODES.shape, CARD.codebook_of, np.uint16), CODES)
    assert counts == [13, 13, 9, *[13] * 5, 5]


@pytest.mark.parametrize("grid", [(10**12, 1, 1), (1, 1 << 20, 1 << 20), (1 << 60, 1 << 60, 1 << 60)])
def test_a_grid_is_not_allocated_before_it_is_known_to_be_there(grid):
    """Such as that of a few kB of zstd, which hold terabytes of zeros."""
    with pytest.raises(ValueError, match="at most 1073741824"):
        unpack_codes(b"", grid, CARD.codebook_of, np.uint16)


@pytest.mark.parametrize("damage", [lambda d: d[:-3], lambda d: b"no" + d[2:], lambda d: d[:20] + b"??" + d[22:]])
def test_damage_is_refused(damage):
    files = token_files(CODES, INFO, CARD, pack=True)
    with pytest.raises(ValueError, match="x is not a readable token sample"):
        parse_tokens(files | {PACKED: damage(files[PACKED])}, CARD, "x")


@pytest.mark.parametrize("grid", [(3, 5, 6), (3, 5, 8)])
def test_codes_of_another_grid_are_refused(grid):
    data = token_files(CODES, INFO, CARD, pack=True)[PACKED]
    with pytest.raises(ValueError, match="its packed codes are not the"):
        unpack_codes(data, grid, CARD.codebook_of, np.uint16)
