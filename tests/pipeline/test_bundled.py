"""The tokenizer that ships with vidvq: `vidvq tokenize VIDEO` out of the box."""

import numpy as np

from vidvq.demo.stages import VIDEOS
from vidvq.formats.checkpoint import BUNDLED, read_checkpoint
from vidvq.metrics.pixel import mean_frame, psnr
from vidvq.video.decode import decode_clip, open_reader
from vidvq.video.geometry import fit_size
from vidvq.video.limits import Limits
from vidvq.video.probe import probe

LARGEST = 12 * 2**20


def test_what_ships_is_a_whole_checkpoint_in_half_precision_and_small():
    tensors = read_checkpoint(BUNDLED).tensors
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype("float16")}
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())
    assert (BUNDLED / "model.safetensors").stat().st_size <= LARGEST


def test_a_video_goes_through_it_without_a_word_about_checkpoints(vidvq, tmp_path):
    video = VIDEOS / "heldout" / "bikes.mp4"
    settings = ("video.short_side=128", "video.multiple=8", "gop_frames=33", "runtime.workers=0")
    assert vidvq("tokenize", video, "--out", tmp_path / "tokens", *settings).code == 0
    assert vidvq("decode", tmp_path / "tokens", "--source", video, "--to", "1", "--out", tmp_path / "one.npy").code == 0
    decoded = decode_clip((tmp_path / "one.npy").read_bytes(), "one.npy")
    info = probe(video, Limits())
    reader = open_reader(video, info, fit_size(*info.shown_size, 128, 8), "pyav")
    original = reader.read(list(range(len(decoded))))
    assert len(decoded) == 25
    assert psnr(original, decoded) > psnr(original, mean_frame(original)) + 2


def test_it_is_shown_by_its_name(vidvq, tmp_path, tokens_dir, clips_dir):
    ran = vidvq("inspect", "bundled")
    assert ran.code == 0 and ran.out.startswith("bundled: checkpoint at step ")
    ran = vidvq("decode", tokens_dir, "--out", tmp_path / "out")
    assert ran.code == 2 and "but bundled is tokenizer" in ran.error and str(BUNDLED) not in ran.error
    ran = vidvq("tokenize", clips_dir, "--out", tokens_dir, "runtime.workers=0")
    assert ran.code == 2 and "Give another --out, or the same inputs and settings, and --checkpoint" in ran.error
