"""The demo's report in a real browser: its videos play, its pictures show, and nothing leaves the page."""

import json
import os
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.browser import BROWSERS, Page
from vidvq import config as settings
from vidvq.data import DataConfig
from vidvq.decode import DecodeConfig, run_decode
from vidvq.demo.report import write_report
from vidvq.evaluate.job import run_evaluate
from vidvq.formats.checkpoint import step_folder
from vidvq.model import TokenizerConfig, VideoTokenizer
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.quantize import QuantizerConfig, VQConfig
from vidvq.pretrained import save_tokenizer
from vidvq.runtime import RuntimeConfig
from vidvq.shard import run_shard
from vidvq.shard.config import ClipPolicy, ShardConfig
from vidvq.storage import pretty_json
from vidvq.tokenize import TokenizeConfig, run_tokenize
from vidvq.train.config import TrainConfig
from vidvq.video.encode import encode_mp4, encode_npy

INLINE = RuntimeConfig(workers=0)
HEIGHT, WIDTH, FRAMES = 48, 64, 9
# What the report makes of a clip: three panels, enlarged to a short side of about 256 pixels, and gaps of 8.
SHOWN_HEIGHT, SHOWN_WIDTH = HEIGHT * 5, WIDTH * 5 * 3 + 2 * 8
TASKS = {"predict": "last frame repeated", "interpolate": "linear blend"}
STEADY = tuple(range(0, FRAMES * 100, 100))
UNEVEN = (0, 100, 200, 500, 600, 700, 1000, 1100, 1200)


def brightness(frame: int) -> int:
    """Of the original's left half in each frame; the right half is its opposite."""
    return 40 + 20 * frame


def frames_of_test_video() -> np.ndarray:
    frames = np.empty((FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    for index in range(FRAMES):
        frames[index, :, : WIDTH // 2] = brightness(index)
        frames[index, :, WIDTH // 2 :] = 255 - brightness(index)
    return frames


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the demo's stages leave behind, of tiny videos and untrained weights."""
    out = tmp_path_factory.mktemp("demo") / "run"
    policy = ClipPolicy(num_frames=FRAMES, min_frames=FRAMES, short_side=None, multiple=8)
    for split, videos in (("train", {"steady": STEADY}), ("heldout", {"steady": STEADY, "uneven <i>&": UNEVEN})):
        folder = out.parent / split
        folder.mkdir()
        for name, pts in videos.items():
            (folder / f"{name}.mp4").write_bytes(encode_mp4(frames_of_test_video(), pts, Fraction(1, 1000), 10))
        run_shard([str(folder)], out / "clips" / split, ShardConfig(policy, runtime=INLINE))
    write_training(out)
    for split in ("train", "heldout"):
        run_tokenize(
            [str(out / "clips" / split)], out / "train", out / "tokens" / split, TokenizeConfig(runtime=INLINE)
        )
    png = out / "decoded" / "png"
    run_decode(out / "tokens" / "heldout", out / "train", png, DecodeConfig("png"))
    run_decode(out / "tokens" / "heldout", out / "train", out / "decoded" / "mp4", DecodeConfig("mp4"))
    run_evaluate(out / "clips" / "heldout", png, out / "tokens" / "heldout", out / "scores.json")
    # The tokenizer that ships with vidvq takes longer than this one to decode.
    shutil.copytree(png, out / "bundled" / "png")
    run_evaluate(out / "clips" / "heldout", png, out / "tokens" / "heldout", out / "bundled" / "scores.json")
    write_generated(out)
    stages = ("shard train", "shard heldout", "train", "tokenize train", "tokenize heldout", "decode png", "evaluate")
    stages += ("tokenize bundled", "evaluate bundled", "generate train", "generate evaluate")
    (out / "stages.json").write_bytes(pretty_json({stage: 1.5 for stage in stages}))
    write_report(out)
    return out


def write_generated(out: Path) -> None:
    """Scores and frames as `vidvq generate evaluate` writes them."""
    folder, scores = out / "generated", {"clips": 3, "skipped": 1, "tasks": {}}
    folder.mkdir()
    for at, (task, baseline) in enumerate(TASKS.items()):
        psnr = {"generator": 11.5 + at, "baseline": 21.5 + at, "ceiling": 31.5 + at}
        scores["tasks"][task] = {"baseline": baseline, "psnr": psnr}
        for name in ("original", "generator", "baseline", "ceiling"):
            (folder / f"{task}-{name}.npy").write_bytes(encode_npy(frames_of_test_video()))
    (folder / "scores.json").write_bytes(pretty_json(scores))
    (out / "generator").mkdir()
    (out / "generator" / "config.yaml").write_text("steps: 150\n")


def write_training(out: Path) -> None:
    """A checkpoint of untrained weights, and metrics as a run with a discriminator logs them."""
    torch.manual_seed(0)
    stack = StackConfig((8, 8), (1, 1))
    model = TokenizerConfig(
        encoder=stack,
        decoder=DecoderConfig(stack.channels, stack.blocks),
        quantizer=QuantizerConfig(4, VQConfig(size=16), VQConfig(size=32)),
    )
    tokenizer = VideoTokenizer(model)
    save_tokenizer(step_folder(out / "train", 40), tokenizer, tokenizer.inference_state_dict(), 40)
    config = TrainConfig(DataConfig(clips=(str(out / "clips" / "train"),)), str(out / "train"), steps=40, model=model)
    (out / "train" / "config.yaml").write_text(settings.dump(config))
    fields = "l1 l2 commitment loss psnr lr step_s data_wait usage_spatial perplexity_spatial usage_temporal "
    fields += "perplexity_temporal"
    late = "discriminator logits_real logits_fake adversarial"
    lines = [
        {"step": step} | dict.fromkeys((fields + (f" {late}" if step > 20 else "")).split(), 1 / step)
        for step in (10, 20, 30, 40)
    ]
    (out / "train" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def browser() -> str:
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    message = f"none of {', '.join(BROWSERS)} is installed; the report was not seen in a browser"
    if os.environ.get("VIDVQ_REQUIRE_BROWSER") == "1":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="module")
def page(browser: str, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    page = Page(browser, tmp_path_factory.mktemp("profile"), (run / "report.html").as_uri())
    yield page
    page.close()


def test_videos_play_by_themselves_once_in_view(page: Page):
    played = page.evaluate("""async () => {
      const results = [];
      for (const video of document.querySelectorAll("video")) {
        video.scrollIntoView();
        const places = new Set();
        const until = performance.now() + 8000;
        while (places.size < 4 && performance.now() < until) {
          await new Promise(done => setTimeout(done, 50));
          places.add(video.currentTime);
        }
        results.push({places: places.size, ready: video.readyState, error: video.error && video.error.message,
          width: video.videoWidth, height: video.videoHeight, duration: video.duration,
          decoded: video.getVideoPlaybackQuality().totalVideoFrames, loop: video.loop, muted: video.muted,
          controls: video.controls, label: video.getAttribute("aria-label")});
      }
      return results;
    }""")
    assert len(played) == 2
    for video in played:
        assert video["error"] is None
        assert video["ready"] >= 2
        assert video["places"] >= 4, "it stands still"
        assert video["decoded"] > 0
        assert (video["width"], video["height"]) == (SHOWN_WIDTH, SHOWN_HEIGHT)
        assert video["loop"] and video["muted"] and video["controls"]
    assert "uneven <i>&.mp4, clip 0" in played[1]["label"]
    for video, pts in zip(played, (STEADY, UNEVEN), strict=True):
        # To the last frame at least, and no longer than that one lasts.
        assert pts[-1] / 1000 < video["duration"] < (pts[-1] + 120) / 1000


def test_the_button_stops_every_video(page: Page):
    paused = page.evaluate("""async () => {
      document.getElementById("toggle").click();
      await new Promise(done => setTimeout(done, 100));
      return [...document.querySelectorAll("video")].map(video => video.paused);
    }""")
    assert paused == [True, True]


@pytest.mark.parametrize(("index", "pts"), [(0, STEADY), (1, UNEVEN)])
def test_every_frame_is_there_at_its_time_with_the_original_on_the_left(page: Page, index: int, pts: tuple[int, ...]):
    middles = [(start + end) / 2000 for start, end in zip(pts, (*pts[1:], pts[-1] + 100), strict=True)]
    shown = page.evaluate(f"""async () => {{
      const video = document.querySelectorAll("video")[{index}];
      video.scrollIntoView();
      video.pause();
      const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
      const pen = canvas.getContext("2d", {{willReadFrequently: true}});
      const results = [];
      for (const middle of {json.dumps(middles)}) {{
        const frame = new Promise(done => video.requestVideoFrameCallback((now, about) => done(about.mediaTime)));
        video.currentTime = middle;
        const time = await Promise.race([frame, new Promise(done => setTimeout(() => done(-1), 5000))]);
        pen.drawImage(video, 0, 0);
        const at = column => pen.getImageData(column, 100, 1, 1).data[0];
        results.push([time, at(80), at(240)]);
      }}
      return results;
    }}""")
    assert [time for time, _, _ in shown] == pytest.approx([tick / 1000 for tick in pts], abs=0.002)
    for frame, (_, left, right) in enumerate(shown):
        assert left == pytest.approx(brightness(frame), abs=8), f"frame {frame}"
        assert right == pytest.approx(255 - brightness(frame), abs=8), f"frame {frame}"


def test_every_picture_shows(page: Page):
    widths = page.evaluate("""async () => [...document.images].map(image => image.complete ? image.naturalWidth : 0)""")
    # A filmstrip for each clip and each task; a frame and its codes for each latent time of one clip.
    assert len(widths) == 2 + len(TASKS) + 2 * 3
    assert all(widths)


def test_the_generator_and_the_bundled_tokenizer_stand_beside_the_trained_one(page: Page):
    rows = page.evaluate("""async () => [...document.querySelectorAll("tbody tr")].map(
      row => [...row.children].map(cell => cell.textContent))""")
    assert ["predict", "11.50", "21.50", "last frame repeated", "31.50"] in rows
    assert ["interpolate", "12.50", "22.50", "linear blend", "32.50"] in rows
    trained, bundled = (next(row for row in rows if row[0] == name) for name in ("trained here", "bundled"))
    assert trained[1:] == bundled[1:]
    text = page.evaluate("async () => document.body.textContent")
    assert "150 steps" in text and "1 held-out clip has larger frames" in text


def test_a_run_of_an_older_version_has_neither(run: Path, tmp_path: Path):
    older = tmp_path / "older"
    shutil.copytree(run, older, ignore=shutil.ignore_patterns("bundled", "generated", "generator"))
    text = write_report(older).read_text()
    assert "PSNR" in text and "A generator on the tokens" not in text and "undled tokenizer" not in text


def test_charts_have_words_and_share_no_id(page: Page):
    charts, ids = page.evaluate("""async () => [
      [...document.querySelectorAll("svg")].map(svg => [svg.getAttribute("role"), svg.getAttribute("aria-label"),
        svg.querySelectorAll("path").length]),
      [...document.querySelectorAll("[id]")].map(element => element.id)]""")
    assert len(charts) == 8
    assert all(role == "img" and label and paths > 5 for role, label, paths in charts)
    assert len(ids) == len(set(ids))


def test_nothing_leaves_the_page_and_nothing_is_complained_of(page: Page, run: Path):
    page.evaluate("async () => new Promise(done => setTimeout(done, 300))")
    assert page.requests() == [(run / "report.html").as_uri()]
    assert page.errors() == []


@pytest.mark.parametrize("policy", ["kept", "removed"])
def test_a_page_that_asks_the_network_is_noticed(browser: str, run: Path, tmp_path: Path, policy: str):
    text = (run / "report.html").read_text()
    text = text.replace("</main>", '<img alt="" src="http://report.invalid/pixel.png"></main>')
    if policy == "removed":
        text = text.replace('http-equiv="Content-Security-Policy"', "")
    other = tmp_path / "other.html"
    other.write_text(text)
    page = Page(browser, tmp_path / "profile", other.as_uri())
    try:
        page.evaluate("async () => new Promise(done => setTimeout(done, 300))")
        # With the policy the browser refuses, and says so; without it, it asks.
        assert page.errors()
        if policy == "removed":
            assert "http://report.invalid/pixel.png" in page.requests()
    finally:
        page.close()
