"""MkDocs hook: docstrings name other objects by Sphinx roles, of which the pages show the name alone."""

import re
from typing import Any

_ROLE = re.compile(r":\w+:(?=<code)")


def on_page_content(html: str, **_: Any) -> str:
    """Remove the role before each name."""
    return _ROLE.sub("", html)
