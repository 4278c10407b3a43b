"""Checks of arguments of the Python API, whose types nothing else enforces."""

from collections.abc import Iterable
from operator import index
from pathlib import Path
from typing import Any, cast

from vidvq.errors import UsageError


def as_integer(name: str, value: Any, least: int | None = None) -> int:
    """Return an integer; scalars of NumPy and torch count as integers.

    Args:
        name: name of the argument in the message.
        value: what was given.
        least: smallest valid value; None for no limit.

    Raises:
        UsageError: it is not an integer, or below ``least``.
    """
    try:
        if isinstance(value, bool):
            raise TypeError("bool")
        found = index(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name}={value!r} must be an integer") from error
    if least is not None and found < least:
        raise UsageError(f"{name}={found} must be {least} or more")
    return found


def check_type(name: str, value: Any, kind: type) -> None:
    """Refuse an argument of another class.

    Args:
        name: name of the argument in the message.
        value: what was given.
        kind: the class.

    Raises:
        UsageError: it is not an instance.
    """
    if not isinstance(value, kind):
        raise UsageError(f"{name} is {_with_article(type(value))}; it must be {_with_article(kind)}")


def _with_article(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'AEIOUaeio' else 'a'} {kind.__name__}"


def as_list(name: str, values: Any, kind: str) -> list[str]:
    """Return a list of texts.

    Args:
        name: name of the argument in the message.
        values: texts and paths.
        kind: what the texts are, for the message.

    Raises:
        UsageError: it is a single one, or something else.
    """
    given = list(cast("Iterable[Any]", values)) if isinstance(values, Iterable) else [None]
    if isinstance(values, str | bytes | Path) or not all(isinstance(value, str | Path) for value in given):
        raise UsageError(f"{name}={values!r} must be a list of {kind}, also for a single one")
    return [str(value) for value in given]
