"""Every command, setting and option in the pages and the help texts is one that the program accepts."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from vidvq.cli.config import STAGES, resolve
from vidvq.cli.main import cli
from vidvq.cli.options import split
from vidvq.config import apply_overrides, find_config, read_yaml
from vidvq.settings import settings_of

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Names that stand for a value.
PLACEHOLDERS = {"SEED": "0", "ORDER": "halton", "$part": "0"}
# The command of a package that is an example.
EXAMPLE = "brightness"
# Options of pip, Megatron-LM, click, and scripts in benchmarks/.
FOREIGN = {"--constraint", "--data-path", "--help", "--rounds", "--arm", "--adversarial"}
FILES = (".json", ".yaml", ".safetensors")


def commands_of(command: click.Command) -> Iterator[click.Command]:
    yield command
    for each in command.commands.values() if isinstance(command, click.Group) else ():
        yield from commands_of(each)


def lines_of_pages() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for block in re.findall(r"^```(?:sh|bash)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
            yield from ((page.name, line) for line in block.replace("\\\n", " ").splitlines())
    for command in commands_of(cli):
        for line in (command.help or "").splitlines():
            yield from ((f"help of {command.name}", part) for part in line.split("; "))


def documented() -> list[Any]:
    """Each command line that starts vidvq, without what comes before `vidvq`."""
    found: dict[tuple[str, str], None] = {}
    for where, line in lines_of_pages():
        match = re.match(r"\s*(?:torchrun .*-m )?vidvq (.*)", line)
        if match and "--version" not in line and "--help" not in line:
            found[where, match[1].strip()] = None
    return [pytest.param(text, id=f"{where}: {text}") for where, text in found]


def settings_paths() -> set[str]:
    """Paths of all settings of all commands, of every kind of a union, and of their groups."""
    paths: set[str] = set()

    def add(setting: Any) -> None:
        paths.add(setting.path)
        for member in setting.members or ():
            add(member)
        for _, members in setting.kinds or ():
            for member in members:
                add(member)

    for stage in STAGES.values():
        for setting in settings_of(stage.config_type()):
            add(setting)
    return paths


@pytest.mark.parametrize("text", documented())
def test_a_documented_command_is_accepted(text, tmp_path, monkeypatch):
    # Files that are inputs of the commands do not exist.
    monkeypatch.chdir(tmp_path)
    for name, value in PLACEHOLDERS.items():
        text = text.replace(name, value)
    words = shlex.split(text, comments=True)
    command: Any = cli
    names: list[str] = []
    while isinstance(command, click.Group):
        if words[0] == EXAMPLE:
            return
        names.append(words.pop(0))
        assert names[-1] in command.commands
        command = command.commands[names[-1]]
    parsed = command.make_context(names[-1], words).params
    words = [word for value in parsed.values() for word in (value if isinstance(value, tuple) else ()) if word]
    _, overrides = split(tuple(each for each in words if isinstance(each, str)))
    overrides = [re.sub("^class=", "label=", each) for each in overrides]
    name = "-".join(each for each in names if each != "submit")
    if name == "config" and words and words[0] in STAGES:
        name = words.pop(0)
        parsed["config_name"] = next((each for each in words if each not in overrides), None)
    if name not in STAGES:
        assert not overrides
        return
    config = parsed.get("config_name")
    packaged = config and (ROOT / "configs" / f"{config}.yaml").is_file()
    data = read_yaml(find_config(config)) if packaged else {}
    resolve(STAGES[name].config_type(), apply_overrides(data, overrides))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_settings_and_options_that_a_page_names_exist(page):
    paths = settings_paths()
    groups = {path.partition(".")[0] for path in paths if "." in path}
    code = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL))
    named = [match[1] for text in code if (match := re.match(r"([a-z_]+(?:\.[a-z_0-9]+)+)(?:=|$)", text))]
    settings = {name for name in named if name.partition(".")[0] in groups and not name.endswith(FILES)}
    assert settings - paths == set()
    options = {name for command in commands_of(cli) for option in command.params for name in option.opts}
    given = {name for text in code if text.startswith(("-", "vidvq")) for name in re.findall(r"--[a-z][a-z-]+", text)}
    assert given - options - FOREIGN == set()
