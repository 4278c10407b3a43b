"""`vidvq generate guide` with a tiny CLIP of random weights."""

import json
import sys

import numpy as np
import pytest

from tests.helpers.text_encoders import write_clip
from vidvq.formats.checkpoint import BUNDLED
from vidvq.formats.token_index import index_tokens
from vidvq.formats.token_shard import CARD, read_tokenizer_card


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("models") / "clip")


def test_decoded_frames_move_towards_the_text(tmp_path, tiny_tokens, clip):
    import torch
    from torch.nn import functional as F

    from vidvq.generate.requests import GuideConfig
    from vidvq.generate.stages.guide import Guide
    from vidvq.model.pixels import to_video
    from vidvq.pretrained import load_pretrained

    tokenizer = load_pretrained(BUNDLED)
    frames = np.linspace(0, 255, 5 * 48 * 48 * 3).reshape(5, 48, 48, 3).astype(np.uint8)
    codes = tokenizer.encode(to_video(torch.from_numpy(frames)))[0].numpy()
    guide = Guide(BUNDLED, clip, "red video", GuideConfig(steps=12, lr=0.3, crops=4), read_tokenizer_card(tiny_tokens))

    def distance(codes):
        shown = tokenizer.decode(codes[None])[0].transpose(0, 1)
        with torch.no_grad():
            return float(guide._clip.distance(F.interpolate(shown, (guide._clip.side,) * 2, mode="area")))

    made = guide.edit("key", codes, (48, 48))
    assert distance(made.codes) < distance(codes) - 0.1
    assert np.mean(made.losses[-3:]) < np.mean(made.losses[:3]) - 0.1


def test_samples_become_tokens_again(vidvq, tmp_path, tiny_tokens, checkpoint_dir, clip):
    from vidvq.generate.requests import GuideConfig
    from vidvq.generate.stages.guide import Guide

    location, card = index_tokens(tiny_tokens)[0], read_tokenizer_card(tiny_tokens)
    codes, info = location.read(card)
    config = GuideConfig(steps=12, lr=0.3, crops=4)
    size = (info.height, info.width)
    guide = Guide(checkpoint_dir, clip, "red video", config, card)
    made = guide.edit(location.key, codes, size)
    assert (made.codes != codes).any()
    again = guide.edit(location.key, codes, size)
    assert np.array_equal(made.codes, again.codes) and made.losses == again.losses
    assert Guide(checkpoint_dir, clip, "blue video", config, card).edit(location.key, codes, size).losses != made.losses

    out = tmp_path / "out"
    settings = ("steps=12", "lr=0.3", "crops=4", "format=npy")
    job = ("--text", "red video", "--clip", clip, "--checkpoint", checkpoint_dir, "--out", out, *settings)
    ran = vidvq("generate", "guide", tiny_tokens, *job)
    assert ran.code == 0, ran.err
    assert np.array_equal(index_tokens(out)[0].read(card)[0], made.codes)
    assert (out / CARD).read_bytes() == (tiny_tokens / CARD).read_bytes()
    assert json.loads((out / "generator.json").read_text())["text"] == "red video"
    assert np.load(out / f"video/{location.key}.npy").shape == (info.num_frames, *size, 3)
    assert vidvq("verify", out).code == 0
    assert "Give another --out" in vidvq("generate", "guide", tiny_tokens, *job, "seed=1").error


def test_failed_samples_are_retried_alone(vidvq, tmp_path, tokens_dir, checkpoint_dir, clip, copy_of, monkeypatch):
    from vidvq.generate.stages.guide import Guide

    tokens, guided, edit_sample = copy_of(tokens_dir), [], Guide.edit

    def edit(self, key, codes, size):
        guided.append(key)
        return edit_sample(self, key, codes, size)

    def guide(name, *more):
        guided.clear()
        job = ("--text", "red", "--clip", clip, "--checkpoint", checkpoint_dir, "--out", tmp_path / name)
        return vidvq("generate", "guide", tokens, *job, "steps=1", "crops=1", "format=none", *more)

    monkeypatch.setattr(Guide, "edit", edit)
    broken = index_tokens(tokens)[1]
    whole = broken.shard.read_bytes()
    _, offset, size = next(member for member in broken.members if member[0] == "tokens.npy")
    offset += broken.offset
    broken.shard.write_bytes(whole[: offset + size - 1] + b"\xff" + whole[offset + size :])
    ran = guide("out")
    assert ran.code == 1 and "bad_prompt" in ran.err and broken.key not in guided
    broken.shard.write_bytes(whole)
    ran = guide("out", "--retry-failed", "max_failed=0")
    assert ran.code == 0 and guided == [broken.key], ran.err
    assert guide("fresh").code == 0 and len(guided) > 1
    shards = [{path.read_bytes() for path in (tmp_path / name).glob("*.tar")} for name in ("out", "fresh")]
    assert shards[1] <= shards[0]
    assert "has no failed samples to retry" in guide("none", "--retry-failed").error


def test_a_large_keep_leaves_the_codes_alone(tiny_tokens, checkpoint_dir, clip):
    from vidvq.generate.requests import GuideConfig
    from vidvq.generate.stages.guide import Guide

    location, card = index_tokens(tiny_tokens)[0], read_tokenizer_card(tiny_tokens)
    codes, info = location.read(card)
    changed = []
    for keep in (0.0, 1000.0):
        guide = Guide(checkpoint_dir, clip, "red video", GuideConfig(steps=6, lr=0.3, crops=2, keep=keep), card)
        changed.append((guide.edit("key", codes, (info.height, info.width)).codes != codes).mean())
    assert changed[1] < changed[0]


def test_wrong_arguments_are_one_line(
    vidvq, tmp_path, tiny_tokens, tiny_clips, checkpoint_dir, other_checkpoint, clip, monkeypatch
):
    def error(*arguments, tokens=tiny_tokens, checkpoint=checkpoint_dir):
        given = ("--checkpoint", checkpoint, "--out", tmp_path / "out")
        ran = vidvq("generate", "guide", tokens, *given, *arguments)
        assert ran.code == 2 and not (tmp_path / "out").exists()
        return ran.err.splitlines()[-1]

    text, model = ("--text", "red video"), ("--clip", clip)
    assert "--clip" in error(*text) and "--text" in error(*model)
    assert "is not a CLIP model of transformers" in error(*text, "--clip", tiny_clips)
    assert "--text is empty" in error("--text", " ", *model)
    assert "make one of clips, videos or images with vidvq tokenize" in error(*text, *model, tokens=tiny_clips)
    assert "set --checkpoint to the one that made the tokens" in error(*text, *model, checkpoint=other_checkpoint)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "guide needs the library transformers; pip install" in error(*text, *model)
