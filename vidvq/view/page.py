"""The page: one HTML file that carries its first clips, or asks the server that gave it for each as it is opened."""

import json
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vidvq.log import progress
from vidvq.view.gallery import Gallery
from vidvq.view.pictures import COLUMNS

_TEMPLATES = Path(__file__).parent
# Colours and letters of all pages.
_PALETTE = Path(__file__).parents[1] / "palette.css"


def build_page(gallery: Gallery, first: int | None) -> bytes:
    """Make the page.

    Args:
        gallery: what to show.
        first: how many clips it carries; None for a page whose server has them all.

    Raises:
        UsageError: a damaged shard.
    """
    carried = []
    if first is not None:
        with progress("page", min(first, gallery.total), "clips") as bar:
            for index in range(min(first, gallery.total)):
                carried.append(gallery.clip(index))
                bar.advance()
    data = {
        "clips": None if first is None else carried,
        "total": gallery.total,
        "counted": gallery.counted,
        "books": gallery.books,
        "columns": COLUMNS,
        "temporal": gallery.card.temporal_factor,
        "spatial": gallery.card.spatial_factor,
    }
    return render(data, gallery.card.token_fingerprint)


def render(data: dict[str, Any], fingerprint: str) -> bytes:
    """The HTML around some data."""
    script = (_TEMPLATES / "view.js").read_text()
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined)
    # Within a script element nothing but "<" can end it.
    carried = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    text = environment.get_template("view.html.j2").render(
        style=Markup("".join(path.read_text(encoding="utf-8") for path in (_PALETTE, _TEMPLATES / "view.css"))),
        script=Markup(script),
        script_hash=b64encode(sha256(script.encode()).digest()).decode(),
        data=Markup(carried),
        served=data["clips"] is None,
        shown=len(data["clips"] or ()),
        total=data["total"],
        counted=data["counted"],
        fingerprint=fingerprint[:12],
        books=data["books"],
    )
    return text.encode()
