"""Write the generated parts of the pages: the options of each command, and its settings.

    python docs/reference.py           rewrite docs/*.md in place
    python docs/reference.py --check   exit with 1 if a page is out of date

A page holds a generated part between ``<!-- generated: NAME -->`` and ``<!-- end -->``. NAME is ``options COMMAND`` or
``settings STAGE``.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from vidvq.cli.config import STAGES
from vidvq.cli.main import cli
from vidvq.settings import Setting, flow_yaml, plain_text, settings_of

DOCS = Path(__file__).parent
# The page that describes the groups which commands share.
_HOME = "shard"
_PART = re.compile(r"(<!-- generated: (options|settings) ([\w -]+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def main(arguments: list[str]) -> int:
    """Rewrite or check all pages; returns the exit code."""
    outdated = [path for path in sorted(DOCS.glob("*.md")) if render(path.read_text()) != path.read_text()]
    if "--check" in arguments:
        for path in outdated:
            click.echo(f"docs/{path.name} is out of date; run python docs/reference.py", err=True)
        return 1 if outdated else 0
    for path in outdated:
        path.write_text(render(path.read_text()))
        click.echo(f"docs/{path.name} written")
    return 0


def render(page: str) -> str:
    """A page with its generated parts made anew."""

    def part(match: re.Match[str]) -> str:
        lines = options(match[3]) if match[2] == "options" else settings(match[3])
        return f"{match[1]}\n" + "\n".join(lines) + f"\n\n{match[4]}"

    return _PART.sub(part, page)


def options(name: str) -> Iterator[str]:
    """The usage line of a command and a table of its options."""
    command: Any = cli
    for word in name.split():
        command = command.commands[word]
    context = click.Context(command, info_name=f"vidvq {name}")
    yield f"```text\n{' '.join(command.get_usage(context).split()).removeprefix('Usage: ')}\n```"
    given = (each for each in command.get_params(context) if isinstance(each, click.Option))
    records = [record for option in given if (record := option.get_help_record(context))]
    rows = [f"| `{_cell(name)}` | {_cell(help)} |" for name, help in records if not name.endswith("--help")]
    if rows:
        yield "\n".join(["", "| option | meaning |\n|---|---|", *rows])


def settings(stage: str) -> Iterator[str]:
    """The settings of a stage: one table of its single settings, then a section for each group."""
    found = settings_of(STAGES[stage].config_type())
    at_home = {} if stage == _HOME else {each.path: each for each in settings_of(STAGES[_HOME].config_type())}
    singles = tuple(each for each in found if each.members is None)
    if singles:
        yield from _table(singles)
    shown: list[Setting] = []
    for group in found:
        if group.members is None:
            continue
        home = at_home.get(group.path)
        if home and _names(home) == _names(group):
            yield _heading(group)
            yield f"The settings are those of [`vidvq {_HOME}`]({_HOME}.md#{group.path}){_differences(home, group)}."
        else:
            yield from _group(group, shown)


def _group(group: Setting, shown: list[Setting]) -> Iterator[str]:
    """The section of a group; one with the settings of an earlier section refers to it."""
    yield _heading(group)
    for earlier in shown:
        if _names(earlier) == _names(group):
            yield f"The settings are those of `{earlier.path}`{_differences(earlier, group)}."
            return
    shown.append(group)
    if group.kinds:
        chosen = next(each.value for each in group.members or () if each.name == "kind")
        for kind, members in group.kinds:
            yield f"\nKind `{kind}`{' (default)' if kind == chosen else ''}:\n"
            yield from _table(group.members or () if kind == chosen else members)
        return
    singles = tuple(each for each in group.members or () if each.members is None)
    if singles:
        yield from _table(singles)
    for member in group.members or ():
        if member.members is not None:
            yield from _group(member, shown)


def _heading(group: Setting) -> str:
    return f"\n### `{group.path}`\n\n{_markdown(group.meaning)}\n"


def _names(group: Setting) -> list[tuple[str, str, str, str]]:
    return [row for row, _ in _rows(group)]


def _differences(before: Setting, now: Setting) -> str:
    """The defaults of a group that differ from those of another with the same settings."""
    rows = zip(_rows(now), _rows(before), strict=True)
    differing = [f"`{row[1]}={_cell(value)}`" for (row, value), (_, other) in rows if value != other]
    return f", with {', '.join(differing)} by default" if differing else ""


def _rows(group: Setting) -> list[tuple[tuple[str, str, str, str], str]]:
    """Each setting of a group, of all its kinds: kind, name in the group, type and meaning; and its default."""
    members = group.members or ()
    chosen = next((each.value for each in members if group.kinds and each.name == "kind"), "")
    kinds = [(kind, members if kind == chosen else others) for kind, others in group.kinds] or [("", members)]
    leaves = [(kind, each) for kind, some in kinds for one in some for each in one.walk() if each.members is None]
    return [
        ((kind, each.path.removeprefix(f"{group.path}."), each.type, each.meaning), flow_yaml(each.value))
        for kind, each in leaves
    ]


def _table(settings: tuple[Setting, ...]) -> Iterator[str]:
    # On a narrow screen the style sheet turns the rows of this class into cards.
    yield '<div class="settings" markdown>\n\n| setting | default | type | meaning |\n|---|---|---|---|'
    for each in settings:
        for one in each.walk():
            default = "required" if one.is_required else f"`{_cell(flow_yaml(one.value))}`"
            if one.members is None:
                yield f"| `{one.path}` | {default} | {_cell(one.type)} | {_cell(_markdown(one.meaning))} |"
    yield "\n</div>"


def _markdown(meaning: str) -> str:
    """A docstring's sentence as markdown: plain text outside of code, code in single backticks."""
    parts = re.sub(r":\w+:`([^`]+)`", r"``\1``", meaning).split("``")
    text = "".join(f"`{part}`" if index % 2 else re.sub(r"\bNone\b", "null", part) for index, part in enumerate(parts))
    return text[:1].upper() + text[1:] if not plain_text(meaning)[:1].islower() else text


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
