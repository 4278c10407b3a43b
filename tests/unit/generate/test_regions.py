"""Regions to generate: masks from files, boxes outside the frame, inserted frames and their times."""

import struct
import zlib
from contextlib import suppress
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from vidvq.errors import UsageError
from vidvq.formats.token_shard import TokenInfo
from vidvq.generate.requests import FillConfig, InterpolateConfig
from vidvq.generate.sampling.regions import prepare, read_mask, result_shape

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 3), dtype=np.uint8)
INFO = TokenInfo("a.mp4", 0, (2, 2, 3), 5, 16, 24, 10.0, "1/100", (3, 13, 23, 33, 50), 60)


@pytest.mark.parametrize("name", ["mask.png", "mask.npy", "frames.npy"])
@pytest.mark.parametrize("outside", [False, True])
def test_a_mask_file_names_the_pixels(tmp_path, name, outside):
    path, expected = tmp_path / name, np.zeros(FRAMES.shape[:3], dtype=bool)
    expected[:, 3:9, 5:20] = True
    if name == "mask.png":
        Image.fromarray(expected[0].astype(np.uint8) * 200).save(path)
    else:
        np.save(path, expected if name == "frames.npy" else expected[0].astype(np.float32))
    config = FillConfig(mask=str(path), outside=outside)
    frames, hidden, info = prepare(config, FRAMES, INFO, read_mask(str(path)))
    assert np.array_equal(hidden, ~expected if outside else expected)
    assert np.array_equal(frames, FRAMES) and info == INFO
    before = config.identity()
    assert FillConfig(mask=str(path)).identity() == before | {"outside": False}
    np.save(tmp_path / "other.npy", ~expected)
    assert FillConfig(mask=str(tmp_path / "other.npy"), outside=outside).identity()["mask"] != before["mask"]


@pytest.mark.parametrize(
    ("box", "size", "at"),
    [
        ((-8, -4, 12, 40), (40, 32), (4, 8)),
        ((20, 2, 12, 8), (16, 32), (0, 0)),
        ((24, 0, 8, 16), (16, 32), (0, 0)),
        ((2, 2, 4, 4), (16, 24), (0, 0)),
    ],
)
def test_a_box_outside_the_frame_enlarges_it(box, size, at):
    frames, hidden, info = prepare(FillConfig(box=box), FRAMES, INFO)
    assert result_shape(FillConfig(box=box), FRAMES.shape[:3]) == frames.shape[:3]
    assert result_shape(FillConfig(box=box, outside=True), FRAMES.shape[:3]) == FRAMES.shape[:3]
    top, left = at
    assert frames.shape[1:3] == hidden.shape[1:] == (info.height, info.width) == size
    assert np.array_equal(frames[:, top : top + 16, left : left + 24], FRAMES)
    rows, columns = np.mgrid[: size[0], : size[1]]
    y, x = rows - top, columns - left
    inside = (x >= box[0]) & (x < box[0] + box[2]) & (y >= box[1]) & (y < box[1] + box[3])
    beyond = (x < 0) | (x >= 24) | (y < 0) | (y >= 16)
    assert (hidden == (inside | beyond)).all()


def test_inserted_frames_divide_the_intervals():
    frames, hidden, info = prepare(InterpolateConfig(insert=2), FRAMES, INFO)
    assert len(frames) == info.num_frames == len(info.pts) == 13 and info.fps == 30
    assert result_shape(InterpolateConfig(insert=2), FRAMES.shape[:3]) == frames.shape[:3]
    assert np.array_equal(frames[::3], FRAMES) and not hidden[::3].any()
    assert hidden.sum() == 8 * 16 * 24
    tick = Fraction(info.time_base)
    assert [pts * tick for pts in info.pts[::3]] == [Fraction(pts, 100) for pts in INFO.pts]
    assert len(set(np.diff(info.pts[:10]))) == 1 and info.duration * tick == Fraction(60, 100)
    assert "insert" not in InterpolateConfig(every=2).identity()


def test_a_mistake_is_named(tmp_path):
    path = tmp_path / "mask.npy"
    with pytest.raises(UsageError, match=r"mask=\S+ cannot be read: No such file or directory; set it to a PNG"):
        read_mask(str(path))
    np.save(path, np.ones((4, 8)))
    with pytest.raises(UsageError, match="24x16 pixels; mask=.*has 1 frame of 8x4"):
        prepare(FillConfig(mask=str(path)), FRAMES, INFO, read_mask(str(path)))
    np.save(path, np.zeros((16, 24)))
    with pytest.raises(UsageError, match="must cover some of them, not all"):
        prepare(FillConfig(mask=str(path)), FRAMES, INFO, read_mask(str(path)))
    np.save(path, np.zeros(16))
    with pytest.raises(UsageError, match="it must be h w, or t h w"):
        read_mask(str(path))
    for text in ("none.png", "none.npy"):
        with pytest.raises(UsageError, match=f"mask={text} cannot be read"):
            read_mask(text)
    (tmp_path / "torn.png").write_bytes(b"PNG")
    with pytest.raises(UsageError, match="cannot be read"):
        read_mask(str(tmp_path / "torn.png"))
    for wrong in ({"box": (0, 0, 8, 8), "mask": "m.png"}, {"box": (0, 0, 0, 8)}):
        with pytest.raises(UsageError, match="box=0,0,"):
            FillConfig(**wrong)
    with pytest.raises(UsageError, match="exclude each other"):
        InterpolateConfig(every=2, insert=1)
    with pytest.raises(UsageError, match="none between"):
        prepare(InterpolateConfig(every=2), FRAMES[:2], INFO)


def test_a_mask_of_another_kind_than_png_or_numbers_is_refused(tmp_path):
    def refused(name, message):
        with pytest.raises(UsageError, match=f"mask=.*{name} cannot be read: {message}"):
            read_mask(str(tmp_path / name))

    still, moved = (Image.fromarray(np.eye(16, 24, shift, dtype=np.uint8) * 255) for shift in (0, 3))
    still.save(tmp_path / "moves.gif", save_all=True, append_images=[moved])
    still.save(tmp_path / "moves.png", save_all=True, append_images=[moved])
    np.save(tmp_path / "record.npy", np.zeros((16, 24), [("a", int)]))
    np.save(tmp_path / "text.npy", np.full((16, 24), "x"))
    refused("moves.gif", "it is not a PNG, or damaged")
    refused("moves.png", "it is an animation")
    refused("record.npy", "it holds .*, not numbers")
    refused("text.npy", "it holds .*, not numbers")
    still.save(tmp_path / "bomb.png")
    data = (tmp_path / "bomb.png").read_bytes()
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + data[24:29]
    (tmp_path / "bomb.png").write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])
    refused("bomb.png", "Image size")


def test_any_damage_of_a_png_is_a_mistake_of_the_user(tmp_path):
    path, rng = tmp_path / "mask.png", np.random.default_rng(0)
    Image.fromarray(np.eye(16, 24, dtype=np.uint8) * 255).save(path)
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ int(rng.integers(1, 256))]) + data[at + 1 :])
        with suppress(UsageError):
            read_mask(str(path))


def test_a_png_of_16_bits_is_bright_from_half_of_its_range(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.array([[0, 300, 0x7FFF, 0x8000, 0xFFFF]], dtype=np.uint16)).save(path)
    assert read_mask(str(path)).tolist() == [[[False, False, False, True, True]]]
