"""`make weights`: stages within a budget, scores by the shipped commands, the card."""

import importlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
STEP_S = 0.5


@pytest.fixture
def recipe(monkeypatch):
    """The module, with commands that are only noted, and their outputs."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    weights = importlib.import_module("weights")
    calls = []

    def vidvq(*arguments: str, limit_s: float | None = None) -> None:
        calls.append((arguments, limit_s))
        out = Path(arguments[arguments.index("--out") + 1]) if "--out" in arguments else None
        settings = dict(each.split("=", 1) for each in arguments if "=" in each)
        if arguments[0] == "train":
            run = Path(settings["out"])
            run.mkdir(parents=True)
            (run / "metrics.jsonl").write_text(json.dumps({"step_s": STEP_S}) + "\n")
        if arguments[0] == "evaluate":
            clip = {"psnr": 26.0, "ssim": 0.8, "mean_frame_psnr": 25.0, "mean_frame_ssim": 0.7, "bits_per_pixel": 0.06}
            found = [clip | {"source": f"/videos/{name}"} for name in ("a/1.mp4", "a/1.mp4", "b/2.mp4")]
            books = [{"name": "joint", "used": 5, "size": 8}]
            out.write_text(json.dumps({"clips": found, "codebooks": books, "token_fingerprint": "0123456789abcdef"}))

    def bundle(run: Path, out: Path) -> int:
        out.mkdir(exist_ok=True)
        return 7

    monkeypatch.setattr(weights, "vidvq", vidvq)
    monkeypatch.setattr(weights, "bundle", bundle)
    return weights.main, calls


def test_two_stages_share_the_budget_and_the_result_is_scored_by_the_commands(recipe, tmp_path):
    main, calls = recipe
    work, out = tmp_path / "work", tmp_path / "out"
    videos = ["--train", "t.mp4", "--held-out", "h.mp4", "--work", work, "--out", out, "--history", "From a start."]
    ran = CliRunner().invoke(main, [*map(str, videos), "--finish", "bundled-decoder", "--budget-s", "100", "seed=4"])
    assert ran.exit_code == 0, ran.output
    assert "0.50 s per step: training ends at step 160, after about 80 s" in ran.output
    trained = [(each[1], each, limit) for each, limit in calls if each[0] == "train"]
    assert [name for name, *_ in trained] == ["bundled", "bundled", "bundled-decoder", "bundled-decoder"]
    for (_, settings, limit), steps, run, seconds in zip(
        trained,
        (12, 160, 12, 40),
        ("train.timing", "train", "finish.timing", "finish"),
        (None, 80, None, 20),
        strict=True,
    ):
        assert f"steps={steps}" in settings and f"out={work / run}" in settings and "seed=4" in settings
        assert f"data.clips={work}/clips/train" in settings
        assert limit is None if seconds is None else limit >= seconds + 30
        assert (f"start_from={work / 'train'}" in settings) == run.startswith("finish")
    assert [each[0] for each, _ in calls if each[0] != "train"] == ["shard", "shard", "tokenize", "decode", "evaluate"]
    card = (out / "README.md").read_text()
    assert (
        "From a start.\n\nTrained by `configs/bundled.yaml` for 7 steps, then by `configs/bundled-decoder.yaml`" in card
    )
    assert "| a/1.mp4 | 2 | 26.00 |" in card and "| **all** | 3 |" in card and "5 of 8 joint codes" in card


def test_weights_that_are_too_large_do_not_ship(checkpoint_dir, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    weights = importlib.import_module("weights")
    assert weights.bundle(checkpoint_dir, tmp_path / "small") == 1
    monkeypatch.setattr(weights, "MAX_MIB", 0.001)
    with pytest.raises(SystemExit, match=r"MiB; at most 0.001 MiB may ship"):
        weights.bundle(checkpoint_dir, tmp_path / "large")
