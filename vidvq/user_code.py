"""Import of the objects that users name on the command line. Runs the user's code."""

import importlib
import importlib.util
import sys
import traceback
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from vidvq.errors import UsageError


def import_callable(module: str, name: str, forms: str, prefix: str) -> tuple[Any, Path]:
    """Import a callable from a module or a file.

    Args:
        module: name of the module, or path of a file that ends in ``.py``.
        forms: sentence on what may be given, for error messages.
        prefix: prefix of the module name of a file.

    Returns:
        The callable, and the source file of its module.

    Raises:
        UsageError: the module cannot be imported, has no source file, or has no such callable.
    """
    try:
        loaded = (
            _import_file(Path(module), forms, prefix) if module.endswith(".py") else importlib.import_module(module)
        )
    except UsageError:
        raise
    except Exception as error:
        remedy = f"; {forms}, and set PYTHONPATH to its folder" if isinstance(error, ModuleNotFoundError) else ""
        raise UsageError(f"{module} cannot be imported: {error_line(error)}{remedy}") from error
    found = getattr(loaded, name, None)
    if not callable(found):
        there = sorted(each for each, value in vars(loaded).items() if callable(value) and not each.startswith("_"))
        what = "has no" if found is None else "has an object that is not callable as"
        raise UsageError(f"{module} {what} {name}; its callables are: {', '.join(there) or 'none'}")
    # Modules written in C have no such attribute.
    file = getattr(loaded, "__file__", None)
    if not file:
        raise UsageError(f"{module} has no source file; {forms}")
    return found, Path(file)


def package_of(entry: EntryPoint) -> str:
    """Name of the package that has an entry point, for messages."""
    return entry.dist.name if entry.dist else entry.module


def error_line(error: BaseException) -> str:
    """Format an exception in one line, with the file and line in the user's code."""
    frames = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    position = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{position}"


def _import_file(path: Path, forms: str, prefix: str) -> Any:
    if not path.is_file():
        raise UsageError(f"{path} does not exist; {forms}")
    name = f"{prefix}{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    # As for a script, modules beside the file can be imported.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
