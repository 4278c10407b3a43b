"""`vidvq config`: every setting is explained, and what is printed is a file that means the same."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
import yaml
from click.testing import CliRunner
from pydantic import Field

from vidvq.cli.config import STAGES, resolve
from vidvq.cli.main import cli
from vidvq.config import ConfigError, apply_overrides, load, to_dict, validate
from vidvq.errors import UsageError
from vidvq.settings import as_yaml, describe_type, flow_yaml, meanings_of, settings_of
from vidvq.submit import VERBS

REQUIRED = {
    "train": {"data": {"clips": "somewhere"}},
    "generate-train": {"data": {"tokens": "somewhere"}},
}


def merge(base: dict, other: dict) -> dict:
    return {**base, **{key: {**base.get(key, {}), **value} for key, value in other.items()}}


def printed(*arguments: str) -> dict:
    result = CliRunner().invoke(cli, ["config", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return yaml.safe_load(result.output)


@pytest.mark.parametrize("stage", STAGES)
def test_every_field_of_every_config_has_a_sentence(stage):
    settings = [each for group in settings_of(STAGES[stage].config_type()) for each in group.walk()]
    kinds = [each for group in settings for _, members in group.kinds for each in members]
    without = [each.path for each in settings + kinds if not re.fullmatch(r".{8,}[.)]", each.meaning)]
    assert without == []


@pytest.mark.parametrize("stage", STAGES)
def test_the_printed_yaml_loads_back_to_the_defaults(stage):
    kind, required = STAGES[stage].config_type(), REQUIRED.get(stage, {})
    assert validate(kind, merge(printed(stage), required)) == validate(kind, required)


@pytest.mark.parametrize("stage", STAGES)
def test_the_help_of_a_command_names_every_top_level_setting(stage):
    assert STAGES[stage].groups == tuple(each.path for each in settings_of(STAGES[stage].config_type()))
    text = " ".join(CliRunner().invoke(cli, [*stage.split("-"), "--help"]).output.split()).replace("- ", "-")
    assert ", ".join(STAGES[stage].groups) in text and f"vidvq config {stage}" in text


@pytest.mark.parametrize("stage", [verb.replace(" ", "-") for verb in VERBS])
def test_the_settings_of_a_submitted_command_that_name_files_have_the_type_of_a_path(stage):
    kind, required = STAGES[stage].config_type(), REQUIRED.get(stage, {})
    if stage == "generate-train":
        required = required | {"pixels": {"clips": "somewhere"}}
    settings = [each for group in settings_of(kind, validate(kind, required)) for each in group.walk()]
    names_files = re.compile(r"(?!column ).*\b(director|folder|checkpoint|path of|URL)")
    told = {each.path for each in settings if "text" in each.type and names_files.match(each.meaning)}
    assert {each.path for each in settings if each.absolute} == told != set()


@pytest.mark.parametrize("name", ["demo", "base", "demo-shard"])
def test_a_packaged_file_is_printed_with_its_values_and_is_told_by_its_keys(name):
    from vidvq.config import find_config, read_yaml

    kind = STAGES["shard" if name == "demo-shard" else "train"].config_type()
    assert to_dict(validate(kind, printed(name))) == to_dict(validate(kind, read_yaml(find_config(name))))


def test_values_override_the_defaults_and_a_wrong_one_is_refused():
    assert printed("shard", "clip.num_frames=65")["clip"]["num_frames"] == 65
    with pytest.raises(ConfigError, match="clip.num_frames=0"):
        CliRunner().invoke(cli, ["config", "shard", "clip.num_frames=0"], catch_exceptions=False)


@pytest.mark.parametrize("stage", STAGES)
def test_a_setting_at_its_default_changes_no_other(stage):
    kind, required = STAGES[stage].config_type(), REQUIRED.get(stage, {})
    settings = [each for group in settings_of(kind) for each in group.walk()]
    for setting in settings:
        if setting.members is None and not setting.is_required:
            given = apply_overrides(required, [f"{setting.path}={flow_yaml(setting.value)}"])
            assert validate(kind, given) == validate(kind, required), setting.path


def test_the_default_of_a_group_survives_in_a_group_that_is_optional_or_of_another_kind():
    quantizer = "model.quantizer.spatial"
    overrides = ["data.clips=x", f"{quantizer}.kind=residual", f"{quantizer}.layer.warmup=8"]
    assert load(STAGES["train"].config_type(), None, overrides).model.quantizer.spatial.layer.size == 32
    overrides = ["data.clips=x", f"{quantizer}.kind=vq", f"{quantizer}.decay=0.9"]
    assert load(STAGES["train"].config_type(), None, overrides).model.quantizer.spatial.size == 512


def test_another_kind_of_codebook_has_its_own_settings():
    book = printed("train", "model.quantizer.spatial.kind=fsq")["model"]["quantizer"]["spatial"]
    assert book == {"kind": "fsq", "levels": [8, 5, 5, 5]}


def test_a_required_setting_is_commented_out_until_it_is_given():
    assert "# clips: REQUIRED" in as_yaml(resolve(STAGES["train"].config_type(), {}))
    given = as_yaml(resolve(STAGES["train"].config_type(), {"data": {"clips": "here"}}))
    assert "\n  clips: [here]\n" in given and "REQUIRED" not in given


def test_a_file_that_fits_two_commands_needs_the_command(tmp_path):
    path = tmp_path / "both.yaml"
    path.write_text("max_failed: 0.5\n")
    with pytest.raises(UsageError, match="matches shard, map, tokenize"):
        CliRunner().invoke(cli, ["config", str(path)], catch_exceptions=False)
    assert printed("tokenize", str(path))["max_failed"] == 0.5


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("clip.fpz=3", "clip.fps"),
        ("clip.num_frame=3", "clip.num_frames"),
        ("clipp.num_frames=3", "clip"),
        ("num_frames=3", "clip.num_frames"),
        ("runtime.worker=3", "runtime.workers"),
        ("clip.threshold=3", "cut.threshold"),
    ],
)
def test_a_mistyped_key_is_answered_with_the_nearest(override, suggestion):
    with pytest.raises(ConfigError) as error:
        load(STAGES["shard"].config_type(), None, [override])
    assert str(error.value).endswith(f"is not a known field; did you mean {suggestion}?")


def test_of_equally_similar_keys_the_first_is_suggested():
    with pytest.raises(ConfigError, match=r"clips=3 is not a known field; did you mean data.clips\?"):
        load(STAGES["train"].config_type(), None, ["data.clips=x", "clips=3"])


def test_a_key_that_is_like_no_other_gets_no_suggestion():
    with pytest.raises(ConfigError, match="xyzzy=3 is not a known field$"):
        load(STAGES["shard"].config_type(), None, ["xyzzy=3"])


def test_a_key_of_another_kind_is_not_suggested():
    overrides = ["data.clips=x", "model.quantizer.spatial.kind=fsq", "model.quantizer.spatial.level=[5,5]"]
    with pytest.raises(ConfigError, match=r"did you mean model.quantizer.spatial.levels\?"):
        load(STAGES["train"].config_type(), None, overrides)


def test_meanings_span_lines_share_entries_and_come_from_bases():
    @dataclass
    class Base:
        """A base.

        Attributes:
            a: the first,
                over two lines.
        """

    @dataclass
    class Both(Base):
        """Both.

        Attributes:
            b, c: shared.

        Raises:
            d: not a field.
        """

    assert meanings_of(Both) == {"a": "the first, over two lines.", "b": "shared.", "c": "shared."}


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Annotated[int, Field(ge=1)] | None, "integer, 1 or more; or null"),
        (Annotated[float, Field(gt=0, le=1)], "number, above 0, at most 1"),
        (Annotated[int, Field(ge=0, le=51)], "integer, from 0 to 51"),
        (Literal["a", "b", "c"], "a, b or c"),
        (tuple[int, ...], "list of integers"),
        (tuple[float, float], "list of 2 numbers"),
        (dict[str, float], "mapping of text to number"),
        (bool, "true or false"),
    ],
)
def test_types_in_words(hint, words):
    assert describe_type(hint) == words
