"""A tokenizer of another package in the whole pipeline, by its entry point or by ``file.py:Class``."""

import os
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.colour import EXAMPLE, REFERENCE
from vidvq import load_pretrained
from vidvq.formats.token_shard import read_tokenizer_card, read_tokens
from vidvq.pretrained import load_tokenizer

INLINE = "runtime.workers=0"


@pytest.fixture
def installed(tmp_path, monkeypatch) -> None:
    """The example, as pip leaves it in a folder of packages."""
    points = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"]["vidvq.tokenizers"]
    info = tmp_path / "site/colour_tokenizer-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: colour-tokenizer\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[vidvq.tokenizers]", *lines, ""]))
    for path in (tmp_path / "site", EXAMPLE):
        monkeypatch.syspath_prepend(str(path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(entry for entry in sys.path if entry))


def test_every_command_runs_with_it(clips_dir, tmp_path, vidvq):
    tokens, frames, page = tmp_path / "tokens", tmp_path / "frames", tmp_path / "view.html"
    ran = vidvq("tokenize", clips_dir, "--checkpoint", REFERENCE, "--out", tokens, INLINE, "quality.share=1")
    assert ran.code == 0, ran.err
    assert f"warning: --checkpoint {REFERENCE} runs the code of {REFERENCE.rpartition(':')[0]}" in ran.err
    for command in (
        ("verify", tokens),
        ("decode", tokens, "--checkpoint", REFERENCE, "--out", frames, "format=png"),
        ("evaluate", clips_dir, frames, "--tokens", tokens, "--out", tmp_path / "files.json"),
        ("evaluate", clips_dir, "--checkpoint", REFERENCE, "--checkpoint", "bundled", "--report", tmp_path / "w.html"),
        ("view", tokens, "--checkpoint", REFERENCE, "--clips", clips_dir, "--out", page, "--first", 2),
        ("export", tokens, "--to", "bin", "--out", tmp_path / "export", "--check"),
    ):
        ran = vidvq(*command)
        assert ran.code == 0, (command, ran.err)
    card = read_tokenizer_card(tokens)
    assert [(book.name, book.size) for book in card.codebooks] == [("joint", 4096)]
    _, codes, info = next(read_tokens(tokens / "tokens-000000.tar", card))
    assert codes.shape == info.grid and len(np.unique(codes)) > 8
    # Means of blocks keep more of a video than chance would.
    assert info.quality["psnr"] > 12


def test_video_is_streamed_through_it_in_one_piece(make_video, tmp_path, vidvq):
    video = make_video(tmp_path / "a.mp4", 23)
    for name, gop in (("whole", "null"), ("cut", "9")):
        job = ("tokenize", video, "--checkpoint", REFERENCE, "--out", tmp_path / name, INLINE, f"gop_frames={gop}")
        ran = vidvq(*job, "batch=2")
        assert ran.code == 0, ran.err
    card = read_tokenizer_card(tmp_path / "whole")
    _, codes, _ = next(read_tokens(tmp_path / "whole/tokens-000000.tar", card))
    assert codes.shape[0] == 1 + -(-22 // 4)


def test_an_installed_tokenizer_is_named_by_its_entry_point(installed, clips_dir, tmp_path, vidvq):
    tokens = tmp_path / "tokens"
    ran = vidvq("tokenize", clips_dir, "--checkpoint", "colour", "--out", tokens, INLINE)
    assert ran.code == 0 and "runs the code" not in ran.err, ran.err
    # The same class, however it is named, made the tokens.
    ran = vidvq("decode", tokens, "--checkpoint", "colour_tokenizer:ColourTokenizer", "--out", tmp_path / "a")
    assert ran.code == 0, ran.err
    assert vidvq("decode", tokens, "--checkpoint", REFERENCE, "--out", tmp_path / "b").code == 0
    assert load_pretrained("colour").spatial_factor == 8


def test_weights_are_given_after_an_at_sign_and_are_part_of_the_fingerprint(tmp_path, monkeypatch):
    source = tmp_path / "shifted.py"
    source.write_text(
        Path(REFERENCE.rpartition(":")[0]).read_text()
        + "\n\nclass Shifted(ColourTokenizer):\n    def __init__(self, path):\n        super().__init__()\n"
        + '        self.register_buffer("shift", torch.tensor(float(path.read_text())))\n'
    )
    (tmp_path / "one").write_text("1")
    (tmp_path / "two").write_text("2")
    monkeypatch.chdir(tmp_path)
    prints = {load_tokenizer(Path(f"shifted.py:Shifted@{name}"))[1].token_fingerprint for name in ("one", "two")}
    assert len(prints) == 2
    with pytest.raises(ValueError, match=r"shifted.py:Shifted\(three\) raised FileNotFoundError"):
        load_tokenizer(Path("shifted.py:Shifted@three"))


BASE = """
from vidvq.model import Tokenizer
from colour_tokenizer import ColourTokenizer as Base
"""
STEP = """
    def encode_step(self, frames, state=None):
        codes, after = super().encode_step(frames, state)
        return """
# Source after BASE, and the message, in which {} is the reference.
MISTAKES = {
    "class Mine(Base): temporal_factor = 0": "tokenizer {}: temporal_factor=0 must be an integer, 1 or more",
    "class Mine(Base): lookahead = -1": "tokenizer {}: lookahead=-1 must be an integer, 0 or more",
    "class Mine(Base): codebooks = []": "tokenizer {}: codebooks=[] must be a list of one or two",
    "class Mine: pass": "tokenizer {}: it is a Mine; it must be a subclass of vidvq.model.Tokenizer",
    "class Mine(Base):\n    def __init__(self, path): pass": "tokenizer {}() raised TypeError",
    f"class Mine(Base):{STEP}codes.int(), after": "tokenizer {}, encode_step: codes are int32",
    f"class Mine(Base):{STEP}codes + 4000, after": "those of the joint codebook must be 0 to 4095",
    f"class Mine(Base):{STEP}codes, 1": "{}, encode_step: the state is a int; it must be a vidvq.model.StreamState",
    f"class Mine(Base):{STEP}{{}}['a']": "tokenizer {}, encode_step raised KeyError: 'a' (mine.py:7)",
    "class Mine(Base):\n    def decode_step(self, codes, state=None): return codes, state": (
        "tokenizer {}, decode_step: the video is int64"
    ),
    "class Mine(Base):\n    def named_weights(self): return {'a': self.places}": (
        "tokenizer {}: named_weights has 'a'; names must start with encoder. or decoder."
    ),
    "class Mine(Base):\n    def named_weights(self): return [1]": (
        "tokenizer {}: named_weights returned a list; it must return a dict of tensors"
    ),
    "class Mine(Base):\n    def named_weights(self): raise KeyError('a')": (
        "tokenizer {}: named_weights raised KeyError: 'a' (mine.py:5)"
    ),
    "class Mine(Base):\n    def named_weights(self): return {'encoder.a': self.places.to('meta')}": (
        "tokenizer {}: the weights encoder.a are not a dense tensor with data: "
    ),
    "class Mine(Base):\n    @property\n    def device(self): raise KeyError('a')": (
        "tokenizer {} raised KeyError: 'a' (mine.py:6)"
    ),
    "from vidvq.codebook import Codebook\nclass Mine(Base): codebooks = [Codebook('joint', 4096.0, 0)]": (
        "an integer size of 1 or more"
    ),
    "from vidvq.codebook import Codebook\nclass Mine(Base): codebooks = [Codebook('a', 9, 0), Codebook('a', 9, 9)]": (
        "both codebooks have the name 'a'; names must differ"
    ),
    "class Mine(Base):\n    def encode_step(self, frames, state=None): return None": (
        "tokenizer {}, encode_step: a NoneType is returned; it must be a tuple of codes and a StreamState"
    ),
    "class Mine(Base):\n    def decode_step(self, codes, state=None): return codes": (
        "tokenizer {}, decode_step: a Tensor is returned; it must be a tuple of video and a StreamState"
    ),
    "class Other(Base): pass": "has no Mine; its callables are: Base, Other, Tokenizer",
    "import nothing_of_this_name": "cannot be imported: ModuleNotFoundError",
}


@pytest.mark.parametrize("source", MISTAKES)
def test_a_rule_that_is_broken_is_named_in_one_line(source, clips_dir, tmp_path, monkeypatch, vidvq):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    file = tmp_path / "mine.py"
    file.write_text(BASE + source + "\n")
    reference = f"{file}:Mine"
    ran = vidvq("evaluate", clips_dir, "--checkpoint", reference)
    assert ran.code == 2
    assert MISTAKES[source].replace("{}", reference) in ran.error


def test_the_version_is_part_of_both_fingerprints(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    file, prints = tmp_path / "mine.py", []
    for version in ("1", "2"):
        file.write_text(f"{BASE}class Mine(Base): version = '{version}'\n")
        prints.append(load_tokenizer(Path(f"{file}:Mine"))[1])
    assert prints[0].token_fingerprint != prints[1].token_fingerprint
    assert prints[0].decoder_fingerprint != prints[1].decoder_fingerprint


def test_weights_in_a_type_that_numpy_lacks_are_part_of_the_fingerprint(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    prints = set()
    for name in ("float8_e4m3fn", "float8_e5m2", "bfloat16"):
        weights = f"{{'encoder.a': torch.ones(2).to(torch.{name})}}"
        source = f"import torch\nclass Mine(Base):\n    def named_weights(self): return {weights}\n"
        (tmp_path / f"{name}.py").write_text(BASE + source)
        prints.add(load_tokenizer(Path(f"{tmp_path}/{name}.py:Mine"))[1].token_fingerprint)
    assert len(prints) == 3


def test_a_path_that_does_not_exist_is_no_plugin(clips_dir, tmp_path, vidvq):
    ran = vidvq("evaluate", clips_dir, "--checkpoint", "builtins:int")
    assert ran.code == 2 and "builtins has no source file; give module:Class or path/to/file.py:Class" in ran.error
    ran = vidvq("evaluate", clips_dir, "--checkpoint", tmp_path / "missing")
    assert ran.code == 2 and "missing does not exist; give a checkpoint or a training run" in ran.error
    ran = vidvq("evaluate", clips_dir, "--checkpoint", tmp_path / "missing.py:Mine")
    assert ran.code == 2 and "missing.py does not exist; give module:Class or path/to/file.py:Class" in ran.error
