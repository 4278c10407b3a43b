"""``report.html``: what became of the inputs, and a contact sheet of clips drawn from all over the corpus."""

import io
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from heapq import nsmallest
from math import ceil
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from vidvq.formats.clip_shard import ClipInfo, media_of, parse_clip_info
from vidvq.formats.commit import Commit, read_commits
from vidvq.formats.plan import Plan
from vidvq.formats.summary import JobSummary
from vidvq.formats.tar import BLOCK_BYTES
from vidvq.storage import write_over
from vidvq.video import VideoError
from vidvq.video.decode import decode_clip

_SHOWN = 24
_THUMB_HEIGHT = 144


@dataclass(frozen=True)
class Thumb:
    """One clip of the contact sheet: its key, what is known of it, and its first, middle and last frame in one."""

    key: str
    info: ClipInfo
    picture: Markup


def write_report(out: Path, plan: Plan, summary: JobSummary) -> None:
    """Write ``out/report.html``: one file that asks the network for nothing, the same for the same corpus."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        summary=summary,
        policy=plan.header["made_from"],
        thumbs=list(_thumbs(out, plan)),
    )
    write_over(out / "report.html", page.encode())


def _thumbs(out: Path, plan: Plan) -> Iterator[Thumb]:
    drawn = nsmallest(_SHOWN, _clips(out, plan), key=lambda found: sha256(found[1].encode()).digest())
    for commit, key in sorted(drawn, key=lambda found: (found[0].shard, found[1])):
        try:
            files = _files(out, commit, key)
            info = parse_clip_info(files["json"], key)
            frames = decode_clip(files[media_of(files, key)], key)
        except (OSError, KeyError, ValueError, VideoError):
            # Another driver sweeps, or a shard was damaged meanwhile: that is for verify to tell.
            continue
        yield Thumb(key, info, _picture([frames[0], frames[len(frames) // 2], frames[-1]]))


def _clips(out: Path, plan: Plan) -> Iterator[tuple[Commit, str]]:
    for commit in read_commits(out, plan.shard_names()):
        if commit:
            for key in dict.fromkeys(member.key for member in commit.members):
                yield commit, key


def _files(out: Path, commit: Commit, key: str) -> dict[str, bytes]:
    """The files of one clip, from where the commit record says they are."""
    found: dict[str, bytes] = {}
    place = 0
    with (out / commit.shard).open("rb") as file:
        for member in commit.members:
            place += BLOCK_BYTES
            if member.key == key:
                file.seek(place)
                found[member.name.partition(".")[2]] = file.read(member.size)
            place += ceil(member.size / BLOCK_BYTES) * BLOCK_BYTES
    return found


def _picture(frames: list[np.ndarray]) -> Markup:
    height, width = frames[0].shape[:2]
    width = max(round(width * _THUMB_HEIGHT / height), 1)
    strip = Image.new("RGB", (width * len(frames), _THUMB_HEIGHT))
    for index, frame in enumerate(frames):
        strip.paste(Image.fromarray(frame).resize((width, _THUMB_HEIGHT)), (index * width, 0))
    buffer = io.BytesIO()
    strip.save(buffer, format="JPEG", quality=80)
    return Markup("data:image/jpeg;base64,") + Markup(b64encode(buffer.getvalue()).decode())
