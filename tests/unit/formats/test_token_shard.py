"""Token shards: codes there and back, and every code in its codebook."""

import io
import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidvq.formats.commit import commit_shard
from vidvq.formats.token_shard import (
    Codebook,
    TokenInfo,
    TokenizerCard,
    check_codes,
    encode_tokenizer_card,
    parse_tokens,
    read_tokenizer_card,
    read_tokens,
    token_files,
)

CARD = TokenizerCard(
    token_fingerprint="aa" * 32,
    decoder_fingerprint="bb" * 32,
    codebooks=(Codebook("spatial", 16, 0), Codebook("temporal", 100, 16)),
    temporal_factor=4,
    spatial_factor=8,
    preprocessing={"range": [-1, 1]},
)
INFO = TokenInfo(
    source="/v/a.mp4",
    clip_index=0,
    grid=(3, 2, 2),
    num_frames=8,
    height=15,
    width=16,
    fps=25.0,
    time_base="1/25",
    pts=tuple(range(8)),
    duration=8,
)
CODES = np.array([[[0, 15], [1, 2]], [[99, 0], [50, 3]], [[4, 5], [6, 7]]])


def npy(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npz(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, array)
    return buffer.getvalue()


def files(codes: np.ndarray | bytes = CODES, **fields: object) -> dict[str, bytes]:
    good = token_files(CODES, INFO, CARD)
    data = json.loads(good["json"]) | fields
    tokens = codes if isinstance(codes, bytes) else npy(codes.astype(np.uint16) if codes is CODES else codes)
    return {"tokens.npy": tokens, "json": json.dumps(data).encode()}


def test_codes_come_back_as_they_went_in(tmp_path):
    commit_shard(tmp_path, "tokens-000000.tar", "plan", lambda draft: draft.add("a", token_files(CODES, INFO, CARD)))
    ((key, codes, info),) = read_tokens(tmp_path / "tokens-000000.tar", CARD)
    assert (key, info, codes.dtype) == ("a", INFO, np.uint16)
    np.testing.assert_array_equal(codes, CODES)


@pytest.mark.parametrize(("num_frames", "size"), [(33, (128, 224)), (129, (256, 448)), (1, (64, 64))])
def test_a_sample_costs_two_bytes_a_token_and_some_two_kilobytes(tmp_path, num_frames, size):
    grid = (1 + (num_frames - 1) // 4, size[0] // 8, size[1] // 8)
    source, times = "s3://a-bucket/some/folder/of/videos/0123456789abcdef.mp4", range(0, 1001 * num_frames, 1001)
    info = TokenInfo(source, 0, grid, num_frames, *size, 29.97003, "1/30000", tuple(times), 1001 * num_frames)

    def fill(draft):
        for index in range(50):
            draft.add(f"0123456789abcdef-{index:05d}", token_files(np.zeros(grid, np.int64), info, CARD))

    commit = commit_shard(tmp_path, "tokens-000000.tar", "plan", fill)
    assert commit.bytes / 50 - 2 * np.prod(grid) < 2400  # of which 200 are the end of the tar
    assert len(token_files(np.zeros(grid, np.int64), info, CARD)["json"]) < 512  # one block


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [((1 << 15, 1 << 15), np.uint16), ((1 << 15, (1 << 15) + 1), np.uint32), ((1 << 20,), np.uint32)],
)
def test_the_smallest_type_that_holds_the_flat_vocabulary_is_used(sizes, dtype):
    books = tuple(Codebook(f"book{index}", size, 0) for index, size in enumerate(sizes))
    card = replace(CARD, codebooks=books)
    tokens = np.load(io.BytesIO(token_files(CODES, INFO, card)["tokens.npy"]))
    assert tokens.dtype == dtype


@pytest.mark.parametrize(
    ("place", "code", "book"),
    [
        ((0, 1, 1), 16, "spatial codebook has codes 0 to 15"),
        ((1, 0, 1), 100, "temporal codebook has codes 0 to 99"),
        ((2, 1, 0), 65535, "temporal codebook has codes 0 to 99"),
        ((0, 0, 0), -1, "spatial codebook has codes 0 to 15"),
    ],
)
def test_a_code_out_of_range_is_named_with_its_place_and_codebook(place, code, book):
    codes = CODES.copy()
    codes[place] = code
    t, h, w = place
    for dtype in (np.int64, np.uint32) if code >= 0 else (np.int64,):
        with pytest.raises(ValueError) as error:
            check_codes(codes.astype(dtype), CARD, "here")
        assert f"here: code {code} at t={t} h={h} w={w} is out of range; the {book}" in str(error.value)


def test_what_is_out_of_range_is_not_written():
    with pytest.raises(ValueError, match="code 16"):
        token_files(np.full_like(CODES, 16), INFO, CARD)


def test_of_a_joint_codebook_every_latent_is_served():
    card = replace(CARD, codebooks=(Codebook("joint", 100, 0),))
    check_codes(np.full((3, 2, 2), 99), card, "here")
    with pytest.raises(ValueError, match="joint codebook"):
        check_codes(np.full((3, 2, 2), 100), card, "here")


@given(st.integers(0, 2), st.integers(0, 1), st.integers(0, 1), st.integers(0, 65535))
def test_a_code_passes_where_its_codebook_has_it_and_only_there(t, h, w, code):
    codes = CODES.astype(np.uint16)
    codes[t, h, w] = code
    try:
        check_codes(codes, CARD, "here")
        passed = True
    except ValueError:
        passed = False
    assert passed == (code < (16 if t == 0 else 100))


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (files(npy(CODES.astype(object), allow_pickle=True)), "allow_pickle=False"),
        (files(CODES.astype(np.int64)), "tokens are int64"),
        (files(CODES.astype(np.float32)), "tokens are float32"),
        (files(CODES.astype(np.uint16)[0]), "its JSON says"),
        (files(CODES.astype(np.uint16)[None]), "its JSON says"),
        (files(CODES.astype(np.uint16)[:2]), "its JSON says"),
        (files(np.zeros((0, 2, 2), np.uint16), grid=[0, 2, 2]), "grid.0=0"),
        (files(grid=[3, -2, -2]), "grid.1=-2"),
        (files(grid=[1 << 70, 1, 1]), "grid.0=1180591620717411303424"),
        (files(grid=[3, 2, 2, 1]), "grid=[3, 2, 2, 1]"),
        (files(b""), "not a readable token sample"),
        (files(b"\x93NUMPY\x01"), "not a readable token sample"),
        (files(npy(CODES.astype(np.uint16))[:-3]), "not a readable token sample"),
        (files(b"PK\x03\x04" + b"\0" * 40), "not a readable token sample"),
        (files(npz(CODES)), "not a readable token sample"),
        (files(npy(CODES.astype(np.uint16)).replace(b"(3, 2, 2)", b"(9999999,9999999,9)")), "not a readable token"),
        (files(npy(CODES.astype(np.uint16)).replace(b"(3, 2, 2), ", b"(True, 12),")), "not a readable token sample"),
        (files(num_frames=9), "pts have 8 frames, its num_frames is 9"),
        (files(pts=[0, [1, 10**12]], num_frames=10**12 + 1), "its num_frames is 1000000000001"),
        (files(pts=[0, [1, -3], [1, 10]]), "its num_frames is 8"),
        (files(pts=[0, [1.5, 7]]), "not whole numbers"),
        (files(pts=list(range(8))), "not a readable token sample"),
        (files(pts=[]), "not a readable token sample"),
        (files(pts=None), "not a readable token sample"),
        (files(time_base="1e999999999"), "time_base='1e999999999'"),
        (files(time_base="0/1"), "time_base='0/1'"),
        (files(quality={"psnr": 1e308}), "quality.psnr=1e+308"),
        (files(format="vidvq.tokens/1"), "not of format vidvq.tokens/2"),
        (files(surprise=1), "surprise"),
        (files(grid=None), "not a readable token sample"),
        (files() | {"json": b"{"}, "not a readable token sample"),
        (files() | {"json": b"[]"}, "not a readable token sample"),
        (files() | {"txt": b""}, "a token sample has"),
        ({"json": files()["json"]}, "a token sample has"),
    ],
)
def test_a_bad_sample_is_refused_by_name(given, rule):
    with pytest.raises(ValueError, match=r"x\.tar: a") as error:
        parse_tokens(given, CARD, "x.tar: a")
    assert rule in str(error.value)


def test_a_pickle_in_an_npy_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (type(tmp_path).touch, (tmp_path / "owned",))

    data = npy(np.array([Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="not a readable token sample"):
        parse_tokens(files(data), CARD, "x.tar: a")
    assert not (tmp_path / "owned").exists()


def test_a_card_comes_back_as_it_went_in(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(encode_tokenizer_card(CARD))
    assert read_tokenizer_card(tmp_path) == CARD
    assert (CARD.vocabulary, CARD.dtype) == (116, np.uint16)


def card_text(**fields: object) -> str:
    return json.dumps(asdict(CARD) | {"format": "vidvq.tokenizer/1"} | fields)


BOOK = {"name": "joint", "size": 16, "offset": 0}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        card_text(format="vidvq.tokenizer/9"),
        card_text(surprise=1),
        card_text(codebooks=[]),
        card_text(codebooks=[BOOK] * 3),
        card_text(codebooks=[BOOK | {"size": 0}]),
        card_text(codebooks=[BOOK | {"size": "big"}]),
        card_text(codebooks=[BOOK | {"size": 1 << 40}]),
        card_text(codebooks=[{"name": "spatial"}]),
        card_text(codebooks=7),
        card_text(codebooks=[BOOK | {"offset": 1}]),
        card_text(codebooks=[BOOK | {"name": "spatial"}, BOOK | {"name": "temporal", "offset": 15}]),
        card_text(codebooks=[BOOK | {"name": "spatial"}]),
        card_text(codebooks=[BOOK | {"size": True}]),
        card_text(temporal_factor=0),
        card_text(spatial_factor="8"),
        card_text(raster_order="h w t"),
        card_text(token_fingerprint=7),
    ],
)
def test_a_damaged_card_is_refused_by_name(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(card_text(codebooks=[BOOK]))
    assert read_tokenizer_card(tmp_path).vocabulary == 16
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        read_tokenizer_card(tmp_path)


def test_a_missing_card_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        read_tokenizer_card(tmp_path)
