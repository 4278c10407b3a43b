"""Self-contained HTML pages: a template with its style sheet, script and data in one file."""

import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

# Colours and fonts shared by all pages.
_PALETTE = Path(__file__).parent / "palette.css"


def render_page(
    template: Path, values: Mapping[str, Any], filters: Mapping[str, Callable[..., str]] | None = None
) -> bytes:
    """Render a template, with ``style``, ``script`` and ``script_hash`` of the files beside it; UTF-8.

    Args:
        template: path of ``NAME.html.j2``. ``NAME.css`` follows the shared palette; ``NAME.js`` may be missing.
        values: other variables of the template.
    """
    stem = template.name.partition(".")[0]
    styles = (_PALETTE, template.with_name(f"{stem}.css"))
    script_file = template.with_name(f"{stem}.js")
    script = script_file.read_text(encoding="utf-8") if script_file.exists() else ""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters or {}
    text = environment.get_template(template.name).render(
        style=Markup("".join(path.read_text(encoding="utf-8") for path in styles)),
        script=Markup(script),
        script_hash=b64encode(sha256(script.encode()).digest()).decode(),
        **values,
    )
    return text.encode()


def json_element(data: Any) -> Markup:
    """Return the content of a JSON script element, in which only "<" could end the element."""
    return Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))


def data_uri(kind: str, media: bytes) -> str:
    """Encode media of a MIME type as a data URI."""
    return f"data:{kind};base64,{b64encode(media).decode()}"
