"""Configuration: YAML and `key.sub=value` overrides, merged as plain dicts and validated once.

A config is a frozen dataclass beside the code that it configures; the members of a union have a ``kind``. There is no
registry, no interpolation and no include.
"""

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import is_dataclass
from difflib import get_close_matches
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from typing import Any, TypeGuard, TypeVar, cast

import yaml
from pydantic import TypeAdapter, ValidationError

from vidvq.arguments import as_list, check_type
from vidvq.errors import UsageError
from vidvq.settings import Setting, complete, find_type, settings_of, to_plain

T = TypeVar("T")
_MAX_YAML_VALUES = 100_000
_MAX_SHOWN = 60
_TEXTS = frozenset({"where"})


class ConfigError(UsageError):
    """Invalid configuration; the message lists every wrong field with its value."""


def packaged(folder: str, name: str) -> Path:
    """Path of a file that ships with vidvq, in a wheel or in a checkout.

    Args:
        folder: ``configs`` or ``launch``.

    Raises:
        ConfigError: no such file ships with vidvq.
    """
    for root in _folders(folder):
        if (root / name).is_file():
            return root / name
    raise ConfigError(f"{folder}/{name} does not ship with vidvq; give the path of a file")


def _folders(name: str) -> tuple[Path, Path]:
    package = Path(__file__).parent
    return package / name, package.parent / name


def find_config(name: str) -> Path:
    """Resolve a YAML file, or the bare name of a packaged one (``demo``).

    Raises:
        ConfigError: there is no such file.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = {file.stem: file for folder in _folders("configs") for file in folder.glob("*.yaml")}
    if path.suffix in {"", ".yaml"} and path.parent == Path() and path.stem in known:
        return known[path.stem]
    near = get_close_matches(path.stem, known, 3) or sorted(known)
    raise ConfigError(f"config {name} is not a file; give a YAML file or a packaged name: {', '.join(near)}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        data = _load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"config {path} is not YAML: {' '.join(str(error).split())}") from error
    if data is None:
        return {}
    if not is_mapping(data):
        raise ConfigError(f"config {path} has a {type(data).__name__} at the top level; it must be a mapping of fields")
    return data


class _Loader(yaml.SafeLoader):
    """Refuses repeated keys, and bounds what merge keys (``<<``) unfold to, which happens before a value is built."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        found: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                name = (key.tag, key.value)
                if name in found:
                    raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is repeated", problem_mark=key.start_mark)
                found.add(name)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MAX_YAML_VALUES:
            raise yaml.YAMLError(f"it unfolds to over {_MAX_YAML_VALUES} values")


def _load_yaml(text: str) -> Any:
    """Load YAML, with a bound on what its aliases unfold to.

    Raises:
        yaml.YAMLError: it is not YAML, nested too deep, or unfolds to too many values.
    """
    try:
        data = yaml.load(text, _Loader)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # PyYAML's constructors of tagged values, such as !!bool, raise whatever their parsers do.
        raise yaml.YAMLError(f"it cannot be read ({error})") from error
    left, count = [data], 0
    while left:
        value = left.pop()
        count += 1
        if count > _MAX_YAML_VALUES:
            raise yaml.YAMLError(f"it unfolds to over {_MAX_YAML_VALUES} values")
        if isinstance(value, dict | list):
            inner = cast("dict[Any, Any]", value).values() if isinstance(value, dict) else cast("list[Any]", value)
            left.extend(inner)
    return data


def apply_overrides(data: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Apply overrides ``key.sub=value`` to a copy of a nested dict; values are parsed as YAML.

    Raises:
        ConfigError: an override has no ``=``, or goes through a field that is not a mapping.
    """
    merged = deepcopy(data)
    for override in overrides:
        path, sign, text = override.partition("=")
        if not sign or not path:
            raise ConfigError(f"{override!r} is not a setting; give key.sub=value, such as {path or 'key.sub'}=VALUE")
        *parents, last = path.split(".")
        node = merged
        for parent in parents:
            child = node.setdefault(parent, {})
            if not is_mapping(child):
                raise ConfigError(f"override {override!r} goes through {parent!r}, which is a value, not a mapping")
            node = child
        try:
            # Keep an expression as text: YAML would interpret its quotes, colons and hashes.
            node[last] = text if last in _TEXTS and text.strip() not in {"", "null"} else _load_yaml(text)
        except yaml.YAMLError as error:
            said = " ".join(str(error).split())
            raise ConfigError(f"override {override!r} is not YAML: {said}; quote a value with spaces") from error
    return merged


def validate(kind: type[T], data: dict[str, Any], source: str = "config") -> T:
    """Build the dataclass ``kind`` from a plain dict.

    Raises:
        ConfigError: fields are wrong; the message lists each with its path, value and rule.
    """
    data = complete(kind, data)
    try:
        return strict_adapter(kind).validate_python(data)
    except ValidationError as error:
        # Pydantic reports an error for each member of a union.
        problems = list(dict.fromkeys(_problem(detail, data, kind) for detail in error.errors()))
        count = f"{len(problems)} wrong fields" if len(problems) > 1 else "1 wrong field"
        raise ConfigError(f"{source} has {count}: " + "; ".join(problems)) from error


def checked(kind: type[T], config: Any) -> T:
    """Validate settings that a caller of the Python API built without :func:`load`; returns an equal dataclass.

    Raises:
        ConfigError: fields are wrong.
        UsageError: the object is of another class.
    """
    check_type("config", config, kind)
    data = to_dict(config)
    _refuse_infinite(data, "config")
    return validate(kind, data)


@cache
def strict_adapter(kind: type[T]) -> TypeAdapter[Any]:
    """The adapter of pydantic for a dataclass, which refuses unknown fields, also in the dataclasses inside."""
    # A dataclass takes settings from the type around it alone.
    return TypeAdapter(cast(Any, kind | None), config={"extra": "forbid"})


def load(kind: type[T], path: str | Path | None, overrides: list[str], base: dict[str, Any] | None = None) -> T:
    """Read a config file, apply overrides and validate the result.

    Args:
        path: YAML file; None for the defaults.
        overrides: ``key.sub=value`` settings.
        base: settings below those of the file, instead of the defaults.

    Raises:
        ConfigError: the file, an override or a field is wrong.
    """
    if not is_dataclass(kind):
        raise ConfigError(f"kind={kind!r} must be the class of the settings, such as vidvq.shard.ShardConfig")
    overrides = as_list("overrides", overrides, "key.sub=value")
    file = read_yaml(Path(path)) if path else {}
    if file and not file.keys() & {setting.name for setting in settings_of(kind)}:
        names = ", ".join(map(str, file))
        raise ConfigError(
            f"{path} has no setting of this command, but {names}; `vidvq config {path}` shows whose they are"
        )
    data = apply_overrides(_merge(base or {}, file), overrides)
    source = (f"{path} with the given settings" if overrides else str(path)) if path else "config"
    _refuse_infinite(data, source)
    config = validate(kind, data, source)
    # A number may have been given as text, such as 1e400, which is no number in YAML.
    _refuse_infinite(to_dict(config), source)
    return config


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested settings with others over them; a group of another kind is replaced whole."""
    if "kind" in over and over["kind"] != base.get("kind"):
        return over
    both = {name for name in base.keys() & over.keys() if is_mapping(base[name]) and is_mapping(over[name])}
    return base | over | {name: _merge(base[name], over[name]) for name in both}


def _refuse_infinite(value: Any, source: str, name: str = "") -> None:
    """Refuse infinity and NaN: settings are saved with every output as JSON, which has neither."""
    if isinstance(value, dict):
        for key, item in cast(dict[Any, Any], value).items():
            _refuse_infinite(item, source, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for item in cast(list[Any], value):
            _refuse_infinite(item, source, name)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{source} has 1 wrong field: {name}={value} must be a finite number")


def to_dict(config: Any) -> dict[str, Any]:
    """The resolved config as JSON types, as saved with every output."""
    return to_plain(config)


def to_absolute_dict(config: Any) -> dict[str, Any]:
    """The resolved config as :func:`to_dict`, with absolute paths, for a process in another folder."""
    data = to_dict(config)
    kind = cast("type[Any]", type(config))
    for setting in (each for group in settings_of(kind, config) for each in group.walk()):
        if setting.absolute:
            *groups, name = setting.path.split(".")
            group = reduce(getitem, groups, data)
            group[name] = _map_texts(setting.absolute, group[name])
    return data


def _map_texts(function: Callable[[str], str], value: Any) -> Any:
    """Apply a function to a text, to each text of a list, or to each key of a mapping."""
    if is_mapping(value):
        return {function(key): item for key, item in value.items()}
    if isinstance(value, list):
        return [function(item) for item in cast("list[str]", value)]
    return function(value) if isinstance(value, str) else value


def dump(config: Any) -> str:
    """The resolved config as YAML text, fields in their declared order."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def is_mapping(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a value read from JSON or YAML is a mapping."""
    return isinstance(value, dict)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings by dotted path; an empty mapping is one of them."""
    if is_mapping(value) and value:
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}" if path else name)
    else:
        yield path, value


def _problem(detail: Any, data: dict[str, Any], kind: type) -> str:
    # Paths show the user's keys, without the union member that pydantic inserts.
    node: Any = data
    path: list[str] = []
    location = detail["loc"]
    if detail["type"] == "missing" and isinstance(location[-1], int):
        # A list that is too short is wrong as a whole.
        location = location[:-1]
    found = find_type(kind, location)
    location = location[: found[0]] if found else location
    for part in location:
        if is_mapping(node) and part not in node and node.get("kind") == part:
            continue
        path.append(str(part))
        node = node.get(part) if is_mapping(node) else None
    # Items of lists are not walked.
    value = detail["input"] if found and isinstance(location[-1], int) else node
    name = ".".join(path)
    if detail["type"] == "unexpected_keyword_argument":
        known, given = [*_paths(settings_of(kind), data)], detail["input"]
        near = _nearest(name, known)
        if not near:
            # The first setting of an unknown group may exist in another group.
            name, given = next(leaves(given, name))
            near = _nearest(name, known)
        return f"{name}={_short(given)} is not a known field" + (f"; did you mean {near}?" if near else "")
    if detail["type"] in {"missing", "missing_argument"} and len(location) == len(detail["loc"]):
        return f"{name} is missing; set it"
    if detail["type"] == "value_error":
        return (f"{name}: " if name else "") + str(detail["ctx"]["error"])
    if found:
        return f"{name}={_short(value)}: must be {found[1]}"
    if detail["type"] == "dataclass_type":
        return f"{name}={_short(node)}: must be a mapping of settings"
    # YAML has lists, not tuples.
    message = (detail["msg"][0].lower() + detail["msg"][1:]).replace("tuple", "list")
    return f"{name}={_short(detail['input'])}: {message}" if name else message


def _short(value: Any) -> str:
    text = repr(value)
    if len(text) <= _MAX_SHOWN:
        return text
    # The wrong value of a mapping may follow a long path.
    end = _MAX_SHOWN // 4 if is_mapping(value) else 0
    return f"{text[: _MAX_SHOWN - end - 3]}...{text[len(text) - end :]}"


def _paths(settings: tuple[Setting, ...], data: Any) -> Iterator[str]:
    """Paths of all settings; for a group with several kinds, those of the kind in ``data``."""
    for setting in settings:
        yield setting.path
        node = _child(data, setting.name)
        chosen = [members for kind, members in setting.kinds if kind == _child(node, "kind")]
        yield from _paths(chosen[0] if chosen else setting.members or (), node)


def _child(data: Any, name: str) -> Any:
    return cast("dict[str, Any]", data).get(name) if isinstance(data, dict) else None


def _nearest(path: str, known: list[str]) -> str | None:
    """The most likely intended path: a similar name in the same group, or the same name in another group."""
    group, dot, name = path.rpartition(".")
    siblings = [each.rpartition(".")[2] for each in known if each.rpartition(".")[0] == group]
    if near := get_close_matches(name, siblings, 1):
        return f"{group}{dot}{near[0]}"
    namesakes = [each for each in known if each.rpartition(".")[2] == name]
    if namesakes and not group:
        # Of equally long ones the first, in the order of the settings.
        return min(namesakes, key=len)
    near = get_close_matches(path, namesakes, 1, 0) or get_close_matches(path, known, 1, 0.75)
    return near[0] if near else None
