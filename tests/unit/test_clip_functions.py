"""What a user's function returns for a clip is the files of a sample, or the failure of that clip."""

import numpy as np
import pytest

from vidvq.corpus.frames import DecodedClip
from vidvq.formats.clip_shard import ClipInfo
from vidvq.jobs import clip_functions
from vidvq.jobs.clip_functions import FunctionError

CLIP = DecodedClip(
    "key-00000", ClipInfo("a.mp4", 0, "1/25", (0,), 1, 25.0, 2, 2, "pyav", {}), np.zeros((1, 2, 2, 3), np.uint8)
)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (None, "returned NoneType; it must be a dict of extensions to bytes"),
        ({}, "returned an empty dict; it must be"),
        ({"txt": "text"}, "returned dict; it must be"),
        ({1: b"one"}, "returned dict; it must be"),
        ({"../x": b"x"}, "must not contain a slash"),
        ({"x" * 100: b"x"}, "must have 1 to 100 bytes"),
    ],
)
def test_what_is_not_the_files_of_a_sample_fails_its_clip_alone(monkeypatch, made, said):
    monkeypatch.setattr(clip_functions, "_functions", [lambda frames, info: made])
    (found,) = clip_functions._call_function(CLIP)
    assert isinstance(found, FunctionError) and said in found.line


def test_files_are_passed_on(monkeypatch):
    monkeypatch.setattr(clip_functions, "_functions", [lambda frames, info: {"json": b"{}", "seg.npy": b""}])
    assert list(clip_functions._call_function(CLIP)) == [{"json": b"{}", "seg.npy": b""}]
