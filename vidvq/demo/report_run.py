"""Outputs of a demo run, read for its report. Only files in the directory of the run are opened."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import log2
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from vidvq.codebook import codebook_spans
from vidvq.config import read_yaml
from vidvq.demo.stages import SPLITS, stages
from vidvq.evaluate.reconstruct import list_shards, read_frames
from vidvq.evaluate.scores import ClipScore, Evaluation
from vidvq.formats.checkpoint import Checkpoint, read_checkpoint
from vidvq.formats.clip_shard import read_clips
from vidvq.formats.npy import read_npy
from vidvq.formats.plan import read_plan
from vidvq.formats.token_shard import TokenInfo, TokenizerCard, read_tokenizer_card, read_tokens
from vidvq.jobs import VideoRow
from vidvq.metrics.codes import CodebookUsage
from vidvq.storage import read_json
from vidvq.video.decode import decode_clip

# Frames of each task of the generator.
NAMES = ("original", "generator", "baseline", "ceiling")


@dataclass(frozen=True)
class HeldOut:
    """One held-out clip.

    Attributes:
        original, reconstruction: frames ``t h w c`` uint8.
        codes: codes ``lt lh lw``.
        info: metadata of the tokens.
        score: scores of the reconstruction.
        bundled: reconstruction of the bundled tokenizer; None for a run without one.
        bundled_score: its scores.
    """

    original: np.ndarray
    reconstruction: np.ndarray
    codes: np.ndarray
    info: TokenInfo
    score: ClipScore
    bundled: np.ndarray | None = None
    bundled_score: ClipScore | None = None

    @property
    def title(self) -> str:
        """Title such as ``bikes.mp4, clip 0``."""
        return f"{PurePath(self.info.source).name}, clip {self.info.clip_index}"


@dataclass(frozen=True)
class Split:
    """Counts of one split of the videos, ``train`` or ``heldout``.

    Attributes:
        videos: size of each source (bytes), by file name.
        clips, tokens: content of ``summary.json`` of `vidvq shard` and `vidvq tokenize`.
        frames: number of frames in the clips.
        raw_bytes: size of the clips as uncompressed RGB (bytes).
        token_bits: information in the tokens (bits), log2 of the codebook size for each.
        array_bytes: size of the token arrays (bytes), without tar and JSON.
        code_counts: occurrences of each code, by codebook.
    """

    videos: dict[str, int]
    clips: dict[str, Any]
    tokens: dict[str, Any]
    frames: int
    raw_bytes: int
    token_bits: float
    array_bytes: int
    code_counts: dict[str, np.ndarray]

    @property
    def compression(self) -> float:
        """Compression ratio: uncompressed RGB over tokens (bits)."""
        return self.raw_bytes * 8 / self.token_bits


@dataclass(frozen=True)
class Generated:
    """Result of the generator for one task, on held-out clips.

    Attributes:
        task: ``predict`` or ``interpolate``.
        baseline: what the baseline is.
        psnr: mean PSNR of the generated frames (dB) of ``generator``, ``baseline`` and ``ceiling``.
        frames: frames ``t h w c`` uint8 of the first clip, of the same and of the ``original``.
    """

    task: str
    baseline: str
    psnr: dict[str, float]
    frames: dict[str, np.ndarray]


@dataclass(frozen=True)
class DemoRun:
    """A finished demo run.

    Attributes:
        out: directory of the run.
        card: card of the tokenizer that made the held-out tokens.
        checkpoint: trained checkpoint, verified against its fingerprint.
        config: resolved config of the training.
        metrics: lines of ``metrics.jsonl``.
        evaluation: scores of the held-out clips.
        bundled: the same of the bundled tokenizer; None for a run without it.
        seconds: wall time of each stage (seconds), in execution order.
        splits: counts of the splits, by name.
        generated: results of the generator, by task; none for a run without one.
        generator_clips: number of held-out clips that the generator was scored on.
        too_large: number of held-out clips whose frames are larger than those the generator was trained on.
        generator_steps: training steps of the generator.
    """

    out: Path
    card: TokenizerCard
    checkpoint: Checkpoint
    config: dict[str, Any]
    metrics: list[dict[str, float]]
    evaluation: Evaluation
    bundled: Evaluation | None
    seconds: dict[str, float]
    splits: dict[str, Split]
    generated: list[Generated]
    generator_clips: int
    too_large: int
    generator_steps: int

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Number of parameters in the checkpoint, by part: encoder, quantizer (the codebooks) and decoder."""
        counts: dict[str, int] = {}
        for name, tensor in self.checkpoint.tensors.items():
            part = name.split(".")[0]
            counts[part] = counts.get(part, 0) + tensor.size
        return counts

    def held_out(self) -> Iterator[HeldOut]:
        """Yield the scored clips in key order, one at a time in memory."""
        scores = {score.key: score for score in self.evaluation.clips}
        shipped = {score.key: score for score in self.bundled.clips} if self.bundled else {}
        tokens = {key: (codes, info) for key, codes, info in _samples(self.out, "heldout", self.card)}
        for shard in list_shards(self.out / "clips" / "heldout"):
            for key, media, _ in read_clips(shard):
                if key in scores:
                    codes, info = tokens[key]
                    decoded = read_frames(self.out / "decoded" / "png" / key)
                    other = read_frames(self.out / "bundled" / "png" / key) if key in shipped else None
                    original = decode_clip(media, key)
                    yield HeldOut(original, decoded, codes, info, scores[key], other, shipped.get(key))


def read_run(out: Path) -> DemoRun:
    """Read a demo run.

    Raises:
        UsageError: the output of a stage is missing or damaged.
        OSError: a file cannot be read.
    """
    card = read_tokenizer_card(out / "tokens" / "heldout")
    seconds: dict[str, float] = read_json(out / "stages.json")
    scored, generator = out / "generated" / "scores.json", out / "generator" / "config.yaml"
    made: dict[str, Any] = read_json(scored) if scored.is_file() else {}
    return DemoRun(
        out=out,
        card=card,
        checkpoint=read_checkpoint(out / "train"),
        config=read_yaml(out / "train" / "config.yaml"),
        metrics=[json.loads(line) for line in (out / "train" / "metrics.jsonl").read_bytes().splitlines()],
        evaluation=_read_evaluation(out / "scores.json"),
        bundled=_read_evaluation(shipped) if (shipped := out / "bundled" / "scores.json").is_file() else None,
        seconds={stage: seconds[stage] for stage in stages(out) if stage in seconds},
        splits={name: _read_split(out, name, card) for name in SPLITS},
        generated=_read_generated(out / "generated", made),
        generator_clips=made.get("clips", 0),
        too_large=made.get("skipped", 0),
        generator_steps=int(read_yaml(generator)["steps"]) if generator.is_file() else 0,
    )


def _read_evaluation(path: Path) -> Evaluation:
    fields = read_json(path)
    clips = tuple(ClipScore(**clip) for clip in fields["clips"])
    return Evaluation(clips, tuple(CodebookUsage(**book) for book in fields["codebooks"]), fields["token_fingerprint"])


def _read_generated(folder: Path, scores: dict[str, Any]) -> list[Generated]:
    """Read the results of the generator from the folder of its pictures and the content of ``scores.json``."""
    made: list[Generated] = []
    for task, score in scores.get("tasks", {}).items():
        frames = {name: read_npy((folder / f"{task}-{name}.npy").read_bytes()) for name in NAMES}
        made.append(Generated(task, score["baseline"], score["psnr"], frames))
    return made


def _read_split(out: Path, name: str, card: TokenizerCard) -> Split:
    clips = out / "clips" / name
    counts = {book.name: np.zeros(book.size, dtype=np.int64) for book in card.codebooks}
    frames = raw_bytes = array_bytes = 0
    bits = 0.0
    for _, codes, info in _samples(out, name, card):
        frames += info.num_frames
        raw_bytes += info.num_frames * info.height * info.width * 3
        array_bytes += codes.nbytes
        for book, latents in codebook_spans(card.codebooks):
            part = codes[latents].ravel()
            counts[book.name] += np.bincount(part, minlength=book.size)
            bits += part.size * log2(book.size)
    return Split(
        videos={PurePath(row.source.uri).name: row.source.size for row in read_plan(clips).rows(VideoRow)},
        clips=read_json(clips / "summary.json"),
        tokens=read_json(out / "tokens" / name / "summary.json"),
        frames=frames,
        raw_bytes=raw_bytes,
        token_bits=bits,
        array_bytes=array_bytes,
        code_counts=counts,
    )


def _samples(out: Path, split: str, card: TokenizerCard) -> Iterator[tuple[str, np.ndarray, TokenInfo]]:
    for shard in list_shards(out / "tokens" / split):
        yield from read_tokens(shard, card)
