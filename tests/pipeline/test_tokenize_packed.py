"""Packed token shards: another form of the same tokens, for everything that reads them."""

import json

import numpy as np
import pytest

from vidvq.formats.plan import read_plan
from vidvq.formats.token_shard import PACKED, read_tokenizer_card, read_tokens

INLINE = "runtime.workers=0"


def test_packed_tokens_are_the_same_tokens_to_all_that_reads_them(
    vidvq, clips_dir, tokens_dir, checkpoint_dir, tmp_path, snapshot
):
    packed, checkpoint = tmp_path / "packed", ("--checkpoint", checkpoint_dir)
    assert vidvq("tokenize", clips_dir, *checkpoint, "--out", packed, "pack=true", INLINE).code == 0
    assert vidvq("verify", packed).code == 0
    card, count = read_tokenizer_card(packed), 0
    for shard in sorted(tokens_dir.glob("*.tar")):
        for (key, codes, info), (of, found, told) in zip(
            read_tokens(shard, card), read_tokens(packed / shard.name, card), strict=True
        ):
            assert (key, info) == (of, told) and np.array_equal(codes, found)
            count += 1
    names = [name for path in packed.glob("commits/*.json") for name, *_ in json.loads(path.read_bytes())["members"]]
    assert sum(name.endswith(f".{PACKED}") for name in names) == count > 4
    for folder in (tokens_dir, packed):
        out = tmp_path / "of" / folder.name
        assert vidvq("decode", folder, *checkpoint, "--out", out / "frames", "format=npy").code == 0
        assert vidvq("export", folder, "--to", "bin", "--out", out / "bin").code == 0
    one, two = tmp_path / "of" / tokens_dir.name, tmp_path / "of" / packed.name
    frames = sorted(path.name for path in (one / "frames").glob("*.npy"))
    assert len(frames) == count
    for path in (*(f"frames/{name}" for name in frames), *(f"bin/{path.name}" for path in (one / "bin").glob("*.bin"))):
        assert (one / path).read_bytes() == (two / path).read_bytes(), path
    shown = vidvq("inspect", next(packed.glob("*.tar")))
    assert shown.code == 0 and "tokens, uint16, packed) of" in shown.out


@pytest.mark.parametrize("kind", ["clips", "videos"])
def test_a_plan_says_packed_only_where_it_is(vidvq, clips_dir, make_video, checkpoint_dir, tmp_path, kind):
    source = clips_dir if kind == "clips" else make_video(tmp_path / "one.mp4", 9)
    command = ("tokenize", source, "--checkpoint", checkpoint_dir, "--out", tmp_path / "out", INLINE)
    assert vidvq(*command).code == 0
    assert "pack" not in read_plan(tmp_path / "out").made_from
    refused = vidvq(*command, "pack=true")
    assert refused.code == 2 and "pack" in refused.error
