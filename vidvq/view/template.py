"""Rendering of the pages: HTML with its style sheet, script and data in one file."""

import json
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_TEMPLATES = Path(__file__).parent
# Colours and fonts shared by all pages.
_PALETTE = _TEMPLATES.parent / "palette.css"


def render_page(name: str, data: dict[str, Any], **values: Any) -> bytes:
    """Render ``NAME.html.j2`` with ``NAME.css`` and ``NAME.js``, UTF-8.

    Args:
        name: name of the page.
        data: content of the page's JSON element.
        **values: other variables of the template.
    """
    script = (_TEMPLATES / f"{name}.js").read_text(encoding="utf-8")
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined)
    text = environment.get_template(f"{name}.html.j2").render(
        style=Markup("".join(path.read_text(encoding="utf-8") for path in (_PALETTE, _TEMPLATES / f"{name}.css"))),
        script=Markup(script),
        script_hash=b64encode(sha256(script.encode()).digest()).decode(),
        # Only "<" can end a script element.
        data=Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")),
        **values,
    )
    return text.encode()
