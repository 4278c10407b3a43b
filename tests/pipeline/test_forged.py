"""Forged directories: none verifies, none makes a command write or delete elsewhere, none ends in a traceback."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from vidvq.errors import UsageError
from vidvq.export import verify_export
from vidvq.formats.checkpoint import verify_checkpoint
from vidvq.formats.verify import verify_folder
from vidvq.inspect import describe
from vidvq.storage import add_digest

WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    7.5,
    1 << 70,
    "x",
    "../x",
    "/x",
    "a\0b",
    "x" * 5000,
    [],
    {},
    [[[[]]]],
    {"../x": 1},
)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all values of a JSON file; of a list its first item."""
    if path:
        yield path
    for key, inner in (
        value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    ):
        yield from places(inner, (*path, key))


def replaced(value: Any, path: tuple, new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


def write_forged(file: Path, content: dict) -> None:
    """With every digest that a forger can make fit."""
    content = {name: value for name, value in content.items() if name != "checks"}
    if "digest" in content:
        with suppress(UnicodeEncodeError):
            content = add_digest({name: value for name, value in content.items() if name != "digest"})
    file.write_text(json.dumps(content))


def outcome(check: Callable[[], list[str]]) -> list[str]:
    try:
        return check()
    except UsageError as error:
        return [str(error)]


@pytest.fixture
def directory(request, copy_of, tiny_clips, tiny_tokens, checkpoint_dir, vidvq, tmp_path) -> tuple[Path, Callable]:
    if request.param == "export":
        assert vidvq("export", tiny_tokens, "--to", "mds", "--out", tmp_path / "copy").code == 0
        return tmp_path / "copy", lambda folder: verify_export(folder)[0]
    if request.param == "checkpoint":
        return copy_of(checkpoint_dir), lambda folder: verify_checkpoint(folder)[0]
    return copy_of(
        tiny_clips if request.param == "clips" else tiny_tokens
    ), lambda folder: verify_folder(folder).problems


FILES = {
    "clips": ("plan.json", "commits/clips-000000.tar.json", "summary.json"),
    "tokens": ("plan.json", "commits/tokens-000000.tar.json", "tokenizer.json"),
    "export": ("export.json", "commits/tokens-000000.json", "index.json"),
    "checkpoint": ("config.json", "fingerprint"),
}


@pytest.mark.parametrize(
    ("directory", "name"), [(kind, name) for kind, names in FILES.items() for name in names], indirect=["directory"]
)
def test_a_wrong_value_anywhere_is_refused_in_one_line(directory, name):
    folder, verify = directory
    file = folder / name
    whole = json.loads(file.read_text())
    for path in places(whole):
        # Nothing else in an export tells its tokenizer: a forger can name any, chance cannot (test_flips).
        if path[0] in {"digest", "checks"} or (name, path[0]) == ("export.json", "token_fingerprint"):
            continue
        for value in (*WRONG, nested(100)):
            forged = replaced(whole, path, value)
            if forged == whole:
                continue
            write_forged(file, forged)
            found = outcome(lambda: verify(folder))
            assert found, f"{path} = {str(value)[:40]!r} is not seen"
            assert all(len(line) < 2000 and "\n" not in line for line in found), found
            # It may read what is not wrong for it, and says in one line what is.
            outcome(lambda: list(describe(folder)))


def forge_record(folder: Path, change: Callable[[dict], object], shard: str = "tokens-000000.tar") -> None:
    file = folder / "commits" / f"{shard}.json"
    content = json.loads(file.read_text())
    change(content)
    write_forged(file, content)


def outside(tmp_path: Path, inside: Path) -> dict[str, str]:
    """All files around a directory, with their hashes."""
    files = (path for path in sorted(tmp_path.rglob("*")) if path.is_file() and inside not in path.parents)
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "..", ".", "a/b", "a\\b", "a\nb", "\ud800", "-rf"])
def test_names_in_a_record_write_nowhere(tmp_path, copy_of, tiny_tokens, checkpoint_dir, vidvq, name):
    tokens = copy_of(tiny_tokens)
    forge_record(tokens, lambda record: [member.__setitem__(0, f"{name}.json") for member in record["members"]])
    before = outside(tmp_path, tokens)
    for command in (
        ("decode", tokens, "--checkpoint", checkpoint_dir, "--out", tmp_path / "out"),
        ("export", tokens, "--to", "bin", "--out", tmp_path / "export"),
        ("inspect", tokens),
    ):
        assert vidvq(*command).code == 2
    assert vidvq("verify", tokens).code == 1
    after = outside(tmp_path, tokens)
    assert {path: digest for path, digest in after.items() if "/out/" not in path and "/export/" not in path} == before


def test_clips_whose_names_were_swapped_are_not_decoded_as_one_another(
    tmp_path, copy_of, tokens_dir, checkpoint_dir, vidvq
):
    tokens = copy_of(tokens_dir)

    def swap(record: dict) -> None:
        first, second = record["members"][:2], record["members"][2:4]
        for one, other in zip(first, second, strict=True):
            one[0], other[0] = other[0], one[0]

    forge_record(tokens, swap)
    ran = vidvq("verify", tokens)
    assert ran.code == 1 and "its record does not match the tar" in ran.out
    ran = vidvq("decode", tokens, "--checkpoint", checkpoint_dir, "--out", tmp_path / "out")
    assert ran.code == 2 and "is not where its record says" in ran.error


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temporal_factor", 4096),
        ("spatial_factor", 1),
        (
            "codebooks",
            [{"name": "spatial", "size": 1 << 31, "offset": 0}, {"name": "temporal", "size": 1, "offset": 1 << 31}],
        ),
    ],
)
def test_a_card_that_is_not_of_its_tokenizer_is_refused(
    tmp_path, copy_of, tiny_tokens, checkpoint_dir, vidvq, name, value
):
    """The view counts codes in an array of the size of a codebook."""
    tokens = copy_of(tiny_tokens)
    card = json.loads((tokens / "tokenizer.json").read_text())
    (tokens / "tokenizer.json").write_text(json.dumps(card | {name: value}))
    for command in (("decode", tokens, "--out", tmp_path / "out"), ("view", tokens, "--out", tmp_path / "page.html")):
        ran = vidvq(*command, "--checkpoint", checkpoint_dir)
        assert ran.code == 2 and f"tokenizer.json: {name} is not that of its tokenizer" in ran.error


@pytest.mark.parametrize("prefix", ["../victim/clips", "/tmp/victim/clips"])
def test_a_prefix_deletes_nothing_elsewhere(tmp_path, copy_of, tiny_clips, vidvq, prefix):
    clips, victim = copy_of(tiny_clips), tmp_path / "victim"
    victim.mkdir()
    for name in ("clips-000000.tar", "clips-000001.tar"):
        (victim / name).write_bytes(b"precious")
    plan = json.loads((clips / "plan.json").read_text())
    uri = next(line for line in _uris(clips))
    write_forged(clips / "plan.json", plan | {"prefix": prefix})
    for command in (
        ("shard", "--remove", uri, "--out", clips, "runtime.workers=0"),
        ("verify", clips),
        ("inspect", clips),
    ):
        ran = vidvq(*command)
        assert ran.code == 2 and "prefix" in ran.error
    assert [path.read_bytes() for path in sorted(victim.iterdir())] == [b"precious"] * 2


@pytest.mark.parametrize("name", ["commits", "columns"])
def test_a_folder_that_is_a_link_is_neither_written_to_nor_emptied(tmp_path, copy_of, tiny_clips, vidvq, name):
    clips, victim = copy_of(tiny_clips), tmp_path / "victim"
    victim.mkdir()
    if (clips / name).exists():
        for path in (clips / name).iterdir():
            path.rename(victim / path.name)
        (clips / name).rmdir()
    (clips / name).symlink_to(victim)
    uri = next(line for line in _uris(tiny_clips))
    before = sorted(path.name for path in victim.iterdir())
    for command in (
        ("shard", "--remove", uri, "--out", clips, "runtime.workers=0"),
        ("map", clips, "--function", "tests.helpers.map_functions:motion", "runtime.workers=0"),
        ("verify", clips),
    ):
        ran = vidvq(*command)
        assert ran.code == 2 and f"{clips / name} is a link" in ran.error
    assert sorted(path.name for path in victim.iterdir()) == before


def _uris(clips: Path) -> list[str]:
    from vidvq.formats.plan import read_plan

    return [str(uri) for uri in read_plan(clips).table.column("uri").to_pylist()]


def test_an_edited_setting_is_named_and_resuming_says_so_once(copy_of, tiny_corpus, tiny_clips, vidvq):
    clips = copy_of(tiny_clips)
    plan = json.loads((clips / "plan.json").read_text())
    plan["made_from"]["clip"]["short_side"] = 24
    (clips / "plan.json").write_text(json.dumps(plan))
    settings = "clip.num_frames=4 clip.min_frames=4 clip.multiple=8 clips_per_shard=1 runtime.workers=0".split()
    command = ("shard", tiny_corpus, "--out", clips, "clip.short_side=24", *settings)
    for ran in (vidvq("verify", clips), vidvq(*command)):
        assert ran.code == 2 and "made_from.clip.short_side was edited" in ran.error and "set it back" in ran.error
    # A plan of an older version has no checks; its records know what it was.
    del plan["checks"]
    (clips / "plan.json").write_text(json.dumps(plan))
    ran = vidvq("verify", clips)
    (line,) = ran.out.splitlines()
    assert ran.code == 1 and line.startswith("plan.json: was edited") and "keep the shards" in line
    ran = vidvq(*command)
    assert ran.code == 2 and "restore plan.json" in ran.error and "run the same command" not in ran.error


def test_directories_of_older_versions_are_whole_and_say_what_is_not_checked(copy_of, tiny_clips, tokens_dir, vidvq):
    tokens = copy_of(tokens_dir)
    plan = json.loads((tokens / "plan.json").read_text())
    for name in ("checks", "files"):
        del plan[name]
    (tokens / "plan.json").write_text(json.dumps(plan))
    from vidvq.formats.plan import read_plan

    plan_id = read_plan(tokens).plan_id
    for file in (tokens / "commits").iterdir():
        record = json.loads(file.read_text()) | {"plan_id": plan_id}
        del record["digest"]
        file.write_text(json.dumps(record))
    summary = json.loads((tokens / "summary.json").read_text()) | {"plan_id": plan_id}
    (tokens / "summary.json").write_text(json.dumps(summary, sort_keys=True, indent=1, ensure_ascii=False) + "\n")
    ran = vidvq("verify", tokens)
    assert ran.code == 0, ran.out
    assert "tokenizer.json: the plan of an older version" in ran.err and "records of an older version" in ran.err


def test_shards_are_verified_beside_a_checkpoint(tokens_dir, checkpoint_dir, tmp_path, vidvq):
    shutil.copytree(tokens_dir, tmp_path / "mixed")
    shutil.copytree(checkpoint_dir, tmp_path / "mixed/checkpoints/step-00000001")
    shard = next((tmp_path / "mixed").glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    ran = vidvq("verify", tmp_path / "mixed")
    assert ran.code == 1 and shard.name in ran.out
