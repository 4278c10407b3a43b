"""The commands end to end: correct results, reasons for failures, and one-line usage errors."""

import io
import json
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vidvq.formats.clip_shard import read_clips
from vidvq.formats.token_shard import read_tokenizer_card, read_tokens

INLINE = "runtime.workers=0"


def shard_of(folder: Path) -> Path:
    return sorted(folder.glob("*.tar"))[0]


def test_help_and_import_load_neither_torch_nor_ray_nor_deepspeed():
    script = (
        "import sys, vidvq; from vidvq.cli.main import run; run(['--help']); "
        "print(sorted({'torch', 'ray', 'deepspeed'} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "tokenize" in done.stdout


def test_a_bad_corpus_ends_well_and_says_why(vidvq, tmp_path, demo_videos, make_video, make_audio, tiny_settings):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    whole = (demo_videos / "train/portrait_man.mp4").read_bytes()
    (corpus / "good.mp4").write_bytes(whole)
    (corpus / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (corpus / "zero.mp4").touch()
    (corpus / "text.mp4").write_text("#EXTM3U\nhttp://127.0.0.1:9/a.ts\n")
    make_audio(corpus / "audio.mp4")
    make_video(corpus / "one.mp4", 1)
    ran = vidvq("shard", corpus, "--out", tmp_path / "out", *tiny_settings, INLINE)
    assert ran.code == 1
    account = json.loads((tmp_path / "out/summary.json").read_bytes())
    failed = {name: reason["count"] for name, reason in account["failed"].items()}
    assert failed == {"unreadable": 1, "empty_file": 1, "not_a_video": 1, "no_video_stream": 1}
    assert account["filtered"]["too_short"]["count"] == 1
    assert account["ok"] == 8
    assert account["ok"] + 4 + 1 == account["planned"]
    for name in ("truncated", "zero", "text", "audio", "one"):
        assert f"{name}.mp4" in ran.err
    assert "one.mp4: has 1 frame; a clip needs" in ran.err
    assert vidvq("verify", tmp_path / "out").code == 0
    assert vidvq("shard", corpus, "--out", tmp_path / "out", *tiny_settings, INLINE, "max_failed=0.5").code == 0


def test_ray_and_inline_make_the_same_directories(
    vidvq, tmp_path, demo_videos, tiny_settings, clips_dir, tokens_dir, checkpoint_dir, snapshot
):
    video = demo_videos / "train/carphone.mp4"
    assert vidvq("shard", video, "--out", tmp_path / "clips", *tiny_settings, "runtime.workers=2").code == 0
    assert snapshot(tmp_path / "clips") == snapshot(clips_dir)
    where = ("--checkpoint", checkpoint_dir, "--out", tmp_path / "tokens", "runtime.workers=2")
    assert vidvq("tokenize", clips_dir, *where).code == 0
    assert snapshot(tmp_path / "tokens") == snapshot(tokens_dir)


def test_decoding_gives_back_every_frame_at_its_time(vidvq, tmp_path, clips_dir, tokens_dir, checkpoint_dir):
    for kind in ("mp4", "png"):
        where = ("--checkpoint", checkpoint_dir, "--out", tmp_path / kind, f"format={kind}")
        assert vidvq("decode", tokens_dir, *where).code == 0
    keys = 0
    for shard in sorted(clips_dir.glob("*.tar")):
        for key, _, info in read_clips(shard):
            keys += 1
            frames = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "png" / key).iterdir())]
            assert len(frames) == info.num_frames
            assert frames[0].shape == (info.height, info.width, 3)
            with av.open(str(tmp_path / "mp4" / f"{key}.mp4")) as container:
                stream = container.streams.video[0]
                times = sorted(packet.pts * stream.time_base for packet in container.demux(stream) if packet.size)
            assert times == [(tick - info.pts[0]) * Fraction(info.time_base) for tick in info.pts]
    assert keys == 13


def test_one_key_can_be_decoded_alone(vidvq, tmp_path, tokens_dir, checkpoint_dir):
    key, _, _ = next(read_tokens(shard_of(tokens_dir), read_tokenizer_card(tokens_dir)))
    where = ("--checkpoint", checkpoint_dir, "--out", tmp_path / "one")
    assert vidvq("decode", tokens_dir, *where, f"key={key}").code == 0
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [f"{key}.mp4", "decode.json"]
    ran = vidvq("decode", tokens_dir, *where, "key=nosuch")
    assert (ran.code, "key=nosuch is not in" in ran.error) == (2, True)


def test_tokens_of_another_tokenizer_are_refused_by_name(vidvq, tmp_path, tokens_dir, other_checkpoint, better_decoder):
    ran = vidvq("decode", tokens_dir, "--checkpoint", other_checkpoint, "--out", tmp_path / "out")
    assert ran.code == 2
    for folder in (tokens_dir / "tokenizer.json", other_checkpoint / "fingerprint"):
        stored = json.loads(folder.read_bytes())
        assert (stored.get("token_fingerprint") or stored["token"])[:12] in ran.error
    assert not (tmp_path / "out").exists()
    assert vidvq("decode", tokens_dir, "--checkpoint", better_decoder, "--out", tmp_path / "better").code == 0


def test_another_config_or_checkpoint_into_the_same_place_is_refused(
    vidvq, demo_videos, tiny_settings, clips_dir, tokens_dir, other_checkpoint, copy_of, snapshot
):
    clips = copy_of(clips_dir, "clips")
    ran = vidvq("shard", demo_videos / "train/carphone.mp4", "--out", clips, *tiny_settings, "clip.crf=30", INLINE)
    assert ran.code == 2
    assert "clip.crf was 17, now 30" in ran.error
    tokens = copy_of(tokens_dir, "tokens")
    ran = vidvq("tokenize", clips_dir, "--checkpoint", other_checkpoint, "--out", tokens, INLINE)
    assert ran.code == 2
    assert "token_fingerprint was" in ran.error
    assert snapshot(clips) == snapshot(clips_dir)
    assert snapshot(tokens) == snapshot(tokens_dir)


def test_one_flipped_byte_is_named_by_file_and_key(vidvq, clips_dir, tokens_dir, copy_of, flip_byte):
    for folder, name in ((clips_dir, "clips"), (tokens_dir, "tokens")):
        copy = copy_of(folder, name)
        assert vidvq("verify", copy).code == 0
        shard = shard_of(copy)
        flip_byte(shard, shard.stat().st_size // 3)
        ran = vidvq("verify", copy)
        assert ran.code == 1
        assert ran.out.startswith(f"{shard.name}: carphone-")


def test_a_code_out_of_range_is_refused(vidvq, tmp_path, tokens_dir, checkpoint_dir, copy_of):
    copy = copy_of(tokens_dir)
    card = read_tokenizer_card(copy)
    shard = shard_of(copy)
    key, codes, _ = next(read_tokens(shard, card))
    buffer = io.BytesIO()
    np.save(buffer, codes)
    bad = codes.copy()
    bad[1, 0, 0] = 4000
    replaced = io.BytesIO()
    np.save(replaced, bad)
    shard.write_bytes(shard.read_bytes().replace(buffer.getvalue(), replaced.getvalue(), 1))
    ran = vidvq("decode", copy, "--checkpoint", checkpoint_dir, "--out", tmp_path / "out")
    assert ran.code == 2
    assert f"{key}: code 4000 at t=1 h=0 w=0 is out of range; the temporal codebook has codes 0 to 63" in ran.error
    assert vidvq("verify", copy).code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shard", "/nowhere", "--out", "{out}"], "input /nowhere does not exist"),
        (["shard", "{empty}", "--out", "{out}"], "no video under"),
        (["shard", "{empty}"], "Missing option '--out'. See `vidvq shard --help`."),
        (["shard", "{empty}", "--out", "{out}", "clip.num_frames=0", "clip.colour=1", "clips_per_shard=x"], "3 wrong"),
        (["frobnicate"], "No such command 'frobnicate'"),
        (["verify", "--frobnicate", "x"], "No such option"),
        (["verify", "{empty}"], "has no plan.json"),
        (["verify", "/nowhere"], "/nowhere does not exist"),
        (
            ["train", "demo", "--out", "{out}", "data.clips={tokens}"],
            "was written by vidvq tokenize; set data.clips to a directory",
        ),
        (["tokenize", "{clips}", "--checkpoint", "/nowhere", "--out", "{out}"], "/nowhere does not exist"),
        (["decode", "/nowhere", "--checkpoint", "{checkpoint}", "--out", "{out}"], "/nowhere does not exist"),
        (["inspect", "/nowhere"], "/nowhere does not exist"),
        (["tokenize", "{clips}", "--checkpoint", "{empty}", "--out", "{out}"], "is not a checkpoint"),
        (["tokenize", "{empty}", "--checkpoint", "{checkpoint}", "--out", "{out}"], "no video under"),
        (["tokenize", "x.mp4", "{clips}", "--out", "{out}"], "is a directory of shards; give no other inputs"),
        (["decode", "{clips}", "--checkpoint", "{checkpoint}", "--out", "{out}"], "has no tokenizer.json"),
        (["decode", "{tokens}", "--checkpoint", "{checkpoint}", "--out", "{out}", "format=webp"], "format='webp'"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(
    vidvq, tmp_path, clips_dir, tokens_dir, checkpoint_dir, arguments, message
):
    (tmp_path / "empty").mkdir()
    places = {
        "out": tmp_path / "out",
        "empty": tmp_path / "empty",
        "clips": clips_dir,
        "tokens": tokens_dir,
        "checkpoint": checkpoint_dir,
    }
    ran = vidvq(*(argument.format(**places) for argument in arguments))
    assert ran.code == 2
    assert message in ran.error
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_lacks_a_tensor_names_it(vidvq, tmp_path, clips_dir, checkpoint_dir, copy_of):
    from safetensors.numpy import load_file, save_file

    copy = copy_of(checkpoint_dir)
    tensors = load_file(copy / "model.safetensors")
    del tensors["encoder.head.bias"]
    save_file(tensors, copy / "model.safetensors")
    ran = vidvq("tokenize", clips_dir, "--checkpoint", copy, "--out", tmp_path / "out", INLINE)
    assert ran.code == 2
    assert "lacks the tensor encoder.head.bias" in ran.error


def test_a_full_disk_is_one_line_and_the_job_resumes_later(
    vidvq, tmp_path, demo_videos, tiny_settings, clips_dir, snapshot, monkeypatch
):
    import errno
    import os

    calls = 0
    sync = os.fsync

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    video, out = demo_videos / "train/carphone.mp4", tmp_path / "out"
    monkeypatch.setattr(os, "fsync", full)
    ran = vidvq("shard", video, "--out", out, *tiny_settings, INLINE)
    assert ran.code == 1
    assert "No space left on device" in ran.error
    monkeypatch.undo()
    assert not list(out.rglob("*.tmp.*"))
    assert vidvq("shard", video, "--out", out, *tiny_settings, INLINE).code == 0
    assert snapshot(out) == snapshot(clips_dir)


def test_inspect_describes_every_artifact(vidvq, demo_videos, clips_dir, tokens_dir, checkpoint_dir):
    told = {
        demo_videos / "heldout/cup.webm": "vp9 video in matroska",
        clips_dir: "clip shards of plan",
        shard_of(clips_dir): "clip shard, 4 samples",
        clips_dir / "plan.json": "clip shards of plan",
        sorted((clips_dir / "commits").iterdir())[0]: "commit record of clips-000000.tar",
        tokens_dir: "token shards of plan",
        shard_of(tokens_dir): "token shard, 4 samples",
        tokens_dir / "tokenizer.json": "tokenizer ",
        checkpoint_dir: "checkpoint at step 1",
    }
    for path, words in told.items():
        ran = vidvq("inspect", path)
        assert ran.code == 0
        assert words in ran.out.splitlines()[0]


def test_the_newest_checkpoint_of_a_run_is_verified(vidvq, tmp_path, checkpoint_dir, flip_byte):
    for step in ("step-00000001", "step-00000002"):
        shutil.copytree(checkpoint_dir, tmp_path / "run/checkpoints" / step)
    ran = vidvq("verify", tmp_path / "run")
    assert (ran.code, "step-00000002 is intact: a checkpoint" in ran.out) == (0, True)
    flip_byte(tmp_path / "run/checkpoints/step-00000002/model.safetensors", 5000)
    assert vidvq("verify", tmp_path / "run").code == 1


def test_the_help_lists_the_commands_in_the_order_of_the_pipeline(vidvq):
    listed = [line.split()[0] for line in vidvq("--help").out.partition("Commands:\n")[2].splitlines() if line.strip()]
    assert listed[:6] == ["demo", "shard", "map", "train", "tokenize", "decode"]
