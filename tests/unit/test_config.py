"""Configuration: one validation, one line per mistake, and what the user wrote wins."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field

from vidvq.config import (
    ConfigError,
    apply_overrides,
    dump,
    find_config,
    load,
    read_yaml,
    to_absolute_dict,
    to_dict,
    validate,
)
from vidvq.shard import ShardConfig
from vidvq.tokenize.config import TokenizeConfig
from vidvq.train import TrainConfig

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@dataclass(frozen=True)
class Fsq:
    kind: Literal["fsq"] = "fsq"
    levels: tuple[int, ...] = (8, 8)


@dataclass(frozen=True)
class Vq:
    kind: Literal["vq"] = "vq"
    size: int = 512


@dataclass(frozen=True)
class Model:
    quantizer: Annotated[Fsq | Vq, Field(discriminator="kind")] = field(default_factory=Vq)
    lr: float = 0.1


@dataclass(frozen=True)
class Inner:
    quantizer: Annotated[Fsq | Vq, Field(discriminator="kind")] = field(default_factory=Vq)
    count: Literal["auto"] | int = "auto"
    sets: dict[str, Annotated[float, Field(gt=0)]] | tuple[str, ...] = ()


@dataclass(frozen=True)
class Unions:
    inner: Inner | None = field(default_factory=Inner)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_three_wrong_fields_are_named_in_one_line_with_path_and_value():
    overrides = ["clip.num_frames=0", "clip.fpz=3", "clips_per_shard=many"]
    with pytest.raises(ConfigError) as error:
        load(ShardConfig, None, overrides)
    message = str(error.value)
    assert "\n" not in message
    assert "3 wrong fields" in message
    assert "clip.num_frames=0: must be an integer, 1 or more" in message
    assert "clip.fpz=3 is not a known field" in message
    assert "clips_per_shard='many': " in message


@pytest.mark.parametrize("override", ["clipp.num_frames=3", "clip.frames=3", "runtime.address.port=1"])
def test_an_unknown_or_misplaced_key_is_refused(override):
    with pytest.raises(ConfigError, match=override.split("=")[0].split(".")[0]):
        load(ShardConfig, None, [override])


def test_a_rule_over_two_fields_says_both():
    with pytest.raises(ConfigError, match="clip.*min_frames=9 must be at most num_frames=5"):
        load(ShardConfig, None, ["clip.num_frames=5"])


def test_a_missing_field_is_named():
    @dataclass(frozen=True)
    class Needs:
        clips: str

    with pytest.raises(ConfigError, match="config has 1 wrong field: clips is missing"):
        validate(Needs, {})


def test_a_number_that_yaml_reads_as_text_is_a_number(tmp_path):
    path = write(tmp_path / "c.yaml", "lr: 1e-4\n")
    assert read_yaml(path) == {"lr": "1e-4"}, "PyYAML's trap is gone; this test guards nothing any more"
    assert load(Model, path, []).lr == 1e-4
    assert load(Model, None, ["lr=2e-5"]).lr == 2e-5


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["quantizer.kind=fsq", "quantizer.levels=[5,5]"], Fsq(levels=(5, 5))),
        (["quantizer.kind=vq", "quantizer.size=7"], Vq(size=7)),
        ([], Vq()),
    ],
)
def test_a_union_is_told_apart_by_kind(overrides, expected):
    assert load(Model, None, overrides).quantizer == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("x", "count='x': must be auto, or an integer"),
        ("1.5", "count=1.5: must be auto, or an integer"),
        ("[1]", "count=[1]: must be auto, or an integer"),
    ],
)
def test_a_wrong_value_of_several_types_is_one_wrong_field(value, message):
    with pytest.raises(ConfigError) as error:
        load(Unions, None, [f"inner.count={value}"])
    assert str(error.value) == f"config has 1 wrong field: inner.{message}"


def test_a_wrong_weight_of_a_mapping_or_list_is_one_wrong_field():
    with pytest.raises(ConfigError) as error:
        load(Unions, None, ["inner.sets={a: -1}", "inner.quantizer.kind=fsq", "inner.quantizer.levels=[x]"])
    message = str(error.value)
    assert message.startswith("config has 2 wrong fields: inner.quantizer.levels.0='x': ")
    assert message.endswith("; inner.sets={'a': -1}: must be a mapping of text to number, above 0, or a list of texts")


def test_the_end_of_a_long_mapping_is_shown():
    with pytest.raises(ConfigError, match=r"inner.sets=\{'/corpus/a+\.\.\.a+': -1\}: must be a mapping"):
        load(Unions, None, [f"inner.sets={{/corpus/{'a' * 80}: -1}}"])


def test_a_field_of_the_other_kind_is_refused():
    with pytest.raises(ConfigError, match="quantizer.size=7 is not a known field"):
        load(Model, None, ["quantizer.kind=fsq", "quantizer.size=7"])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a=1", {"a": 1, "b": {"c": 2}}),
        ("b.c=3", {"a": 0, "b": {"c": 3}}),
        ("b.d=[1, 2]", {"a": 0, "b": {"c": 2, "d": [1, 2]}}),
        ("b.d=x=y", {"a": 0, "b": {"c": 2, "d": "x=y"}}),
        ("b.d=", {"a": 0, "b": {"c": 2, "d": None}}),
        ("e.f.g=true", {"a": 0, "b": {"c": 2}, "e": {"f": {"g": True}}}),
    ],
)
def test_an_override_lays_over_what_is_there(override, expected):
    given = {"a": 0, "b": {"c": 2}}
    assert apply_overrides(given, [override]) == expected
    assert given == {"a": 0, "b": {"c": 2}}


def test_of_two_overrides_the_last_wins_and_both_win_over_the_file(tmp_path):
    path = write(tmp_path / "c.yaml", "clips_per_shard: 5\nmax_failed: 0.5\n")
    config = load(ShardConfig, path, ["clips_per_shard=6", "clips_per_shard=7"])
    assert (config.clips_per_shard, config.max_failed) == (7, 0.5)


@pytest.mark.parametrize(
    "override", ["novalue", "=3", "a.b=1", "c=[1", "c={x: 1", "c=!!bool x", 'c=!!int ""', "c=!!timestamp x"]
)
def test_a_bad_override_is_refused_in_one_line(override):
    with pytest.raises(ConfigError) as error:
        apply_overrides({"a": 1}, [override])
    assert repr(override) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", ["1e400", ".inf", "inf", "1e30"])
def test_a_time_limit_that_no_timer_has_is_refused(number):
    with pytest.raises(ConfigError, match="deadline_s=") as error:
        load(ShardConfig, None, [f"limits.deadline_s={number}"])
    assert "\n" not in str(error.value)


def test_infinity_as_text_is_refused():
    with pytest.raises(ConfigError, match="limits.max_gap_s=inf must be a finite number"):
        load(ShardConfig, None, ["limits.max_gap_s=1e400"])


@pytest.mark.parametrize("text", ["[1, 2]", "just words", "a: [1", "a: \x00"])
def test_a_file_that_is_no_mapping_is_refused_in_one_line(tmp_path, text):
    path = write(tmp_path / "c.yaml", text)
    with pytest.raises(ConfigError) as error:
        load(ShardConfig, path, [])
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["seed: 1\nlr: 1\nlr: 2\n", "lr: 1\n'lr': 2\n", "quantizer: {size: 1, size: 2}\n", "x: {<<: {}, <<: {}}\n"]
)
def test_a_repeated_key_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match=r"is not YAML: key '\w*<*' is repeated in"):
        read_yaml(write(tmp_path / "c.yaml", text))


def test_a_key_may_replace_one_of_a_merged_mapping(tmp_path):
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: [*a, *b], y: 4}\n"
    assert read_yaml(write(tmp_path / "c.yaml", text))["c"] == {"x": 1, "y": 4}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1: 2", "has no setting of this command, but 1; "),
        ("lr: 2\nnull: 3", "None=None: keys should be strings"),
        ("inner: [1]", r"inner=\[1\]: must be a mapping of settings"),
        ("inner: {quantizer: 3}", r"inner.quantizer=3: "),
    ],
)
def test_keys_and_groups_of_wrong_types_are_refused_in_one_line(tmp_path, text, said):
    kind = Unions if "inner" in text else Model
    with pytest.raises(ConfigError, match=said) as error:
        load(kind, write(tmp_path / "c.yaml", text), [])
    assert "\n" not in str(error.value)


def test_yaml_tags_build_no_objects(tmp_path):
    path = write(tmp_path / "c.yaml", f"a: !!python/object/apply:os.mkdir [{tmp_path / 'made'}]\n")
    with pytest.raises(ConfigError, match="not YAML"):
        read_yaml(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["nowhere.yaml", "nowhere", "no/such/file.yaml"])
def test_a_config_that_is_not_there_is_named(name):
    with pytest.raises(ConfigError, match=name.removesuffix(".yaml")):
        find_config(name)


def test_a_name_that_is_not_packaged_is_answered_with_those_that_are():
    with pytest.raises(ConfigError, match=r"config nosuch is not a file; .*: base, .*, demo, demo-shard, .*vqvae"):
        find_config("nosuch")


def test_a_config_of_another_command_is_refused_as_such():
    with pytest.raises(ConfigError, match=r"demo\.yaml has no setting of this command, but data, out, .*vidvq config"):
        load(ShardConfig, find_config("demo"), [])


def test_an_override_is_not_blamed_on_the_file_alone(tmp_path):
    path = write(tmp_path / "c.yaml", "clip: {fps: 3}")
    with pytest.raises(ConfigError, match=r"c\.yaml with the given settings has 1 wrong field: clip.fps='x'"):
        load(ShardConfig, path, ["clip.fps=x"])


def test_a_long_value_is_cut(tmp_path):
    path = write(tmp_path / "c.yaml", f"clip: {{fps: 3}}\nwide: {'x' * 500}")
    with pytest.raises(ConfigError, match=r"wide='x{50,56}\.\.\. is not a known field"):
        load(ShardConfig, path, [])


def test_a_bare_name_finds_the_packaged_file():
    assert find_config("demo-shard").name == "demo-shard.yaml"


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        (ShardConfig, ["clip.fps=12.5", "clip.stride=3", "runtime.workers=4", "max_failed=1e-3"]),
        (TokenizeConfig, ["runtime.address=auto"]),
        (Model, ["quantizer.kind=fsq", "quantizer.levels=[3,5,7]"]),
    ],
)
def test_dump_and_load_give_the_same_config_back(tmp_path, kind, overrides):
    config = load(kind, None, overrides)
    assert load(kind, write(tmp_path / "c.yaml", dump(config)), []) == config
    assert validate(kind, to_dict(config)) == config


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("out=o", "{here}/o"),
        ("out=/o", "/o"),
        ("data.tokens=[t, s3://bucket/t]", ["{here}/t", "s3://bucket/t"]),
        ("data.tokens={t: 2, s3://bucket/t: 1}", {"{here}/t": 2.0, "s3://bucket/t": 1.0}),
        ("held_out.tokens=t", "{here}/t"),
        ("code_vectors=run", "{here}/run"),
        ("code_vectors=bundled", "bundled"),
        ("code_vectors=package.module:Class@w.pt", "package.module:Class@{here}/w.pt"),
        # A folder, and a name on the hub.
        ("conditions.text_encoder=t5", "{here}/t5"),
        ("conditions.text_encoder=google/t5", "google/t5"),
        ("conditions.label=t5", "t5"),
        ("pixels=null", None),
    ],
)
def test_the_paths_of_a_config_become_absolute(tmp_path, monkeypatch, given, expected):
    from vidvq.generate.config import GenerateTrainConfig

    monkeypatch.chdir(tmp_path)
    (tmp_path / "t5").mkdir()
    needed = [] if given == "pixels=null" else ["pixels.clips=c", "conditions.text=column", "conditions.text_encoder=x"]
    config = load(GenerateTrainConfig, None, ["data.tokens=t", *needed, given])
    value = to_absolute_dict(config)
    for name in given.partition("=")[0].split("."):
        value = value[name]
    assert value == json.loads(json.dumps(expected).replace("{here}", str(tmp_path)))


def test_there_are_configs_to_check():
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_file_loads_and_says_its_command(path):
    header = path.read_text().split("\n\n")[0]
    assert "vidvq " in header, "the header gives the command"
    if "clips_per_shard" in yaml.safe_load(path.read_text()):
        assert load(ShardConfig, path, []) != ShardConfig()
    elif path.name.startswith("generate-"):
        from vidvq.generate.config import GenerateTrainConfig

        assert load(GenerateTrainConfig, path, []).data.tokens
    else:
        from vidvq.train.config import TrainConfig

        assert load(TrainConfig, path, []).data.clips


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12))


@pytest.mark.parametrize("text", [BOMB, "a: &a [*a]\n", "a: " + "[" * 5000, "a: " + "9" * 5000], ids=range(4))
def test_yaml_that_unfolds_without_end_is_refused_in_one_line(tmp_path, text):
    with pytest.raises(ConfigError, match="is not YAML") as error:
        read_yaml(write(tmp_path / "c.yaml", text))
    assert "\n" not in str(error.value)


def test_merge_keys_do_not_unfold_without_end(tmp_path):
    path = write(tmp_path / "c.yaml", MERGED)
    try:
        # PyYAML 6.0.4 and newer merge a key once.
        assert read_yaml(path) == {f"a{n}": {"x": 1} for n in range(12)}
    except ConfigError as error:
        assert "is not YAML: it unfolds to over" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("clip.size=[64]", r"clip.size=\[64\]: must be a list of 2 integers, 1 or more, or null"),
        ("clip.size=[64, a]", "clip.size.1='a': must be an integer, 1 or more"),
        ("clip.fps=-1", "clip.fps=-1: must be a number, from 1e-05 to 1000, or null"),
        ("filters.duplicates=perhaps", "filters.duplicates='perhaps': must be true or false"),
        ("cut.kind=scenes", "cut.kind='scenes': must be windows or shots"),
        ("clip.num_frames=1", "must be at most num_frames=1; set clip.min_frames=1 or less"),
    ],
)
def test_a_wrong_value_is_told_the_type_in_words(override, said):
    with pytest.raises(ConfigError, match=f"{said}$"):
        load(ShardConfig, None, [override])


def test_a_number_instead_of_a_ramp_is_told_both():
    with pytest.raises(ConfigError, match="loss.l1={.*}: must be a number, 0 or more, or a mapping of begin, end, "):
        load(TrainConfig, find_config("demo"), ["loss.l1={begin: x}"])


def test_the_nearest_names_of_configs_are_suggested():
    with pytest.raises(ConfigError, match="a packaged name: generate-base, generate-demo, generate-small$"):
        find_config("generate-bse")
