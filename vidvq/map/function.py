"""The callable of ``--function``: import, hash and construction. Runs the user's code."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np

from vidvq.errors import UsageError
from vidvq.formats.clip_shard import ClipInfo
from vidvq.storage import sha256_file
from vidvq.user_code import import_callable

# Frames `t h w c` uint8 (0 to 255) and the clip's JSON to a dict of text, numbers, bools and None.
ColumnFunction: TypeAlias = Callable[[np.ndarray, ClipInfo], Mapping[str, Any]]
_FORMS = "give module:callable or path/to/file.py:callable"


@dataclass(frozen=True)
class FunctionSource:
    """A callable in a source file.

    Attributes:
        module: name of the module, or absolute path of the file.
        sha256: SHA-256 of the source file (hex).
    """

    module: str
    name: str
    sha256: str

    def build(self, arguments: Mapping[str, Any]) -> ColumnFunction:
        """Import the callable and build the function.

        Raises:
            UsageError: the callable cannot be imported, differs from the planned one, or rejects the arguments.
        """
        found, file = _import(self.module, self.name)
        if sha256_file(file) != self.sha256:
            raise UsageError(
                f"{file} differs from the file that the job was planned with; use the same file on every machine"
            )
        return _bind(found, self.name, arguments)


def find_function(reference: str, arguments: Mapping[str, Any]) -> FunctionSource:
    """Import the callable and check its signature, without building the function.

    Args:
        reference: ``module:callable``, or ``path/to/file.py:callable``.

    Raises:
        UsageError: the callable does not exist, or rejects the arguments.
    """
    module, colon, name = reference.rpartition(":")
    if not colon or not module or not name.isidentifier():
        raise UsageError(f"--function {reference} names no callable; {_FORMS}")
    if module.endswith(".py"):
        module = str(Path(module).absolute())
    found, file = _import(module, name)
    _check_signature(found, name, arguments)
    return FunctionSource(module, name, sha256_file(file))


def _import(module: str, name: str) -> tuple[Any, Path]:
    return import_callable(module, name, _FORMS, "vidvq_function_")


def _check_signature(found: Any, name: str, arguments: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return
    if not (_takes(signature, **arguments) or (not inspect.isclass(found) and _takes_clip(signature, arguments))):
        given = f" and arguments={dict(arguments)}" if arguments else ""
        raise UsageError(
            f"{name}{signature} must take (frames, info){given}, or be a class or factory that takes "
            f"{'those' if arguments else 'no'} arguments and returns such a function"
        )


def _bind(found: Any, name: str, arguments: Mapping[str, Any]) -> ColumnFunction:
    is_class = inspect.isclass(found)
    if not is_class and _takes_clip(inspect.signature(found), arguments):
        return partial(found, **arguments) if arguments else found
    built = found(**arguments)
    if not callable(built):
        raise UsageError(f"{name} returned {type(built).__name__}; it must return a function of (frames, info)")
    return cast(ColumnFunction, built)


def _takes_clip(signature: inspect.Signature, arguments: Mapping[str, Any]) -> bool:
    return _takes(signature, None, None, **arguments)


def _takes(signature: inspect.Signature, *positional: Any, **named: Any) -> bool:
    try:
        signature.bind(*positional, **named)
    except TypeError:
        return False
    return True
