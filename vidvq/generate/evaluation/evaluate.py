"""`vidvq generate evaluate`: scores of a generator on held-out clips, next to trivial baselines."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import groupby
from math import log
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch

from vidvq.config import checked
from vidvq.errors import UsageError
from vidvq.formats.checkpoint import checkpoint_name, resolve_checkpoint
from vidvq.formats.code_statistics import write_code_statistics
from vidvq.formats.generator import GeneratorCard, read_generator
from vidvq.formats.token_shard import read_tokenizer_card
from vidvq.generate.evaluation.code_statistics import CodeStatisticsCollector
from vidvq.generate.evaluation.held_out_clips import HeldOutClips
from vidvq.generate.evaluation.held_out_conditions import HeldOutConditions, network_arguments
from vidvq.generate.evaluation.held_out_tasks import BASELINES, HeldOutTasks, Prompt
from vidvq.generate.evaluation.latent_distance import LatentDistance
from vidvq.generate.evaluation.ngram import NgramModels
from vidvq.generate.evaluation.scores import GeneratorScores, StepScore, TaskScore
from vidvq.generate.evaluation.training_samples import nearest_distances, read_training_samples
from vidvq.generate.network.build import load_network
from vidvq.generate.network.code_vectors import DigitVectors, code_vectors
from vidvq.generate.requests import EvaluateConfig, SamplingConfig
from vidvq.generate.sampling.codes import SamplePrompt, given_latents, sample_clips, sample_codes
from vidvq.generate.sampling.execution import resolve_batch
from vidvq.generate.training.examples import seeded_rng
from vidvq.generate.training.likelihood import position_nats
from vidvq.log import progress, warn
from vidvq.metrics.fvd import FvdScorer
from vidvq.metrics.perceptual import load_perceptual
from vidvq.metrics.pixel import psnr
from vidvq.model import Tokenizer, iter_decode
from vidvq.model.enlarge import shrink_frames
from vidvq.model.pixels import to_video
from vidvq.model.step_shape import GPU_STREAM
from vidvq.pretrained import load_tokenizer
from vidvq.pretrained.device import find_fp32_device
from vidvq.storage import pretty_json, resolve_path, write_atomic
from vidvq.video.encode import encode_npy

# Fraction of equal codes above which a sample counts as a copy of a training sample.
_COPY_SHARE = 0.5
# Number of estimates of bits per token to average.
_DRAWS = 8


def run_generate_evaluate(
    run: str | Path,
    tokens: str | Path,
    config: EvaluateConfig,
    clips: str | Path | None,
    checkpoint: str | Path,
    out: str | Path | None,
    pictures: str | Path | None = None,
    codes: str | Path | None = None,
) -> GeneratorScores:
    """Evaluate a generator.

    Args:
        clips: directory of the clip shards that the tokens were made from; None skips the scores of pixels.
        checkpoint: tokenizer that decodes the samples, and in whose latent space distances are measured.
        out: JSON file to write; None writes none.
        pictures: folder for the frames of the first clip, ``TASK-NAME.npy`` (``t h w c`` uint8) with the names
            ``original``, ``generator`` (first seed), ``baseline`` and ``ceiling``; None writes none.
        codes: JSON file for the bits and the nearest neighbours of each code, which `vidvq view` shows; None writes
            none.

    Raises:
        UsageError: the tokens or the tokenizer do not match the generator, or a clip is missing.
    """
    config = checked(EvaluateConfig, config)
    run, tokens, checkpoint = resolve_path(run), resolve_path(tokens), resolve_checkpoint(checkpoint)
    clips, out, pictures, codes = (resolve_path(each) if each else None for each in (clips, out, pictures, codes))
    if pictures and clips is None:
        raise UsageError(f"--pictures {pictures} compares frames; set --clips")
    evaluation = _Evaluation(run, tokens, config, clips, checkpoint, pictures)
    scores = evaluation.measure()
    if out:
        write_atomic(out, pretty_json(asdict(scores)))
    if codes:
        write_code_statistics(codes, evaluation.statistics.finish(evaluation.network, scores.generator))
    return scores


class _Clip(NamedTuple):
    """A held-out clip.

    Attributes:
        codes: ``lt lh lw``.
        frames: ``t h w c`` uint8.
        prompts: the trained tasks on it.
    """

    key: str
    codes: np.ndarray
    frames: np.ndarray
    prompts: list[Prompt]

    @property
    def grid(self) -> tuple[int, int, int]:
        """Shape ``lt lh lw`` of the codes."""
        t, h, w = self.codes.shape
        return t, h, w


class _Evaluation:
    def __init__(
        self,
        run: Path,
        tokens: Path,
        config: EvaluateConfig,
        clips: Path | None,
        checkpoint: Path,
        pictures: Path | None,
    ) -> None:
        torch.set_num_threads(1)
        self.config, self.clips, self.pictures = config, clips, pictures
        generator = read_generator(run)
        self.card: GeneratorCard = generator.card
        self.device = torch.device(find_fp32_device())
        self.batch = resolve_batch(config.batch, self.device.type)
        self.network = load_network(generator).to(self.device)
        found = read_tokenizer_card(tokens)
        self.card.refuse_other_tokenizer(found.token_fingerprint, str(tokens))
        self._given = given_latents(self.card, config.given)
        self.held_out = HeldOutClips(self.card, tokens, config.clips, clips)
        self.codes = self.held_out.read_codes()
        longest = max(self.held_out.num_frames())
        if "predict" in self.card.tasks and longest <= config.given:
            warn(f"skipping predictions: given={config.given} must be below the {longest} frames of the longest clip")
        self.scores = GeneratorScores(generator.fingerprint, len(self.held_out), self.held_out.skipped)
        self.tokenizer = self._load_tokenizer(checkpoint)
        self.tasks = HeldOutTasks(self.card, self.tokenizer, config.given) if self.tokenizer else None
        self.vectors = self._read_vectors()
        self.conditions = HeldOutConditions(self.card, clips, config.text_encoder)
        self.training = read_training_samples(run, self.card, config.training_samples)
        self.statistics = CodeStatisticsCollector(self.card)
        self.fvd = self._open_fvd()
        self.perceptual = load_perceptual("st_lpips", "alex").to(self.device) if config.perceptual else None

    def measure(self) -> GeneratorScores:
        self._measure_bits()
        self.distance = self._open_distance()
        if self.clips is not None:
            self._measure_pixels()
        if self.config.samples and "generate" in self.card.tasks:
            drawn = self._draw_samples(self.config.sampling)
            self.scores.frechet |= self._measure_distances({"generate": drawn})
            if self.fvd:
                r, s = self.card.tokenizer.temporal_factor, self.card.tokenizer.spatial_factor
                for codes in drawn:
                    lt, lh, lw = codes.shape
                    self.fvd.add_other("generate", self._decode(codes, 1 + (lt - 1) * r, (lh * s, lw * s)))
            if self.training:
                self._measure_copies(drawn)
        if self.fvd:
            self.scores.fvd, self.scores.fvd_windows = self.fvd.distances(), self.fvd.windows
        if self.training:
            spread = np.linspace(0, len(self.training) - 1, len(self.codes)).round().astype(int)
            chosen = [self.training[at][: self.card.limits[0]] for at in spread]
            self.scores.frechet |= self._measure_distances({"training": chosen}) if self.scores.frechet else {}
        for steps in self.config.compare_steps:
            self.scores.steps[str(steps)] = self._compare_steps(replace(self.config.sampling, steps=steps))
        return self.scores

    def _load_tokenizer(self, checkpoint: Path) -> Tokenizer | None:
        """Load the tokenizer; None if it did not make the tokens and nothing needs it."""
        tokenizer, card = load_tokenizer(checkpoint)
        if self.clips is not None or self.config.sampling.takes_mean:
            self.card.refuse_other_tokenizer(card.token_fingerprint, checkpoint_name(checkpoint))
        elif card.token_fingerprint != self.card.tokenizer.token_fingerprint:
            return None
        if self.device.type == "cuda":
            tokenizer.step_shape = tokenizer.decode_shape = GPU_STREAM
        return tokenizer.to(self.device)

    def _read_vectors(self) -> list[DigitVectors] | None:
        """Return the code vectors; None if nothing uses them or, with a warning, the tokenizer does not expose them."""
        if self.tokenizer is None or not (self.clips or self.config.sampling.takes_mean):
            return None
        try:
            return code_vectors(self.tokenizer, self.network.digits)
        except UsageError as error:
            if self.config.sampling.takes_mean:
                raise
            warn(f"skipping mean codes: {error}")
            return None

    def _open_fvd(self) -> FvdScorer | None:
        if not self.config.fvd_backbone:
            return None
        if self.clips is None:
            raise UsageError(f"fvd_backbone={self.config.fvd_backbone}: FVD compares frames; set --clips")
        lengths = self.held_out.num_frames()
        return FvdScorer(self.config.fvd_backbone, self.config.fvd_frames, lengths, self.device.type)

    def _open_distance(self) -> LatentDistance | None:
        """Return the distance to the held-out clips; None, with a warning, if it cannot be measured."""
        if self.tokenizer is None:
            warn("skipping Fréchet distances; set --checkpoint to the tokenizer of the tokens")
            return None
        if len(self.codes) < 2:
            warn("skipping Fréchet distances: they need 2 or more held-out clips")
            return None
        try:
            return LatentDistance(self.tokenizer, self.codes)
        except UsageError as error:
            warn(f"skipping Fréchet distances: {error}")
            return None

    def _measure_distances(self, clips: dict[str, list[np.ndarray]]) -> dict[str, float]:
        if self.distance is None:
            return {}
        return {name: self.distance.measure(found) for name, found in clips.items() if len(found) > 1}

    def _measure_bits(self) -> None:
        given, generates = self._given, "generate" in self.card.tasks
        wanted = {"generator": 0} if generates else {}
        wanted |= {"predict": given}
        wanted |= {"unconditional": given} if self.conditions else {}
        nats, tokens = dict.fromkeys(wanted, 0.0), dict.fromkeys(wanted, 0)
        with progress("bits", len(self.codes), "clips") as bar:
            for clips in self._alike():
                keys, codes = zip(*clips, strict=True)
                grids = torch.from_numpy(np.stack(codes).astype(np.int64)).to(self.device)
                known = [self.conditions.of(key, grids.shape[1]) for key in keys]
                conditions = network_arguments(known, self.device)
                for name, first in wanted.items():
                    if grids.shape[1] > first:
                        seeds = [f"bits/{key}/{first}" for key in keys]
                        own = {} if name == "unconditional" else conditions
                        found = position_nats(self.network, self.card.objective, grids, first, _DRAWS, seeds, **own)
                        if name == ("generator" if generates else "predict"):
                            for each, values in zip(codes, found, strict=True):
                                self.statistics.add(each, values, first)
                        nats[name] += float(found.sum())
                        tokens[name] += grids[:, first:].numel()
                bar.advance(len(clips))
        self.scores.bits = {name: nats[name] / tokens[name] / log(2) for name in nats if tokens[name]}
        if self.training:
            models = NgramModels(self.card.tokenizer, self.training)
            self.scores.bits |= models.bits(self.codes, 0 if generates else given)

    def _alike(self) -> Iterator[list[tuple[str, np.ndarray]]]:
        """Yield keys and codes of consecutive held-out clips of one shape, at most a batch."""
        keys = [location.key for location in self.held_out.locations]
        for _, group in groupby(zip(keys, self.codes, strict=True), key=lambda clip: clip[1].shape):
            clips = list(group)
            yield from (clips[at : at + self.batch] for at in range(0, len(clips), self.batch))

    def _measure_pixels(self) -> None:
        rows: dict[str, list[dict[str, Any]]] = {}
        drawn: dict[str, list[np.ndarray]] = {}
        seeds, sampling = self.config.seeds, self.config.sampling
        estimates = {name: (seeds[:1], estimate) for name, estimate in self._estimates.items()}
        draws = {"generator": (seeds, sampling)} | estimates
        with progress("pixels", len(self.codes), "clips") as bar:
            for clips in self._clips():
                made = zip(*(self._draw(clips, *each) for each in draws.values()), strict=True)
                for clip in clips:
                    if self.fvd:
                        self.fvd.add(clip.frames)
                    ceiling = self._decode(clip.codes, len(clip.frames), clip.frames.shape[1:3])
                    for prompt in clip.prompts:
                        codes = dict(zip(draws, next(made), strict=True))
                        rows.setdefault(prompt.task, []).append(self._score(clip, prompt, codes, ceiling))
                        drawn.setdefault(prompt.task, []).append(codes["generator"][0])
                bar.advance(len(clips))
        self.scores.frechet |= self._measure_distances(drawn)
        for task, found in rows.items():
            score = TaskScore(BASELINES[task])
            for name in found[0]:
                score.psnr[name] = float(np.mean([row[name]["psnr"] for row in found]))
                if self.perceptual:
                    score.st_lpips[name] = float(np.mean([row[name]["st_lpips"] for row in found]))
                score.above[name] = float(np.mean([row[name]["psnr"] > row["baseline"]["psnr"] for row in found]))
                if task == "predict":
                    length = min(len(row[name]["curve"]) for row in found)
                    score.curve[name] = np.mean([row[name]["curve"][:length] for row in found], axis=0).tolist()
            self.scores.tasks[task] = score

    def _compare_steps(self, sampling: SamplingConfig) -> StepScore:
        """Measure random samples with other sampling settings, and the time that they take."""
        seconds, count, seeds = 0.0, 0, self.config.seeds
        psnrs: dict[str, list[float]] = {}
        drawn: dict[str, list[np.ndarray]] = {}
        with progress(f"{sampling.steps} steps", len(self.codes) if self.clips else 1, "clips") as bar:
            for clips in self._clips():
                started = perf_counter()
                found = self._draw(clips, seeds, sampling)
                seconds += perf_counter() - started
                count += len(found) * len(seeds)
                prompts = [(clip.frames, prompt) for clip in clips for prompt in clip.prompts]
                for (frames, prompt), made in zip(prompts, found, strict=True):
                    drawn.setdefault(prompt.task, []).append(made[0])
                    for codes in made:
                        shown = self._decode(codes, len(frames), frames.shape[1:3])
                        psnrs.setdefault(prompt.task, []).append(psnr(frames[prompt.hidden], shown[prompt.hidden]))
                bar.advance(len(clips))
            if self.config.samples and "generate" in self.card.tasks:
                started = perf_counter()
                drawn["generate"] = self._draw_samples(sampling)
                seconds += perf_counter() - started
                count += self.config.samples
        means = {task: float(np.mean(values)) for task, values in psnrs.items()}
        return StepScore(seconds / max(count, 1), means, self._measure_distances(drawn))

    def _clips(self) -> Iterator[list[_Clip]]:
        """Yield the held-out clips with frames, as many at once as are generated together."""
        clips: list[_Clip] = []
        for frames, location, codes in zip(
            self.held_out.read_frames(), self.held_out.locations, self.codes, strict=False
        ):
            assert self.tasks is not None
            condition = self.conditions.of(location.key, len(codes))
            clips.append(_Clip(location.key, codes, frames, [*self.tasks.prompts(codes, frames, condition)]))
            if len(clips) == self.batch:
                yield clips
                clips = []
        if clips:
            yield clips

    def _draw(self, clips: list[_Clip], seeds: tuple[int, ...], sampling: SamplingConfig) -> list[list[np.ndarray]]:
        """Generate the samples of each prompt of some clips; return their codes by prompt and seed."""
        wanted = [
            (clip.grid, SamplePrompt(seeded_rng(f"{seed}/{clip.key}/{task}"), given, condition))
            for clip in clips
            for task, _, given, condition in clip.prompts
            for seed in seeds
        ]
        made = sample_clips(self.network, self.card, wanted, sampling, self.vectors, self.batch)
        return [made[at : at + len(seeds)] for at in range(0, len(made), len(seeds))]

    def _score(
        self, clip: _Clip, prompt: Prompt, codes: dict[str, list[np.ndarray]], ceiling: np.ndarray
    ) -> dict[str, dict[str, Any]]:
        """Score the samples of a prompt, its baseline and its ceiling.

        Args:
            codes: samples by the name of their scores, whose means over the samples are returned.
            ceiling: decoded codes of the clip, ``t h w c`` uint8.
        """
        assert self.tasks is not None
        frames = clip.frames
        shown = {
            name: [self._decode(each, len(frames), frames.shape[1:3]) for each in made] for name, made in codes.items()
        }
        shown |= {"baseline": [self.tasks.baseline(prompt, frames)], "ceiling": [ceiling]}
        if self.fvd:
            self.fvd.add_other(prompt.task, shown["generator"][0])
        if self.pictures is not None and clip.key == self.held_out.locations[0].key:
            named = {name: shown[name][0] for name in ("generator", "baseline", "ceiling")}
            for name, each in ({"original": frames} | named).items():
                write_atomic(self.pictures / f"{prompt.task}-{name}.npy", encode_npy(each))
        return {
            name: _mean_rows([self._compare(frames, each, prompt.hidden) for each in videos])
            for name, videos in shown.items()
        }

    @property
    def _estimates(self) -> dict[str, SamplingConfig]:
        """Sampling settings that draw nothing at random, by the name of their scores."""
        probable = replace(self.config.sampling, temperature=0.0, estimate="mode")
        mean = {"mean": replace(probable, estimate="mean")} if self.vectors else {}
        return {"probable": probable} | mean

    def _decode(self, codes: np.ndarray, num_frames: int, size: tuple[int, ...]) -> np.ndarray:
        assert self.tokenizer is not None
        decoded = np.concatenate(list(iter_decode(self.tokenizer, codes, num_frames, (size[0], size[1]))))
        return shrink_frames(decoded, self.tokenizer.upscale)

    def _compare(self, original: np.ndarray, other: np.ndarray, part: np.ndarray) -> dict[str, Any]:
        """Compute PSNR over the hidden pixels, ST-LPIPS over the frames with hidden pixels, and PSNR per such frame."""
        frames = part.any((1, 2))
        row: dict[str, Any] = {"psnr": psnr(original[part], other[part])}
        row["curve"] = [psnr(original[at][part[at]], other[at][part[at]]) for at in np.flatnonzero(frames)]
        if self.perceptual:
            pair = [to_video(each[frames]).to(self.device)[0].transpose(0, 1) for each in (other, original)]
            with torch.no_grad():
                row["st_lpips"] = float(self.perceptual(*pair).mean())
        return row

    def _draw_samples(self, sampling: SamplingConfig) -> list[np.ndarray]:
        """Generate samples without a condition, of the most frequent grid."""
        shape, config, drawn = self.card.shapes[0], replace(sampling, guidance=1.0), list[np.ndarray]()
        with progress("samples", self.config.samples, "samples") as bar:
            for start in range(0, self.config.samples, self.batch):
                numbers = range(start, min(start + self.batch, self.config.samples))
                # The text is part of the seed; changing it changes the samples of every evaluation.
                rngs = [seeded_rng(f"{self.config.seeds[0]}/copies/{number}") for number in numbers]
                drawn += sample_codes(
                    self.network, self.card, shape, list(map(SamplePrompt, rngs)), config, self.vectors
                )
                bar.advance(len(numbers))
        return drawn

    def _measure_copies(self, drawn: list[np.ndarray]) -> None:
        cut = [codes[: self.card.limits[0]] for codes in self.training]
        distances, own = nearest_distances(drawn, cut), nearest_distances(self.codes, cut)
        self.scores.copies = float(np.mean([distance < 1 - _COPY_SHARE for distance in distances]))
        self.scores.nearest = float(np.mean(distances))
        shapes = {codes.shape for codes in cut}
        comparable = [distance for distance, codes in zip(own, self.codes, strict=True) if codes.shape in shapes]
        self.scores.nearest_held_out = float(np.mean(comparable)) if comparable else 1.0


def _mean_rows(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: np.mean([row[name] for row in rows], axis=0) for name in rows[0]}
