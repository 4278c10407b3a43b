"""The rules of the tokenizer interface: each is broken by a tokenizer that breaks it, and no other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.colour import REFERENCE, ColourTokenizer
from vidvq.codebook import Codebook
from vidvq.conformance import RULES, NotConforming, check
from vidvq.errors import UsageError
from vidvq.model import StreamState, TokenizerConfig, VideoTokenizer
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.quantize import QuantizerConfig, VQConfig
from vidvq.pretrained import load_pretrained, load_tokenizer
from vidvq.pretrained.interface_checks import guard_calls

ROOT = Path(__file__).parents[2]


class Offset(ColourTokenizer):
    @property
    def codebooks(self):
        return [Codebook("joint", 4096, 1)]


class Int32(ColourTokenizer):
    def encode(self, video):
        return super().encode(video).int()


class Bright(ColourTokenizer):
    def decode(self, codes, num_frames=None, size=None):
        return super().decode(codes, num_frames, size) * 3


class Uncropped(ColourTokenizer):
    def decode(self, codes, num_frames=None, size=None):
        return super().decode(codes)


class FewCodes(ColourTokenizer):
    """Decodes only codes that an ordinary video gives."""

    def decode(self, codes, num_frames=None, size=None):
        torch.ones(3000, device=codes.device)[codes]
        return super().decode(codes, num_frames, size)


class Remembers(ColourTokenizer):
    """Encodes with what it saw before, at whole groups only."""

    last = 0

    def encode(self, video):
        codes = super().encode(video)
        self.last, before = int(codes[0, 0, 0, 0]), self.last
        return (codes + before) % 4096


class BatchMean(ColourTokenizer):
    def encode(self, video):
        return super().encode((video - video.mean(dim=0)).clamp(-1, 1))


class Trusting(ColourTokenizer):
    def _check_codes(self, codes, first):
        pass


class ChunkMean(ColourTokenizer):
    def encode_step(self, frames, state=None):
        return super().encode_step(frames - frames.mean(dim=2, keepdim=True) / 2, state)


class StepDecode(ColourTokenizer):
    def decode_step(self, codes, state=None):
        video, after = super().decode_step(codes, state)
        return video * 0.5, after


class SharedState(ColourTokenizer):
    """Adds the mean of the first frames of all streams to every stream."""

    def encode_step(self, frames, state=None):
        codes, after = super().encode_step(frames, state)
        if state is not None:
            codes = (codes + int(state.past[0].sum() * 0)) % 4096
            codes = (codes + state.past[0].sum().long()) % 4096 if len(state.past[0]) > 1 else codes
        kept = frames.mean(dim=(1, 2, 3, 4)) * 1000 if state is None else state.past[0]
        return codes, StreamState(after.kind, after.shape, (kept,), after.config)


class AnyState(ColourTokenizer):
    def _next_state(self, kind, given, state):
        return StreamState(kind, (given.shape[0], *given.shape[-2:]), (), "colour")


class RandomWeights(ColourTokenizer):
    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.rand(()) * 100, requires_grad=False)

    def encode(self, video):
        return (super().encode(video) + self.shift.long()) % 4096

    def encode_step(self, frames, state=None):
        codes, after = super().encode_step(frames, state)
        return (codes + self.shift.long()) % 4096, after


BROKEN = {
    Offset: ("declaration", "the offset 0"),
    Int32: ("codes", "codes are int32"),
    Bright: ("video", "the video has values from"),
    Uncropped: ("video", "the video is float32 (1, 3, 9, 24, 32); it must be float (1, 3, 6, 17, 25)"),
    FewCodes: ("all-codes", "IndexError"),
    Remembers: ("deterministic", "a second encode of the same video gives other codes"),
    BatchMean: ("batches", "codes differ with the batch"),
    Trusting: ("refusals", "decode of a code that is out of range raises nothing"),
    ChunkMean: ("chunks", "chunks of [13] frames give other codes than encode"),
    StepDecode: ("decoded-chunks", "decoding in steps gives other frames than decode"),
    SharedState: ("states", "depend on the other streams of the batch"),
    AnyState: ("wrong-states", "decode_step with a state of encode_step raises nothing"),
    RandomWeights: ("rebuilt", "a second instance gives other codes: its weights are random"),
}


def test_the_example_conforms():
    check(ColourTokenizer(), ColourTokenizer)


def test_vidvqs_own_tokenizer_conforms(checkpoint_dir):
    check(load_tokenizer(checkpoint_dir)[0], lambda: load_tokenizer(checkpoint_dir)[0])


def make(**decoder: int) -> VideoTokenizer:
    torch.manual_seed(0)
    books = QuantizerConfig(4, VQConfig(size=32), VQConfig(size=64))
    config = TokenizerConfig(
        encoder=StackConfig((8, 8), (1, 1)), decoder=DecoderConfig((8, 8), (1, 1), **decoder), quantizer=books
    )
    return VideoTokenizer(config).eval()


@pytest.mark.parametrize("decoder", [{"upscale": 2}, {"lookahead": 2}], ids=str)
def test_larger_and_later_frames_conform_and_pass_the_checks_of_plug_ins(decoder):
    tokenizer = make(**decoder)
    guard_calls(tokenizer, "mine")
    check(tokenizer)


def test_the_frames_at_the_end_of_a_stream_are_checked():
    tokenizer = make(lookahead=2)
    tokenizer.decode_rest = lambda state: torch.full((1, 3, 5, 16, 16), 2.0)
    guard_calls(tokenizer, "mine")
    _, state = tokenizer.decode_step(torch.zeros(1, 1, 2, 2, dtype=torch.long))
    with pytest.raises(UsageError, match="tokenizer mine, decode_rest: the video has values from 2 to 2"):
        tokenizer.decode_rest(state)


def test_every_rule_has_a_tokenizer_that_breaks_it():
    assert {rule for rule, _ in BROKEN.values()} == {rule.name for rule in RULES}


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_rule_is_named_with_what_broke_it(kind):
    rule, message = BROKEN[kind]
    torch.manual_seed(0)
    with pytest.raises(NotConforming) as caught:
        check(kind(), kind)
    lines = str(caught.value).splitlines()
    found = [line for line in lines if line.startswith(f"{rule}: ")]
    assert found and message in found[0], lines


def test_rules_of_streams_do_not_apply_without_streaming():
    class Whole(ColourTokenizer):
        supports_streaming = False

        def encode_step(self, frames, state=None):
            raise AssertionError("encode_step is called")

    check(Whole())
    assert not any(rule.applies(Whole(), None) for rule in RULES if rule.is_for_streams or rule.needs_build)


def test_an_exception_is_reported_with_its_position():
    class Fails(ColourTokenizer):
        def encode(self, video):
            raise KeyError("weights")

    with pytest.raises(NotConforming, match=r"codes: KeyError: 'weights' \(test_conformance.py:\d+\)"):
        check(Fails())


def test_a_name_in_the_environment_is_that_of_a_command(monkeypatch, tmp_path):
    from vidvq.conformance import test_tokenizer

    monkeypatch.setenv("VIDVQ_TOKENIZER", "bundled")
    assert isinstance(test_tokenizer._load(), VideoTokenizer)
    assert isinstance(load_pretrained("bundled"), VideoTokenizer)
    # A folder of that name is nearer.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundled").mkdir()
    with pytest.raises(UsageError, match="bundled"):
        test_tokenizer._load()


@pytest.mark.parametrize(("name", "code"), [("ColourTokenizer", 0), ("Broken", 1)])
def test_the_rules_run_as_tests_of_pytest(name, code, tmp_path):
    source = tmp_path / "mine.py"
    example = Path(REFERENCE.rpartition(":")[0])
    source.write_text(
        example.read_text()
        + "\n\nclass Broken(ColourTokenizer):\n"
        + "    def encode(self, video):\n        return super().encode(video).int()\n"
    )
    environment = os.environ | {
        "VIDVQ_TOKENIZER": f"{source}:{name}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--pyargs", "vidvq.conformance"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == code, ran.stdout + ran.stderr
    assert (f"{len(RULES)} passed" in ran.stdout) == (code == 0)
    if code:
        assert "encode: codes are int32 (1, 1, 2, 3); they must be int64" in ran.stdout
