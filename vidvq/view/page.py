"""The HTML page: self-contained with the first clips, or served and loading each clip on demand."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from vidvq.html_page import json_element, render_page
from vidvq.log import progress
from vidvq.view.gallery import Gallery
from vidvq.view.pictures import COLUMNS

_TEMPLATE = Path(__file__).with_name("view.html.j2")


def build_page(gallery: Gallery, first: int | None) -> bytes:
    """Build the page.

    Args:
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
    values = {
        "data": json_element(data),
        "served": data["clips"] is None,
        "shown": len(data["clips"] or ()),
        "total": data["total"],
        "counted": data["counted"],
        "fingerprint": fingerprint[:12],
        "books": data["books"],
        "statistics": data.get("statistics"),
    }
    return render_page(_TEMPLATE, values)
