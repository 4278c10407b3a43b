"""The page: one HTML file that carries its pictures and codes, and asks the network for nothing."""

import io
import json
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from vidvq.decode.find import times_of
from vidvq.decode.stream import decode_codes, open_tokenizer
from vidvq.formats.clip_shard import read_clips
from vidvq.formats.plan import read_plan
from vidvq.formats.token_index import index_tokens
from vidvq.log import progress
from vidvq.video.decode import decode_clip
from vidvq.video.encode import encode_png
from vidvq.view.atlas import decode_atlas

_TEMPLATES = Path(__file__).parent
# Colours and letters of all pages.
_PALETTE = Path(__file__).parents[1] / "palette.css"
_COLUMNS = 8
# A long sample is shown from its start.
_MAX_FRAMES = 129


def build_page(tokens: Path, checkpoint: Path, clips: Path | None, first: int) -> bytes:
    """Make the page.

    Args:
        tokens: a directory that ``vidvq tokenize`` wrote, or one shard in it.
        checkpoint: a checkpoint, or a training run, with the token fingerprint the tokens were made with.
        clips: the clip shards they were made from, or None.
        first: how many clips to show.

    Raises:
        ValueError: another tokenizer's tokens, a damaged shard, or nothing to show.
    """
    # Grids this small are slower on many threads than on one.
    torch.set_num_threads(1)
    tokenizer, card = open_tokenizer(tokens, checkpoint)
    places = index_tokens(tokens)
    if not places:
        raise ValueError(f"{tokens} holds no clips; nothing to show")
    originals = _originals(clips, {place.key for place in places[:first]}) if clips else {}
    usage = {book.name: np.zeros(book.size, dtype=np.int64) for book in card.codebooks}
    shown: list[dict[str, Any]] = []
    with progress("view", len(places), "clips") as bar:
        for index, place in enumerate(places):
            codes, info = place.read(card)
            for t, group in enumerate(codes):
                book = card.codebook_of(t)
                usage[book.name] += np.bincount(group.ravel(), minlength=book.size)
            if index < first:
                original = originals.get(place.key)
                decoded = decode_codes(tokenizer, codes, info)
                same = original is not None and original.shape == decoded.shape
                keep = min(_MAX_FRAMES, len(decoded))
                groups = 1 + -(-(keep - 1) // card.temporal_factor)
                shown.append(
                    {
                        "key": place.key,
                        "source": info.source,
                        "clip": info.clip_index,
                        "fps": info.fps,
                        "height": info.height,
                        "width": info.width,
                        "starts": [float(start - times_of(info)[0][0]) for start, _ in times_of(info)[:keep]],
                        "duration": float(info.duration * info.seconds_per_tick),
                        "psnr": _psnr(original, decoded) if same else None,
                        "grid": [groups, *info.grid[1:]],
                        "codes": [int(code) for code in codes[:groups].ravel()],
                        "decoded": _sheet(decoded[:keep]),
                        "original": _sheet(original[:keep]) if same and original is not None else None,
                    }
                )
            bar.advance()
    books = decode_atlas(tokenizer, card, usage)
    for book in books:
        book["strip"] = f"data:image/png;base64,{b64encode(encode_png(book['strip'])).decode()}"
    data = {
        "clips": shown,
        "books": books,
        "columns": _COLUMNS,
        "temporal": card.temporal_factor,
        "spatial": card.spatial_factor,
    }
    return _render(data, len(places), card.token_fingerprint)


def _render(data: dict[str, Any], total: int, fingerprint: str) -> bytes:
    script = (_TEMPLATES / "view.js").read_text()
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined)
    # Within a script element nothing but "<" can end it.
    carried = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    text = environment.get_template("view.html.j2").render(
        style=Markup("".join(path.read_text(encoding="utf-8") for path in (_PALETTE, _TEMPLATES / "view.css"))),
        script=Markup(script),
        script_hash=b64encode(sha256(script.encode()).digest()).decode(),
        data=Markup(carried),
        shown=len(data["clips"]),
        total=total,
        fingerprint=fingerprint[:12],
        books=data["books"],
    )
    return text.encode()


def _originals(clips: Path, wanted: set[str]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name, _ in read_plan(clips).shards():
        if wanted <= found.keys():
            break
        if (clips / name).is_file():
            for key, media, _ in read_clips(clips / name):
                if key in wanted:
                    found[key] = decode_clip(media, key)
    return found


def _psnr(before: Any, after: np.ndarray) -> float:
    error = np.mean((before.astype(np.float64) - after) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def _sheet(frames: np.ndarray) -> str:
    """All frames in one picture, row by row: any browser shows it, and any frame of it at once."""
    t, h, w, _ = frames.shape
    rows = -(-t // _COLUMNS)
    sheet = np.zeros((rows * h, _COLUMNS * w, 3), dtype=np.uint8)
    for index, frame in enumerate(frames):
        y, x = divmod(index, _COLUMNS)
        sheet[y * h : (y + 1) * h, x * w : (x + 1) * w] = frame
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, format="JPEG", quality=88, subsampling=0)
    return f"data:image/jpeg;base64,{b64encode(buffer.getvalue()).decode()}"
