"""Safe paths from untrusted names, for all names in plans, records, cards, tars and exports."""

import re
from pathlib import Path

from vidvq.errors import UsageError

_MAX_NAME_BYTES = 255
_REFUSED = re.compile(r"[/\\\x00-\x1f\x7f]")


def check_name(name: str, what: str = "file name", max_bytes: int = _MAX_NAME_BYTES) -> str:
    """Check a name that could leave a folder or confuse a reader, and return it.

    Raises:
        UsageError: it is empty or longer than ``max_bytes``, has a separator or a control character, is not UTF-8, or
            starts with a dot or a dash. ``what`` names it in the message.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise UsageError(f"{what} {name[:120]!r} must be UTF-8") from error
    if not 1 <= size <= max_bytes:
        raise UsageError(f"{what} {name[:120]!r} must have 1 to {max_bytes} bytes")
    if _REFUSED.search(name):
        raise UsageError(f"{what} {name!r} must not contain a slash, a backslash or a control character")
    if name[0] in ".-":
        raise UsageError(f"{what} {name!r} must not start with a dot or a dash")
    return name


def safe_join(folder: Path, name: str) -> Path:
    """The path of an untrusted name in a folder.

    Raises:
        UsageError: see :func:`check_name`.
    """
    return folder / check_name(name)
