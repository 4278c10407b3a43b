"""`vidvq demo --quick`: the commands of the demo with settings that the stages accept."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from vidvq.cli.options import split
from vidvq.config import find_config, load
from vidvq.demo import report_stages, run
from vidvq.demo.report_run import DemoRun
from vidvq.demo.stages import QUICK, StageSettings, stages
from vidvq.generate.config import GenerateTrainConfig
from vidvq.generate.requests import EvaluateConfig
from vidvq.shard import ShardConfig
from vidvq.tokenize import TokenizeConfig
from vidvq.train import TrainConfig


@pytest.fixture
def commands(monkeypatch, tmp_path) -> dict[str, list[str]]:
    """The arguments of each command that a quick demo would run."""
    ran: dict[str, list[str]] = {}

    class Done:
        returncode = 0

    def note(arguments: list[str], check: bool) -> Done:
        ran[" ".join(arguments[3:4]) + str(len(ran))] = arguments[3:]
        return Done()

    monkeypatch.setattr(run.subprocess, "run", note)
    monkeypatch.setattr(run, "write_report", lambda out: None)
    assert run.run_demo(tmp_path / "out", ["steps=25"], quick=True) == 0
    return ran


def settings(commands: dict[str, list[str]], *name: str) -> list[str]:
    found = next(arguments for arguments in commands.values() if tuple(arguments[: len(name)]) == name)
    return split(tuple(found))[1]


def test_every_stage_accepts_the_settings_of_a_quick_demo(commands):
    shard = load(ShardConfig, find_config("demo-shard"), settings(commands, "shard"))
    train = load(TrainConfig, find_config("demo"), settings(commands, "train"))
    tokenize = load(TokenizeConfig, None, settings(commands, "tokenize"))
    assert shard.runtime.workers == tokenize.runtime.workers == 1
    assert train.data.crop <= (shard.clip.short_side or 0)
    assert train.adversarial, "the report shows the discriminator"
    tokens = "data.tokens=tokens"
    generator = load(
        GenerateTrainConfig, find_config("generate-demo"), [tokens, *settings(commands, "generate", "train")]
    )
    scores = load(EvaluateConfig, None, settings(commands, "generate", "evaluate"))
    # The given frames of a prediction leave at least one latent frame to predict.
    assert generator.data.latents > 1 + (scores.given - 1) // train.model.temporal_factor
    assert {"predict", "interpolate"} <= generator.tasks.weights.keys() and generator.steps < 10


def test_settings_of_the_user_win_over_those_of_quick(commands):
    assert load(TrainConfig, find_config("demo"), settings(commands, "train")).steps == 25


def test_a_demo_that_is_not_quick_has_no_settings_of_its_own():
    lines = stages(Path("out")).values()
    assert not any("runtime.workers=1" in line or "clip.short_side=64" in line for line in lines)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("steps=many", "steps='many'"),
        ("nonsense", "give key.sub=value"),
        ("out=elsewhere", "out=elsewhere is set by the demo"),
        ("data.clips=mine", "data.clips=mine is set by the demo"),
    ],
)
def test_a_wrong_setting_is_refused_before_the_first_stage(tmp_path, monkeypatch, vidvq, setting, said):
    monkeypatch.setattr(run.subprocess, "run", lambda *_, **__: pytest.fail("a stage was started"))
    ran = vidvq("demo", "--out", tmp_path / "out", setting)
    assert ran.code == 2 and said in ran.error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("code", "expected"), [(1, 1), (-9, 137)])
def test_a_stage_that_fails_ends_the_demo_with_its_code(tmp_path, monkeypatch, vidvq, code, expected):
    monkeypatch.setattr(run.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=code))
    assert vidvq("demo", "--out", tmp_path / "out").code == expected
    assert not (tmp_path / "out").exists()


def test_the_time_of_a_stage_is_that_of_its_longest_run(tmp_path, monkeypatch):
    monkeypatch.setattr(run.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0))
    monkeypatch.setattr(run, "write_report", lambda out: None)
    (tmp_path / "stages.json").write_text('{"train": 100.0, "evaluate": 0.0}')
    assert run.run_demo(tmp_path, []) == 0
    seconds = json.loads((tmp_path / "stages.json").read_text())
    assert seconds["train"] == 100 and 0 < seconds["evaluate"] < 10 and seconds.keys() == stages(tmp_path).keys()


def test_failed_and_filtered_clips_are_described():
    clips = {"ok": 5, "planned": 9, "shards": 1, "bytes": 3000, "failed": {"damaged": {"count": 1}}}
    clips |= {"filtered": {"static": {"count": 2}, "duplicate": {"count": 1}}}
    split = SimpleNamespace(clips=clips, videos={"a.mp4": 2_000_000}, frames=40)
    ran = cast(DemoRun, SimpleNamespace(splits={"train": split}))
    assert report_stages.describe_stage(ran, "shard train") == (
        "1 video, 2.0 MB → 5 clips of 40 frames in 1 shard, 3.0 kB; 4 of 9 failed or filtered"
    )


def test_a_training_with_evaluations_is_described():
    lines = [{"step": 5, "step_s": 0.5, "data_wait": 0.25}, {"step": 5, "held_out_psnr": 20.0}]
    config = {"data": {"batch_size": 2, "num_frames": 9, "crop": 64}}
    ran = cast(DemoRun, SimpleNamespace(config=config, metrics=lines))
    assert report_stages.describe_stage(ran, "train") == (
        "5 steps of 2 crops, 9×64×64 each; 0.50 s a step, 25.0 % of it waiting for data"
    )


def test_the_report_lists_the_commands_of_the_stages_that_ran():
    ran = cast(DemoRun, SimpleNamespace(out=Path("out"), seconds={"train": 1.0, "decode png": 2.0}))
    assert report_stages.commands(ran) == [
        "vidvq train out/train/config.yaml",
        "vidvq decode out/tokens/heldout --checkpoint out/train --out out/decoded/png format=png",
    ]


@pytest.mark.parametrize("settings", [StageSettings(), QUICK])
def test_no_command_has_a_setting_twice(settings):
    for line in stages(Path("out"), settings).values():
        names = [each.partition("=")[0] for each in line if "=" in each]
        assert len(names) == len(set(names)), line
