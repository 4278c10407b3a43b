"""Settings of a config dataclass: path, type, default and meaning, from its fields and docstring.

The meaning of a field is its entry in the ``Attributes:`` section of the class. `vidvq config`, the reference pages and
the suggestions for mistyped keys share this module.
"""

import inspect
import os
import re
import textwrap
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import JsonValue

_ENTRY = re.compile(r"    (\w+(?:, \w+)*): (.*)")
_NAMES = {int: "integer", float: "number", str: "text", bool: "true or false", JsonValue: "JSON value"}
_LIMITS = ("ge", "gt", "le", "lt", "min_length")


@dataclass(frozen=True)
class Located:
    """Marks the type of a text that may be a path, which depends on the working directory.

    Attributes:
        absolute: returns the same text for another working directory.
    """

    absolute: Callable[[str], str]


def absolute_path(name: str) -> str:
    """Make a path absolute; URLs are returned unchanged."""
    return name if "://" in name else os.path.abspath(name)  # noqa: PTH100


PathName = Annotated[str, Located(absolute_path)]


@dataclass(frozen=True)
class Setting:
    """One setting, or a group of them.

    Attributes:
        path: dotted path, as in an override (``clip.num_frames``).
        type: type and range in words; empty for a group.
        meaning: entry of the docstring; empty if there is none.
        value: value, or the default; None for a group and for a required setting without a value.
        is_required: whether the setting has no default.
        members: settings of a group; None for a single setting.
        kinds: settings of each kind, for a group with several kinds.
        absolute: makes a path in the value absolute; None if there is none.
    """

    path: str
    type: str
    meaning: str
    value: Any = None
    is_required: bool = False
    members: "tuple[Setting, ...] | None" = None
    kinds: "tuple[tuple[str, tuple[Setting, ...]], ...]" = ()
    absolute: Callable[[str], str] | None = None

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    def walk(self) -> "Iterator[Setting]":
        """Yield this setting and its descendants."""
        yield self
        for member in self.members or ():
            yield from member.walk()


def settings_of(
    kind: type, values: Any = None, path: str = "", missing: frozenset[str] = frozenset()
) -> tuple[Setting, ...]:
    """List the settings of a config dataclass, in declaration order.

    Args:
        values: an instance to take values from, instead of the defaults.
        path: prefix of the paths.
        missing: paths of required settings whose values in ``values`` are placeholders.
    """
    hints = get_type_hints(kind, include_extras=True)
    meanings = meanings_of(kind)
    return tuple(
        _setting(field, hints[field.name], meanings.get(field.name, ""), values, f"{path}{field.name}", missing)
        for field in fields(kind)
    )


def complete(kind: type, data: dict[str, Any], default: Any = None) -> dict[str, Any]:
    """Add the defaults to the plain dict of a config, also in groups of which only some settings are given.

    The default of a group may differ from the defaults of its class, as in ``Runtime(workers=0)``. A class that is
    built from the given settings alone knows only its own.

    Args:
        data: the given settings; unknown ones are kept.
        default: an instance with the defaults; None for those of ``kind``.
    """
    hints = get_type_hints(kind, include_extras=True)
    defaults = {f.name: _default(f) if default is None else getattr(default, f.name) for f in fields(kind)}
    completed = {name: value for name, value in defaults.items() if value is not MISSING} | data
    for name in defaults.keys() & data.keys():
        group = _group_of(hints[name], data[name], defaults[name])
        if group:
            own = defaults[name] if type(defaults[name]) is group else None
            completed[name] = complete(group, data[name], own)
    return completed


def _group_of(hint: Any, data: Any, default: Any) -> type | None:
    """The dataclass of a mapping: the only one of its field, or the one of its ``kind``, else of the default's."""
    if not isinstance(data, dict):
        return None
    arms = [arm for arm in _arms(hint) if is_dataclass(arm) and isinstance(arm, type)]
    kind = data.get("kind", getattr(default, "kind", None))
    return next((arm for arm in arms if len(arms) == 1 or getattr(arm, "kind", None) == kind), None)


def find_type(kind: type, location: Sequence[Any]) -> tuple[int, str] | None:
    """Find the setting, not a group of them, on the way to an error of pydantic.

    Args:
        kind: the config dataclass.
        location: the error's location: names, items of lists, and the members of unions that pydantic tried.

    Returns:
        The number of parts of the location up to the setting, and its type in words; None if there is no such setting.
    """
    hint: Any = kind
    for count, part in enumerate([*location, ""]):
        arms = [arm for arm in _arms(hint) if arm is not type(None)]
        groups: dict[Any, Any] = {getattr(arm, "kind", None): arm for arm in arms if is_dataclass(arm)}
        only = arms[0] if len(arms) == 1 else None
        origin, inner = get_origin(only), get_args(only)
        if origin is tuple and isinstance(part, int):
            hint = inner[0 if inner[-1] is Ellipsis else part]
            continue
        if origin is dict and part:
            hint = inner[1]
            continue
        if len(arms) > len(groups):
            return None if hint is None else (count, _in_a_sentence(describe_type(hint)))
        if len(groups) > 1:
            hint = groups.get(part)
        else:
            hint = get_type_hints(*groups.values(), include_extras=True).get(part)
    return None


def _in_a_sentence(described: str) -> str:
    with_articles = re.sub(r"(^|; or )(number|list|mapping|JSON)\b", r"\1a \2", described)
    return re.sub(r"(^|; or )integer\b", r"\1an integer", with_articles).replace("; or ", ", or ")


def meanings_of(kind: type) -> dict[str, str]:
    """Entries of the ``Attributes:`` sections of a class and its bases, by field."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, _, section = inspect.cleandoc(base.__doc__ or "").partition("\nAttributes:\n")
        names: list[str] = []
        for line in section.splitlines():
            if line and not line.startswith("    "):
                break
            if match := _ENTRY.fullmatch(line):
                names = match[1].split(", ")
                found |= dict.fromkeys(names, match[2])
            elif line.strip():
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def as_yaml(settings: tuple[Setting, ...]) -> str:
    """Format settings as a YAML config file, with meaning and type in comments.

    Required settings without a value are commented out.
    """
    return "\n".join(_yaml_lines(settings, "")).lstrip("\n") + "\n"


def _setting(field: "Field[Any]", hint: Any, meaning: str, values: Any, path: str, missing: frozenset[str]) -> Setting:
    value = getattr(values, field.name) if values is not None else _default(field)
    kinds: list[Any] = [arm for arm in _arms(hint) if is_dataclass(arm)]
    group = type(value) if is_dataclass(value) else kinds[0] if value is MISSING and kinds else None
    if group is None or group not in kinds or not isinstance(group, type):
        given = None if value is MISSING or path in missing else value
        required = _default(field) is MISSING
        return Setting(path, describe_type(hint), meaning, given, required, absolute=_find_absolute(hint))
    members = settings_of(group, None if value is MISSING else value, f"{path}.", missing)
    several = kinds if len(kinds) > 1 else []
    others = tuple((getattr(arm, "kind", arm.__name__), settings_of(arm, None, f"{path}.")) for arm in several)
    return Setting(path, "", meaning, members=members, kinds=others)


def _find_absolute(hint: Any) -> Callable[[str], str] | None:
    if isinstance(hint, Located):
        return hint.absolute
    return next(filter(None, map(_find_absolute, get_args(hint))), None)


def _default(field: "Field[Any]") -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _arms(hint: Any) -> list[Any]:
    """Members of a union, or the type itself."""
    if get_origin(hint) is Annotated:
        return _arms(get_args(hint)[0])
    if get_origin(hint) in {Union, types.UnionType}:
        return [arm for part in get_args(hint) for arm in _arms(part)]
    return [hint]


def describe_type(hint: Any) -> str:
    """Describe a type and its range, such as ``integer, 1 or more; or null``."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limits = _limits(arguments[1:])
        return f"{describe_type(arguments[0])}, {limits}" if limits else describe_type(arguments[0])
    if origin in {Union, types.UnionType}:
        return "; or ".join(dict.fromkeys(describe_type(part) for part in arguments))
    if origin is Literal:
        *most, last = map(str, arguments)
        return f"{', '.join(most)} or {last}" if most else last
    if origin is tuple:
        count = "list of" if arguments[-1] is Ellipsis else f"list of {len(arguments)}"
        return f"{count} " + re.sub(r"^(integer|number|text|mapping)\b", r"\1s", describe_type(arguments[0]))
    if origin is dict:
        return f"mapping of {describe_type(arguments[0])} to {describe_type(arguments[1])}"
    if is_dataclass(hint):
        return "mapping of " + ", ".join(field.name for field in fields(hint))
    return "null" if hint is type(None) else _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def _limits(metadata: tuple[Any, ...]) -> str:
    """Describe the range set by pydantic's ``Field``."""
    found: dict[str, Any] = {}
    for each in metadata:
        for limit in getattr(each, "metadata", ()):
            found |= {name: getattr(limit, name) for name in _LIMITS if hasattr(limit, name)}
    if "ge" in found and "le" in found:
        return f"from {found['ge']:.9g} to {found['le']:.9g}"
    if "min_length" in found:
        return "not empty" if found["min_length"] == 1 else f"of {found['min_length']} or more"
    words = {"ge": "{:.9g} or more", "gt": "above {:.9g}", "le": "at most {:.9g}", "lt": "below {:.9g}"}
    return ", ".join(words[name].format(value) for name, value in found.items())


def _yaml_lines(settings: tuple[Setting, ...], indent: str) -> Iterator[str]:
    for setting in settings:
        notes = plain_text(setting.meaning)
        if setting.kinds:
            notes += f" Kinds, each with its own settings: {', '.join(kind for kind, _ in setting.kinds)}."
        if setting.type:
            notes += f" [{setting.type}]"
        if setting.members is not None and not indent:
            yield ""
        yield from textwrap.wrap(notes.strip(), 100, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        if setting.members is not None:
            yield f"{indent}{setting.name}:"
            yield from _yaml_lines(setting.members, f"{indent}  ")
        elif setting.is_required and setting.value is None:
            yield f"{indent}# {setting.name}: REQUIRED"
        else:
            yield f"{indent}{setting.name}: {flow_yaml(setting.value)}"


def plain_text(meaning: str) -> str:
    """Convert a docstring entry for a terminal: no markup, capitalized, ``null`` for None."""
    text = re.sub(r"\bNone\b", "null", re.sub(r":\w+:`([^`]+)`", r"\1", meaning)).replace("``", "")
    is_code = meaning.startswith("``")
    return text if is_code else text[:1].upper() + text[1:]


def flow_yaml(value: Any) -> str:
    """Format a value as YAML on one line."""
    text = yaml.safe_dump(to_plain(value), default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


def to_plain(value: Any) -> Any:
    """Convert a value of a config to JSON types."""
    if is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
