"""`vidvq generate evaluate`: a generator against what anyone would do without one, on held-out clips."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from math import log
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from vidvq import config as settings
from vidvq.data.index import read_bytes, read_clip_index
from vidvq.errors import UsageError
from vidvq.formats.generator import GeneratorCard, read_generator
from vidvq.formats.token_index import TokenLocation, index_tokens
from vidvq.formats.token_shard import read_tokenizer_card
from vidvq.generate.baselines import blend, repeat_last, surrounding_mean
from vidvq.generate.blanking import encode_visible, hide_box, hide_frames
from vidvq.generate.examples import seeded
from vidvq.generate.likelihood import CountModels, sample_nats
from vidvq.generate.network import load_network
from vidvq.generate.requests import Count, SamplingConfig
from vidvq.generate.sampling import Condition, sample_codes
from vidvq.log import progress, warn
from vidvq.metrics.perceptual import load_perceptual
from vidvq.metrics.pixel import psnr
from vidvq.model import Tokenizer, iter_decode
from vidvq.model.pixels import to_video
from vidvq.pretrained import load_tokenizer
from vidvq.storage import pretty_json, resolve_path, write_atomic
from vidvq.video.decode import decode_clip

# A sample that shares more than this of its codes with a training sample is a copy of it.
_COPY = 0.5
_DRAWS = 8


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of `vidvq generate evaluate`.

    Attributes:
        clips: number of held-out samples, from the start of the directory (1 or more).
        given: frames that are given to a prediction (1 + a multiple of the temporal factor).
        samples: number of samples to compare with the training samples; 0 for none.
        seeds: seeds of the samples; scores are means over them.
        sampling: how codes are drawn.
        perceptual: compute ST-LPIPS beside PSNR.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    clips: Count = 16
    given: Count = 5
    samples: Annotated[int, Field(ge=0)] = 16
    seeds: tuple[int, ...] = (0, 1, 2)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    perceptual: bool = False


@dataclass
class TaskScore:
    """Scores of one task against the original pixels, over the frames or the part that was generated.

    Attributes:
        psnr: mean PSNR over clips (dB) of the generator, the baseline and the ceiling, which is what the tokenizer
            reconstructs from the clip's own tokens.
        st_lpips: mean ST-LPIPS of the same (lower is better); empty if not computed.
        curve: PSNR by frame after the given ones (dB), of the same; for predictions.
        baseline: what the baseline is.
    """

    baseline: str
    psnr: dict[str, float] = field(default_factory=dict)
    st_lpips: dict[str, float] = field(default_factory=dict)
    curve: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class GeneratorScores:
    """Result of `vidvq generate evaluate`, written as JSON.

    Attributes:
        generator: fingerprint of the generator.
        clips: number of held-out samples.
        skipped: number of held-out samples that are larger than the generator was trained on.
        bits: bits per token: of the generator, of the generator given the first frames (``predict``), and of counts
            over the training tokens: ``uniform``, ``unigram``, ``bigram`` (in raster order), ``temporal`` (one latent
            frame earlier).
        tasks: scores by task.
        copies: share of the samples that are copies of a training sample.
        nearest: mean share of codes in which samples differ from the nearest training sample.
        nearest_held_out: the same for the held-out samples.
    """

    generator: str
    clips: int
    skipped: int
    bits: dict[str, float] = field(default_factory=dict)
    tasks: dict[str, TaskScore] = field(default_factory=dict)
    copies: float | None = None
    nearest: float | None = None
    nearest_held_out: float | None = None

    def lines(self) -> list[str]:
        """Return the scores as text."""
        text = [f"{self.clips} held-out clips" + (f", {self.skipped} too large" if self.skipped else "")]
        text.append("bits per token: " + ", ".join(f"{name} {bits:.2f}" for name, bits in self.bits.items()))
        for task, score in self.tasks.items():
            named = {"generator": "generator", "baseline": score.baseline, "ceiling": "the tokenizer's ceiling"}
            parts = [f"{named[name]} {score.psnr[name]:.2f} dB" for name in named]
            if score.st_lpips:
                parts.append("ST-LPIPS " + ", ".join(f"{score.st_lpips[name]:.3f}" for name in named))
            text.append(f"{task}: " + ", ".join(parts))
        if self.copies is not None and self.nearest is not None and self.nearest_held_out is not None:
            text.append(
                f"{self.copies:.0%} of the samples are copies; their nearest training sample differs in "
                f"{self.nearest:.0%} of the codes, that of a held-out clip in {self.nearest_held_out:.0%}"
            )
        return text


def run_generate_evaluate(
    run: Path, tokens: Path, config: EvaluateConfig, clips: Path | None, checkpoint: Path, out: Path | None
) -> GeneratorScores:
    """Evaluate a generator.

    Args:
        run: a run of `vidvq generate train`.
        tokens: directory of held-out token shards.
        config: settings.
        clips: directory of the clip shards of these tokens; None measures no pixels.
        checkpoint: the tokenizer.
        out: JSON file to write, or None.

    Raises:
        UsageError: the tokens or the tokenizer do not fit the generator.
    """
    evaluation = _Evaluation(run, tokens, config, clips, checkpoint)
    scores = evaluation.measure()
    if out:
        write_atomic(out, pretty_json(asdict(scores)))
    return scores


class _Evaluation:
    def __init__(self, run: Path, tokens: Path, config: EvaluateConfig, clips: Path | None, checkpoint: Path) -> None:
        torch.set_num_threads(1)
        self.config, self.clips = config, clips
        generator = read_generator(run)
        self.card: GeneratorCard = generator.card
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = load_network(generator).to(self.device)
        found = read_tokenizer_card(tokens)
        self._check_same(found.token_fingerprint, str(tokens))
        r = self.card.tokenizer.temporal_factor
        if (config.given - 1) % r:
            raise UsageError(f"given={config.given} must be 1 + a multiple of {r}")
        _, lh, lw = self.card.limits
        places = index_tokens(tokens)
        self.places = [place for place in places if (grid := place.read_info().grid)[1] <= lh and grid[2] <= lw]
        if not self.places:
            raise UsageError(f"{tokens} has no sample of up to {lh}x{lw} latents, as the generator was trained on")
        skipped, self.places = len(places) - len(self.places), self.places[: config.clips]
        self.scores = GeneratorScores(generator.fingerprint, len(self.places), skipped)
        self.tokenizer: Tokenizer | None = None
        if clips is not None:
            self.tokenizer, card = load_tokenizer(checkpoint)
            self._check_same(card.token_fingerprint, str(checkpoint))
            self.tokenizer.to(self.device)
        self.training = _training_samples(run, generator.path, self.card)
        self.perceptual = load_perceptual("st_lpips", "alex").to(self.device) if config.perceptual else None

    def measure(self) -> GeneratorScores:
        held_out = [place.read(self.card.tokenizer)[0][: self.card.limits[0]] for place in self.places]
        self._measure_bits(held_out)
        if self.clips is not None:
            self._measure_pixels(self.clips)
        if self.config.samples and self.training and "generate" in self.card.tasks:
            self._measure_copies(held_out)
        return self.scores

    def _check_same(self, fingerprint: str, where: str) -> None:
        wanted = self.card.tokenizer.token_fingerprint
        if fingerprint != wanted:
            raise UsageError(
                f"{where} is of tokenizer {fingerprint[:12]}; the generator was trained on tokens of {wanted[:12]}"
            )

    def _measure_bits(self, held_out: list[np.ndarray]) -> None:
        given = 1 + (self.config.given - 1) // self.card.tokenizer.temporal_factor
        nats, tokens = {"generator": 0.0, "predict": 0.0}, {"generator": 0, "predict": 0}
        with progress("bits", len(held_out), "clips") as bar:
            for place, codes in zip(self.places, held_out, strict=True):
                grid = torch.from_numpy(codes.astype(np.int64))[None].to(self.device)
                for name, first in (("generator", 0), ("predict", given)):
                    if len(codes) > first:
                        seed = f"bits/{place.key}/{first}"
                        nats[name] += sample_nats(self.network, self.card.objective, grid, first, _DRAWS, seed)
                        tokens[name] += codes[first:].size
                bar.advance()
        self.scores.bits = {name: nats[name] / tokens[name] / log(2) for name in nats if tokens[name]}
        if self.training:
            counts = CountModels(self.card.tokenizer)
            for codes in self.training:
                counts.add(codes)
            self.scores.bits |= counts.bits(held_out)

    def _measure_pixels(self, clips: Path) -> None:
        index = read_clip_index([str(clips)])
        by_key = {key: index.media_range(at) for at, key in enumerate(index.keys)}
        missing = [place.key for place in self.places if place.key not in by_key]
        if missing:
            raise UsageError(f"{clips} has no clip {missing[0]}; give the clips that the tokens were made from")
        rows: dict[str, list[dict[str, Any]]] = {}
        with progress("pixels", len(self.places), "clips") as bar:
            for place in self.places:
                frames = decode_clip(read_bytes(by_key[place.key]), place.key)
                for task, row in self._score_clip(place, frames):
                    rows.setdefault(task, []).append(row)
                bar.advance()
        for task, found in rows.items():
            score = TaskScore(_BASELINES[task])
            for name in ("generator", "baseline", "ceiling"):
                score.psnr[name] = float(np.mean([row[name]["psnr"] for row in found]))
                if self.perceptual:
                    score.st_lpips[name] = float(np.mean([row[name]["st_lpips"] for row in found]))
                if task == "predict":
                    length = min(len(row[name]["curve"]) for row in found)
                    score.curve[name] = np.mean([row[name]["curve"][:length] for row in found], axis=0).tolist()
            self.scores.tasks[task] = score

    def _score_clip(self, place: TokenLocation, frames: np.ndarray) -> Iterator[tuple[str, dict[str, Any]]]:
        """Score all tasks that the generator was trained for on one clip of frames ``t h w c`` uint8."""
        codes, info = place.read(self.card.tokenizer)
        longest = 1 + (self.card.limits[0] - 1) * self.card.tokenizer.temporal_factor
        if len(frames) > longest:
            frames, codes = frames[:longest], codes[: self.card.limits[0]]
        size, shape = (info.height, info.width), (codes.shape[0], codes.shape[1], codes.shape[2])
        ceiling, given = self._decode(codes, len(frames), size), self.config.given
        hidden: dict[str, np.ndarray] = {}
        if "predict" in self.card.tasks and len(frames) > given:
            hidden["predict"] = np.zeros(frames.shape[:3], dtype=bool)
            hidden["predict"][given:] = True
        if "interpolate" in self.card.tasks and len(frames) > 2:
            hidden["interpolate"] = hide_frames(frames.shape[:3], [0, len(frames) - 1]).numpy()
        if "fill" in self.card.tasks:
            h, w = size
            hidden["fill"] = hide_box(frames.shape[:3], (w // 4, h // 4, w // 2, h // 2)).numpy()
        for task, part in hidden.items():
            first = codes[: 1 + (given - 1) // self.card.tokenizer.temporal_factor] if task == "predict" else None
            condition = Condition(blanked=None if task == "predict" else self._blanked(frames, part))
            made = []
            for seed in self.config.seeds:
                random = seeded(f"{seed}/{place.key}/{task}")
                drawn = sample_codes(self.network, self.card, shape, first, condition, self.config.sampling, random)
                made.append(self._decode(drawn, len(frames), size))
            base = {
                "predict": lambda: repeat_last(frames, given),
                "interpolate": lambda: blend(frames, [0, len(frames) - 1]),
                "fill": lambda part=part: surrounding_mean(frames, part),
            }[task]()
            yield (
                task,
                {
                    "generator": _mean_rows([self._compare(frames, each, part) for each in made]),
                    "baseline": self._compare(frames, base, part),
                    "ceiling": self._compare(frames, ceiling, part),
                },
            )

    def _blanked(self, frames: np.ndarray, hidden: np.ndarray) -> Any:
        assert self.tokenizer is not None
        video = to_video(frames).to(self.device)
        return encode_visible(self.tokenizer, video, torch.from_numpy(hidden)[None].to(self.device))

    def _decode(self, codes: np.ndarray, num_frames: int, size: tuple[int, int]) -> np.ndarray:
        assert self.tokenizer is not None
        return np.concatenate(list(iter_decode(self.tokenizer, codes, num_frames, size)))

    def _compare(self, original: np.ndarray, other: np.ndarray, part: np.ndarray) -> dict[str, Any]:
        """PSNR over the hidden part, ST-LPIPS over the frames that have one, and PSNR of each such frame."""
        frames = part.any((1, 2))
        row: dict[str, Any] = {"psnr": psnr(original[part], other[part])}
        row["curve"] = [psnr(original[at][part[at]], other[at][part[at]]) for at in np.flatnonzero(frames)]
        if self.perceptual:
            pair = [to_video(each[frames]).to(self.device)[0].transpose(0, 1) for each in (other, original)]
            with torch.no_grad():
                row["st_lpips"] = float(self.perceptual(*pair).mean())
        return row

    def _measure_copies(self, held_out: list[np.ndarray]) -> None:
        by_shape: dict[tuple[int, ...], list[np.ndarray]] = {}
        for codes in self.training:
            cut = codes[: self.card.limits[0]]
            by_shape.setdefault(cut.shape, []).append(cut)
        shape = self.card.shapes[0]
        config, distances = replace(self.config.sampling, guidance=1.0), []
        with progress("samples", self.config.samples, "samples") as bar:
            for index in range(self.config.samples):
                random = seeded(f"{self.config.seeds[0]}/copies/{index}")
                drawn = sample_codes(self.network, self.card, shape, None, Condition(), config, random)
                distances.append(_nearest(drawn, by_shape.get(shape, [])))
                bar.advance()
        self.scores.copies = float(np.mean([distance < 1 - _COPY for distance in distances]))
        self.scores.nearest = float(np.mean(distances))
        own = [_nearest(codes, by_shape[codes.shape]) for codes in held_out if codes.shape in by_shape]
        self.scores.nearest_held_out = float(np.mean(own)) if own else 1.0


_BASELINES = {
    "predict": "the last frame repeated",
    "interpolate": "the ends blended",
    "fill": "the mean around",
}


def _mean_rows(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: np.mean([row[name] for row in rows], axis=0) for name in rows[0]}


def _nearest(codes: np.ndarray, others: list[np.ndarray]) -> float:
    """Share of codes that differ from the nearest of some samples; 1 if there is none."""
    return min((float((codes != other).mean()) for other in others), default=1.0)


def _training_samples(run: Path, checkpoint: Path, card: GeneratorCard) -> list[np.ndarray]:
    """The codes of all training samples, as the run's config names them; none if they are not there."""
    for folder in (run, checkpoint.parent.parent):
        if (folder / "config.yaml").is_file():
            found = settings.read_yaml(folder / "config.yaml")["data"]["tokens"]
            try:
                places = [place for given in found for place in index_tokens(resolve_path(given))]
                return [place.read(card.tokenizer)[0] for place in places]
            except (UsageError, OSError) as error:
                warn(f"the training tokens cannot be read, so nothing is compared with them: {error}")
                return []
    warn(f"{run} has no config.yaml, so nothing is compared with the training tokens")
    return []
