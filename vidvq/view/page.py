"""The HTML page: self-contained with the first clips, or served and loading each clip on demand."""

import json
from base64 import b64encode
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vidvq.log import progress
from vidvq.view.gallery import Gallery
from vidvq.view.pictures import COLUMNS

_TEMPLATES = Path(__file__).parent
# Colours and fonts shared by all pages.
_PALETTE = Path(__file__).parents[1] / "palette.css"


def build_page(gallery: Gallery, first: int | None) -> bytes:
    """Build the page.

    Args:
        gallery: clips and codebooks to show.
        first: number of clips to embed; None for a page that loads clips from its server.

    Returns:
        The page, UTF-8.

    Raises:
        UsageError: a shard is damaged.
    """
    carried = []
    if first is not None:
        with progress("page", min(first, gallery.total), "clips") as bar:
            for clip in gallery.clips(range(min(first, gallery.total))):
                carried.append(clip)
                bar.advance()
    data = {
        "clips": None if first is None else carried,
        "total": gallery.total,
        "counted": gallery.counted,
        "books": gallery.books,
        "columns": COLUMNS,
        "temporal": gallery.card.temporal_factor,
        "spatial": gallery.card.spatial_factor,
        "statistics": gallery.statistics and asdict(gallery.statistics),
    }
    return render(data, gallery.card.token_fingerprint)


def render(data: dict[str, Any], fingerprint: str) -> bytes:
    """Render the page around its data.

    Args:
        data: content of the page's JSON element.
        fingerprint: token fingerprint of the tokenizer.
    """
    script = (_TEMPLATES / "view.js").read_text()
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined)
    # Only "<" can end a script element.
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
        statistics=data.get("statistics"),
    )
    return text.encode()
