"""`vidvq evaluate`: decoded files, tokenizers side by side, codecs at equal bits, the page of the worst clips."""

import io
import json
import re
from fractions import Fraction
from math import log2
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from vidvq.formats.token_shard import read_tokenizer_card, read_tokens


@pytest.fixture(scope="module")
def decoded(tmp_path_factory, tokens_dir, checkpoint_dir) -> Path:
    from vidvq.cli.main import run

    out = tmp_path_factory.mktemp("decoded") / "frames"
    arguments = ["decode", tokens_dir, "--checkpoint", checkpoint_dir, "--out", out, "format=png"]
    assert run([str(each) for each in arguments]) == 0
    return out


@pytest.fixture
def scores(clips_dir, decoded, tokens_dir, tmp_path, vidvq):
    """Evaluate decoded files with settings."""

    def evaluate(*settings: str) -> dict:
        out = tmp_path / "scores.json"
        ran = vidvq("evaluate", clips_dir, decoded, "--tokens", tokens_dir, "--out", out, *settings)
        assert ran.code == 0, ran.err
        return json.loads(out.read_text())

    return evaluate


def may_be_replaced(vidvq, option: str, path: Path) -> bool:
    """Whether a file may be written again, by a command that fails for another reason."""
    ran = vidvq("evaluate", "nowhere", "--checkpoint", "nowhere", option, path)
    assert ran.code == 2
    return "was not written by this option" not in ran.error


def test_static_and_moving_parts_flicker_curves_and_entropy_are_scored(scores, tokens_dir, tmp_path, vidvq):
    found = scores("perceptual=true")
    assert may_be_replaced(vidvq, "--out", tmp_path / "scores.json")
    card = read_tokenizer_card(tokens_dir)
    grids = [codes for path in sorted(tokens_dir.glob("*.tar")) for _, codes, _ in read_tokens(path, card)]
    assert len(found["clips"]) == len(grids) > 2
    for clip in found["clips"]:
        assert len(clip["frame_psnr"]) == len(clip["frame_ssim"]) == len(clip["frame_st_lpips"]) == clip["num_frames"]
        assert np.mean(clip["frame_ssim"]) == pytest.approx(clip["ssim"])
        assert np.mean(clip["frame_st_lpips"]) == pytest.approx(clip["st_lpips"])
        assert clip["mean_frame"]["psnr"] == clip["mean_frame_psnr"] and clip["mean_frame"]["ssim"] > 0
        share, parts = clip["static_share"], {True: clip["static_psnr"], False: clip["moving_psnr"]}
        error = sum((share if static else 1 - share) * 10 ** (-(psnr or 0) / 10) for static, psnr in parts.items())
        assert error == pytest.approx(10 ** (-clip["psnr"] / 10))
        assert clip["flicker"] > 0 and clip["blocking"] > 0
        assert 0 < clip["entropy_bits_per_pixel"] <= clip["bits_per_pixel"]
    # The clips together have the empirical entropy of each codebook.
    expected = 0.0
    for at, book in enumerate(card.codebooks):
        codes = np.concatenate([(grid[:1] if at == 0 else grid[1:]).ravel() for grid in grids])
        share = np.unique(codes, return_counts=True)[1] / len(codes)
        entropy = -float((share * np.log2(share)).sum())
        assert found["code_entropy"][book.name] == pytest.approx(entropy)
        expected += entropy * len(codes)
    pixels = [clip["num_frames"] * clip["height"] * clip["width"] for clip in found["clips"]]
    got = sum(n * clip["entropy_bits_per_pixel"] for n, clip in zip(pixels, found["clips"], strict=True))
    assert got == pytest.approx(expected)
    assert found["codebooks"][0].keys() == {"name", "size", "used", "perplexity", "tokens"}


def test_tokenizers_side_by_side_have_the_scores_of_tokenize_and_decode(
    scores, clips_dir, checkpoint_dir, other_checkpoint, tmp_path, vidvq
):
    out = tmp_path / "both.json"
    ran = vidvq("evaluate", clips_dir, "--checkpoint", checkpoint_dir, "--checkpoint", other_checkpoint, "--out", out)
    assert ran.code == 0, ran.err
    first, second = json.loads(out.read_text())["evaluations"]
    assert may_be_replaced(vidvq, "--out", out) and not may_be_replaced(vidvq, "--report", out)
    alone = scores()
    assert first["clips"] == alone["clips"] and first["codebooks"] == alone["codebooks"]
    assert first["name"] == str(checkpoint_dir) and second["name"] == str(other_checkpoint)
    assert second["token_fingerprint"] != first["token_fingerprint"]
    lines = ran.err.splitlines()
    header = next(line for line in lines if "PSNR" in line and "static" in line)
    assert header.split() == ["PSNR", "static", "moving", "SSIM", "flicker", "blocking", "bits/pixel", "entropy-coded"]
    rows = [line for line in lines if line.startswith((str(checkpoint_dir), str(other_checkpoint), "mean frame"))]
    assert f"{np.mean([clip['psnr'] for clip in first['clips']]):.2f}" == rows[0].split()[1]
    assert f"{np.mean([clip['psnr'] for clip in second['clips']]):.2f}" == rows[1].split()[1]


def test_a_decoder_of_larger_frames_stands_beside_the_bicubic_enlargement(
    clips_dir, checkpoint_dir, larger_decoder, tmp_path, vidvq
):
    large, out = larger_decoder, tmp_path / "scores.json"
    ran = vidvq("evaluate", clips_dir, "--checkpoint", large, "--checkpoint", checkpoint_dir, "--out", out)
    assert ran.code == 0, ran.err
    trained, plain = json.loads(out.read_text())["evaluations"]
    assert (trained["name"], plain["name"]) == (str(large), f"{checkpoint_dir} + bicubic x2")
    # An untrained enlargement is the bicubic one, up to the rounding of the smaller frames to whole levels.
    for one, other in zip(trained["clips"], plain["clips"], strict=True):
        assert one["psnr"] == pytest.approx(other["psnr"], abs=0.05)
        assert one["bits_per_pixel"] == other["bits_per_pixel"]
    assert trained["token_fingerprint"] == plain["token_fingerprint"]


def test_codecs_are_scored_at_no_more_than_the_bits_of_the_tokens(scores, tokens_dir):
    found = scores("codecs=[x264,svtav1]")
    card = read_tokenizer_card(tokens_dir)
    grids = {key: codes for path in tokens_dir.glob("*.tar") for key, codes, _ in read_tokens(path, card)}
    for clip in found["clips"]:
        codes = grids[clip["key"]]
        bits = codes[0].size * log2(card.codebooks[0].size) + codes[1:].size * log2(card.codebooks[-1].size)
        nominal = bits / (clip["num_frames"] * clip["height"] * clip["width"])
        assert clip["bits_per_pixel"] == pytest.approx(nominal)
        assert set(clip["codecs"]) == {"x264", "svtav1"}
        for codec in clip["codecs"].values():
            assert codec["fits"] == (codec["bits_per_pixel"] <= nominal)
            # An untrained tokenizer is no match.
            assert codec["psnr"] > clip["psnr"] and 0 < codec["ssim"] <= 1


def test_the_page_has_the_worst_clips_first_and_loads_nothing(clips_dir, decoded, tokens_dir, tmp_path, scores, vidvq):
    page = tmp_path / "worst.html"
    ran = vidvq("evaluate", clips_dir, decoded, "--tokens", tokens_dir, "--report", page, "worst=3")
    assert ran.code == 0, ran.err
    text = page.read_text()
    assert may_be_replaced(vidvq, "--report", page)
    worst = sorted((clip["psnr"], clip["key"]) for clip in scores()["clips"])
    assert re.findall(r"<p class=\"note\"><code>(.*?)</code></p>", text) == [key for _, key in worst[:3]]
    assert text.count("data:video/mp4;base64,") == 3 == text.count("data:image/jpeg;base64,")
    assert not re.search(r"https?://", text)
    assert "default-src 'none'" in text and "<script" not in text


# x264 subsamples the chroma of even sizes alone, and players want it subsampled.
@pytest.mark.parametrize(("side", "shown"), [(33, 264), (85, 256), (130, 260), (513, 512)])
def test_small_clips_are_enlarged_on_the_page_and_large_ones_are_not(side, shown):
    from vidvq.evaluate.media import side_by_side

    frames = np.zeros((2, side, side, 3), np.uint8)
    media, size = side_by_side([frames, frames], (0, 1), Fraction(1, 25))
    assert size == (2 * shown + 8, shown)
    with av.open(io.BytesIO(media)) as container:
        assert next(container.decode(video=0)).format.name == "yuv420p"


def test_stills_have_the_differences_below_each_reconstruction():
    from vidvq.evaluate.media import still_sheet

    original = np.full((5, 8, 8, 3), 100, np.uint8)
    sheet = still_sheet(original, [original - 10, original + 60])
    # Three frames a row, with lines of 4 pixels between them and between the rows.
    assert sheet.shape == (5 * 8 + 4 * 4, 3 * 8 + 2 * 4, 3)
    assert [int(value) for value in sheet[4::12, 4, 0]] == [100, 90, 40, 160, 240]


def test_videos_that_are_too_wide_side_by_side_are_reduced():
    from vidvq.evaluate.media import side_by_side

    frames = np.zeros((1, 16, 6000, 3), np.uint8)
    assert side_by_side([frames] * 3, (0,), Fraction(1, 25))[1] == (16372, 14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either DECODED with --tokens, or --checkpoint"),
        (["DECODED"], "DECODED and --tokens belong together"),
        (["DECODED", "--tokens", "TOKENS", "--checkpoint", "CHECKPOINT"], "give either DECODED with --tokens, or"),
        (["--checkpoint", "CHECKPOINT", "--checkpoint", "CHECKPOINT"], "is given twice; give each tokenizer once"),
        (["--checkpoint", "CHECKPOINT", "codecs=[x266]"], "codecs"),
        (["--checkpoint", "CHECKPOINT", "codecs=[x264,x264]"], "has a codec twice; give each once"),
        (["--checkpoint", "CHECKPOINT", "--out", "one.x", "--report", "one.x"], "are one file; give each its own"),
        (["--checkpoint", "CHECKPOINT", "lpips_backbone=missing.pth"], "missing.pth has no readable weights"),
        (
            ["--checkpoint", "CHECKPOINT", "fvd_backbone=missing.pt", "fvd_frames=9"],
            "missing.pt has no readable weights",
        ),
        (
            ["--checkpoint", "CHECKPOINT", "fvd_backbone=x", "fvd_frames=99"],
            "FVD needs 2 or more windows",
        ),
        (["--checkpoint", "CHECKPOINT", "protocol=tokenbench"], "protocol=tokenbench: the clips were compressed again"),
        (["EMPTY", "--tokens", "TOKENS"], "has no frames; run vidvq decode with format=png first"),
    ],
)
def test_a_mistake_is_one_clear_line(
    arguments, message, clips_dir, decoded, tokens_dir, checkpoint_dir, tmp_path, vidvq
):
    (tmp_path / "empty").mkdir()
    places = {"DECODED": decoded, "TOKENS": tokens_dir, "CHECKPOINT": checkpoint_dir, "EMPTY": tmp_path / "empty"}
    ran = vidvq("evaluate", clips_dir, *(places.get(each, each) for each in arguments))
    assert ran.code == 2
    assert message in ran.error


def test_other_clips_and_other_frames_are_one_clear_line(
    clips_dir, tiny_clips, decoded, tokens_dir, copy_of, vidvq, tmp_path
):
    ran = vidvq("evaluate", tiny_clips, decoded, "--tokens", tokens_dir)
    assert ran.code == 2 and "have no clip in common; use the tokens of these clips" in ran.error
    short = copy_of(decoded)
    next(short.glob("*/000003.png")).unlink()
    ran = vidvq("evaluate", clips_dir, short, "--tokens", tokens_dir)
    assert ran.code == 2 and "decode the tokens of these clips" in ran.error
    torn = next(short.glob("*/000002.png"))
    torn.write_bytes(torn.read_bytes()[:300])
    ran = vidvq("evaluate", clips_dir, short, "--tokens", tokens_dir)
    assert ran.code == 2 and f"{torn} is not a readable picture; decode the tokens again" in ran.error


def test_frames_of_another_tokenizer_or_format_are_refused(clips_dir, decoded, tokens_dir, copy_of, vidvq):
    frames = copy_of(decoded)
    record = json.loads((frames / "decode.json").read_text())
    (frames / "decode.json").write_text(json.dumps(record | {"token_fingerprint": "0" * 64}))
    ran = vidvq("evaluate", clips_dir, frames, "--tokens", tokens_dir)
    assert ran.code == 2 and f"{frames} was decoded from tokens of another tokenizer than {tokens_dir}" in ran.error
    (frames / "decode.json").write_text(json.dumps(record | {"format": "mp4"}))
    ran = vidvq("evaluate", clips_dir, frames, "--tokens", tokens_dir)
    assert ran.code == 2 and f"{frames} has mp4 files; decode the tokens with format=png, which is" in ran.error
    # Frames of another decoder have no record.
    (frames / "decode.json").unlink()
    assert vidvq("evaluate", clips_dir, frames, "--tokens", tokens_dir).code == 0


@pytest.mark.parametrize("option", ["--out", "--report"])
def test_a_folder_in_place_of_a_file_is_refused_before_the_work(option, clips_dir, checkpoint_dir, tmp_path, vidvq):
    ran = vidvq("evaluate", clips_dir, "--checkpoint", checkpoint_dir, option, tmp_path)
    assert ran.code == 2 and f"{tmp_path} is a folder; give a file" in ran.error
    assert "clips/s" not in ran.err
    (tmp_path / "file").touch()
    ran = vidvq("evaluate", clips_dir, "--checkpoint", checkpoint_dir, option, tmp_path / "file/below/x")
    assert ran.code == 2 and f"because {tmp_path / 'file'} is not a folder; give another file" in ran.error
    assert "clips/s" not in ran.err


def test_missing_shards_are_counted_and_refused_under_a_protocol(clips_dir, checkpoint_dir, copy_of, vidvq):
    clips = copy_of(clips_dir)
    (clips / "clips-000001.tar").unlink()
    ran = vidvq("evaluate", clips, "--checkpoint", checkpoint_dir)
    assert ran.code == 0
    missing = f"1 of 4 shards of {clips} are missing (clips-000001.tar, ...)"
    assert f"{missing}, whose clips are not scored; finish vidvq shard, or restore them" in ran.err
    ran = vidvq("evaluate", clips, "--checkpoint", checkpoint_dir, "protocol=tokenbench")
    assert ran.code == 2 and f"protocol=tokenbench: {missing}; finish vidvq shard" in ran.error


def test_a_shard_whose_items_all_failed_is_not_missing(clips_dir, copy_of, monkeypatch):
    from vidvq.evaluate import reconstruct

    clips, read = copy_of(clips_dir), reconstruct.read_commits
    (clips / "clips-000003.tar").unlink()
    assert reconstruct.missing_shards(clips).startswith("1 of 4 shards")

    def without_file(folder: Path, names: list[str]) -> list:
        return [*list(read(folder, names))[:3], SimpleNamespace(sha256=None)]

    monkeypatch.setattr(reconstruct, "read_commits", without_file)
    assert reconstruct.missing_shards(clips) == ""


def test_clips_without_tokens_are_counted(clips_dir, checkpoint_dir, decoded, tmp_path, vidvq):
    from vidvq.formats.clip_shard import read_clips

    keys = sorted(key for path in clips_dir.glob("*.tar") for key, *_ in read_clips(path))
    tokens = tmp_path / "some"
    where = f"where=key in ('{keys[0]}', '{keys[1]}')"
    job = ("tokenize", clips_dir, "--checkpoint", checkpoint_dir, "--out", tokens, "runtime.workers=0", where)
    assert vidvq(*job).code == 0
    ran = vidvq("evaluate", clips_dir, decoded, "--tokens", tokens)
    assert ran.code == 0
    assert f"{len(keys) - 2} of {len(keys)} clips in {clips_dir} have no tokens in {tokens}" in ran.err
    assert "2 clips, means over clips" in ran.err


def test_lpips_is_scored_with_a_backbone_file(scores, tmp_path, monkeypatch):
    """With random weights in place of the package's and torchvision's, which are not part of vidvq."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    backbone = {
        f"features.{index}.{part}": torch.rand(shape, generator=generator) * 0.1
        for index, (outputs, inputs, side) in shapes.items()
        for part, shape in (("weight", (outputs, inputs, side, side)), ("bias", (outputs,)))
    }
    torch.save(backbone, tmp_path / "alexnet.pth")
    weights = tmp_path / "site/lpips/weights/v0.1"
    weights.mkdir(parents=True)
    (tmp_path / "site/lpips/__init__.py").write_text("raise AssertionError('the package is imported')\n")
    linear = {f"lin{i}.model.1.weight": torch.rand(1, each[0], 1, 1) for i, each in enumerate(shapes.values())}
    torch.save(linear, weights / "alex.pth")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    found = scores(f"lpips_backbone={tmp_path / 'alexnet.pth'}", "lpips_net=alex")
    assert all(clip["lpips"] > 0 and clip["st_lpips"] is None for clip in found["clips"])
    assert all(clip["mean_frame"]["lpips"] > 0 for clip in found["clips"])


def test_fvd_is_scored_with_a_backbone_file(clips_dir, checkpoint_dir, tmp_path, monkeypatch, vidvq):
    """With features that cost less than those of I3D: the means of the channels over a window."""
    import torch

    from vidvq.metrics import fvd

    class Means(torch.nn.Module):
        def features(self, video: torch.Tensor) -> torch.Tensor:
            return video.mean(dim=(2, 3, 4))

    monkeypatch.setattr(fvd, "load_i3d", lambda _: Means())
    monkeypatch.setattr(fvd, "FEATURES", 3)
    out = tmp_path / "scores.json"
    job = ("evaluate", clips_dir, "--checkpoint", checkpoint_dir, "--checkpoint", "bundled", "--out", out)
    ran = vidvq(*job, "fvd_backbone=i3d.pt", "fvd_frames=9")
    assert ran.code == 0, ran.err
    tiny, bundled = json.loads(out.read_text())["evaluations"]
    assert tiny["fvd_windows"] == bundled["fvd_windows"] == sum(clip["num_frames"] // 9 for clip in tiny["clips"])
    assert 0 < bundled["fvd"] < tiny["fvd"]
    assert f"bundled: FVD {bundled['fvd']:.2f} over {bundled['fvd_windows']} windows" in ran.err


def test_the_networks_of_metrics_run_on_a_gpu_in_fp32(monkeypatch):
    import torch

    from vidvq.evaluate.config import EvaluateConfig
    from vidvq.evaluate.scores import VideoScorer
    from vidvq.metrics import fvd
    from vidvq.pretrained.device import find_fp32_device

    assert find_fp32_device() == "cpu"
    moved: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: (moved.append(device), self)[1])
    monkeypatch.setattr(fvd, "load_i3d", lambda _: torch.nn.Identity())
    VideoScorer(EvaluateConfig(perceptual=True))
    fvd.FvdScorer("i3d.pt", 9, [18], find_fp32_device())
    assert moved == ["cuda", "cuda"] and not torch.backends.cudnn.allow_tf32


def test_clips_that_are_no_multiple_of_the_scale_keep_their_size(checkpoint_dir):
    from vidvq.evaluate.reconstruct import InProcess

    clip = np.random.default_rng(0).integers(0, 256, (5, 33, 35, 3), dtype=np.uint8)
    source = InProcess(checkpoint_dir, "tokenizer")
    source.share_scale(2)
    assert source.name == "tokenizer + bicubic x2"
    codes, frames = source.reconstruct("clip", clip, None)
    assert frames.shape == clip.shape and codes.ndim == 3


def test_a_gpu_processes_a_clip_in_one_call(checkpoint_dir, monkeypatch):
    import torch

    from vidvq.evaluate.reconstruct import InProcess
    from vidvq.model import VideoTokenizer

    clip = np.random.default_rng(0).integers(0, 256, (17, 32, 32, 3), dtype=np.uint8)

    def reconstruct() -> tuple[np.ndarray, np.ndarray, int]:
        source, calls = InProcess(checkpoint_dir, "tokenizer"), []
        for network in (source._tokenizer.encoder, source._tokenizer.decoder):
            network.register_forward_hook(lambda *_: calls.append(1))
        return *source.reconstruct("clip", clip, None), len(calls)

    codes, frames, calls = reconstruct()
    assert calls == 2 * 5
    move = VideoTokenizer.to
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(VideoTokenizer, "to", lambda self, *a, **k: self if a == ("cuda",) else move(self, *a, **k))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    gpu_codes, gpu_frames, calls = reconstruct()
    assert calls == 2
    assert not torch.backends.cudnn.allow_tf32
    assert (gpu_codes == codes).mean() > 0.98
    assert np.abs(gpu_frames.astype(int) - frames).mean() < 2


def test_tokens_in_place_of_clips_are_named(tokens_dir, checkpoint_dir, vidvq):
    ran = vidvq("evaluate", tokens_dir, "--checkpoint", checkpoint_dir)
    assert ran.code == 2 and "was written by vidvq tokenize; set CLIPS to a directory that vidvq shard" in ran.error
