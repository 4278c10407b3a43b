"""``report.html``: counts of the items by outcome, and a contact sheet of random samples."""

from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from heapq import nsmallest
from io import BytesIO
from pathlib import Path

import numpy as np

from vidvq.config import leaves
from vidvq.formats.commit import Commit, read_commits
from vidvq.formats.plan import Plan
from vidvq.formats.summary import JobSummary
from vidvq.jobs.stage import AnyRow, Stage
from vidvq.storage import file_exists, write_shared

_THUMBNAIL_HEIGHT = 144
# A wider picture is narrowed: an image in JPEG has at most 65,500 pixels in a row.
_MAX_THUMBNAIL_WIDTH = 8192


def write_report(stage: Stage[AnyRow], plan: Plan, summary: JobSummary, out: Path) -> None:
    """Write ``report.html``, a deterministic, self-contained file, unless it is there for this plan."""
    report = out / "report.html"
    if file_exists(report) and f"Plan {plan.plan_id[:12]}.".encode() in report.read_bytes():
        return
    # Imported here to keep the start of every job a tenth of a second shorter.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    thumbnails = [
        {"key": each.key, "caption": each.caption, "jpeg": b64encode(each.jpeg).decode()}
        for each in stage.thumbnails(out, _draw(stage, plan, out))
    ]
    settings = {name: value for name, value in plan.made_from.items() if name != "inputs"}
    page = environment.get_template("report.html.j2").render(
        stage=stage,
        summary=summary,
        inputs=plan.made_from.get("inputs", {}).get("count"),
        settings=[(path, value) for path, value in leaves(settings) if value != {}],
        thumbnails=thumbnails,
    )
    write_shared(report, page.encode())


def read_sample(out: Path, commit: Commit, key: str) -> dict[str, bytes]:
    """Read the files of one sample by extension, at the offsets in its commit record."""
    found: dict[str, bytes] = {}
    with (out / commit.shard).open("rb") as file:
        for member, offset in commit.member_offsets():
            if member.key == key:
                file.seek(offset)
                found[member.name.partition(".")[2]] = file.read(member.size)
    return found


def jpeg_grid(rows: list[list[np.ndarray]]) -> bytes:
    """Frames ``h w c`` uint8 as one JPEG, row by row, each scaled to the same height."""
    from PIL import Image

    height, width = rows[0][0].shape[:2]
    width = min(max(round(width * _THUMBNAIL_HEIGHT / height), 1), _MAX_THUMBNAIL_WIDTH)
    sheet = Image.new("RGB", (width * len(rows[0]), _THUMBNAIL_HEIGHT * len(rows)))
    for y, frames in enumerate(rows):
        for x, frame in enumerate(frames):
            picture = Image.fromarray(frame).resize((width, _THUMBNAIL_HEIGHT))
            sheet.paste(picture, (x * width, y * _THUMBNAIL_HEIGHT))
    buffer = BytesIO()
    sheet.save(buffer, format="JPEG", quality=80)
    return buffer.getvalue()


def _draw(stage: Stage[AnyRow], plan: Plan, out: Path) -> list[tuple[Commit, AnyRow]]:
    """Samples drawn by the hashes of their keys, always the same for the same corpus, in the order of the plan."""
    drawn = nsmallest(stage.thumbnail_count, _samples(plan, out), key=lambda pair: sha256(pair[1].encode()).digest())
    commits = {key: commit for commit, key in drawn}
    return [(commits[row.key], row) for row in plan.rows(stage.row) if row.key in commits]


def _samples(plan: Plan, out: Path) -> Iterator[tuple[Commit, str]]:
    for commit in read_commits(out, plan.shard_names()):
        if commit:
            for key in dict.fromkeys(member.key for member in commit.members):
                yield commit, key
