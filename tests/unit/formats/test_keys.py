"""Keys: readable in every script, safe as file names, and different for different videos."""

import io
import tarfile
from hashlib import sha256

import pytest
from webdataset.compat import WebDataset

from vidvq.formats.keys import item_key, video_key, video_of
from vidvq.formats.tar import TarWriter, check_name, find_damage, read_samples

LONGEST_EXTENSION = "tokens.npy"
STEMS = {
    "My Film.v2": "my-film-v2",
    ".": "video",
    "-rf": "rf",
    "a_b=c#d?": "a-b-c-d",
    "Съёмка 01": "съёмка-01",
    "日本の夏.２": "日本の夏-２",
    "مقطع فيديو": "مقطع-فيديو",
    "हिन्दी": "हिन्दी",
    "Cafe\u0301": "café",
    "🎬🎉": "video",
    "🎬 cut\u202e": "cut",
    "x" * 200: "x" * 40,
    "日" * 200: "日" * 13,
    "a" * 39 + "日": "a" * 39,
    "a" * 39 + " b": "a" * 39,
}


@pytest.mark.parametrize(("name", "stem"), STEMS.items())
def test_a_key_is_readable_and_fits_into_a_tar(name, stem):
    key = item_key(video_key(f"/v/{name}.mp4"), 1_234_567)
    assert key.startswith(f"{stem}-") and key.endswith("-1234567") and "." not in key
    assert "--" not in key
    check_name(f"{key}.{LONGEST_EXTENSION}")
    assert key == item_key(video_key(f"/v/{name}.mp4"), 1_234_567)
    assert video_of(key) == video_key(f"/v/{name}.mp4")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/a/x.mp4", "/b/x.mp4"),
        ("/a/x.mp4", "/a/X.MP4"),
        ("/a/cafe\u0301.mp4", "/a/caf\u00e9.mp4"),
        ("/1.mp4", "/2.mp4"),
    ],
)
def test_keys_differ_even_where_case_and_normal_form_do_not_count(one, other):
    assert video_key(one).casefold() != video_key(other).casefold()


def test_videos_whose_short_hashes_are_alike_differ():
    # Found by search.
    one, other = "/48278/пляж.mp4", "/960252/пляж.mp4"
    assert sha256(one.encode()).digest()[:5] == sha256(other.encode()).digest()[:5]
    assert video_key(one) != video_key(other)


def test_a_second_attempt_gives_another_hash():
    assert len({video_key("/a/x.mp4", attempt) for attempt in range(3)}) == 3


@pytest.mark.parametrize("name", STEMS)
def test_tars_of_such_keys_are_read_by_vidvq_webdataset_and_tar(tmp_path, name):
    key = item_key(video_key(f"/v/{name}.mp4"), 0)
    path = tmp_path / "x.tar"
    with path.open("wb") as file:
        tar = TarWriter(file)
        tar.add(f"{key}.json", b"{}")
        tar.add(f"{key}.mp4", b"x")
        tar.close()
    assert list(read_samples(path)) == [(key, {"json": b"{}", "mp4": b"x"})]
    assert not find_damage(path, tar.members)
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as foreign:
        assert foreign.getnames() == [f"{key}.json", f"{key}.mp4"]
    (sample,) = WebDataset(str(path), shardshuffle=False)
    assert (sample["__key__"], sample["mp4"]) == (key, b"x")
