"""Opening of a request: checks it against the generator and builds its stage, before any work starts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vidvq.config import is_mapping
from vidvq.errors import UsageError
from vidvq.formats.checkpoint import checkpoint_name
from vidvq.formats.commit import read_commits
from vidvq.formats.generator import Generator, GeneratorCard, read_generator
from vidvq.formats.plan import has_plan, read_plan
from vidvq.formats.token_index import index_tokens
from vidvq.formats.token_shard import PREFIX, read_tokenizer_card
from vidvq.generate.conditions import ClipConditions, label_index, read_conditions
from vidvq.generate.requests import (
    FillConfig,
    InputConfig,
    InterpolateConfig,
    PredictConfig,
    RequestConfig,
    SampleConfig,
)
from vidvq.generate.sampling.codes import check_shape, given_latents
from vidvq.generate.sampling.execution import resolve_execution
from vidvq.generate.sampling.pipeline import sample_size
from vidvq.generate.sampling.regions import hide_region, read_mask, result_shape
from vidvq.generate.stages.pixel_stage import GenerateClips, GenerateVideos
from vidvq.generate.stages.token_stage import PredictTokens, SampleStage, gpus_per_worker
from vidvq.generate.text import open_text_encoder
from vidvq.jobs.plan_clips import SHARD_STAGE
from vidvq.jobs.stage import Stage
from vidvq.pretrained import find_tokenizer, load_tokenizer
from vidvq.storage import resolve_path
from vidvq.video.policy import VideoPolicy

_TASKS = {
    SampleConfig: "generate",
    PredictConfig: "predict",
    InterpolateConfig: "interpolate",
    FillConfig: "fill",
}
# The keys of samples have six digits.
_MAX_SAMPLES = 1_000_000


def open_request(run: Path, inputs: list[str], config: RequestConfig, checkpoint: Path) -> Stage[Any]:
    """Check a request and build its stage.

    Args:
        inputs: one directory of clip shards (or, for ``predict``, of token shards), or videos as for `vidvq shard`;
            empty for ``sample``.
        config: settings of the request; their type decides the task.

    Raises:
        UsageError: the generator was not trained for the task, or the inputs do not fit it.
    """
    generator, task = read_generator(run), _TASKS[type(config)]
    if task not in generator.card.tasks:
        raise UsageError(
            f"{run} was not trained to {task}; it was trained to {', '.join(generator.card.tasks)}. Train one with "
            f"tasks.{task}=1"
        )
    gpus = gpus_per_worker(config.runtime, config.device)
    common: dict[str, Any] = {
        "task": task,
        "generator": generator.path,
        "fingerprint": generator.fingerprint,
        "card": generator.card,
        "config": config,
        "execution": resolve_execution(config, "cuda" if gpus else "cpu"),
        "gpus": gpus,
    }
    if isinstance(config, SampleConfig):
        if inputs:
            raise UsageError(f"{inputs[0]} is one argument too many; sample takes a run and settings only")
        texts = config.read_texts()
        _check_sample(generator.card, config, len(texts))
        return SampleStage(**common, texts=texts, tokenizer=_find_decoder(generator, config, checkpoint))
    assert isinstance(config, InputConfig)
    if not inputs:
        kinds = "a directory of clip shards or token shards" if task == "predict" else "a directory of clip shards"
        raise UsageError(f"{task} takes {kinds}, or videos; got none")
    _check_conditions(generator.card, config)
    if isinstance(config, PredictConfig):
        _check_given(generator.card, config)
    if isinstance(config, FillConfig) and config.box is None and config.mask is None:
        raise UsageError("fill needs the region to generate: set box=[LEFT,TOP,WIDTH,HEIGHT] (pixels), or mask=FILE")
    planned = [folder for folder in map(resolve_path, inputs) if has_plan(folder)]
    if planned and len(inputs) > 1:
        raise UsageError(f"{planned[0]} is a directory of shards; pass it without other inputs")
    if not planned:
        return _open_videos(generator, config, checkpoint, common)
    (folder,) = planned
    if config.video is not None:
        raise UsageError(f"video.* is for videos; the frames of the shards in {folder} have a fixed size")
    plan = read_plan(folder)
    if plan.header.prefix == PREFIX:
        if not isinstance(config, PredictConfig):
            raise UsageError(
                f"{folder} holds tokens, and tokens of visible pixels depend on hidden ones; pass the clip shards"
            )
        conditions = _token_conditions(generator, folder, config)
        tokenizer = _find_decoder(generator, config, checkpoint)
        return PredictTokens(**common, tokens=folder, conditions=conditions, tokenizer=tokenizer)
    if plan.stage != SHARD_STAGE:
        raise UsageError(f"{folder} was written by vidvq {plan.stage}; pass a directory of clip shards")
    if isinstance(config, FillConfig):
        clip = plan.made_from.get("clip")
        size = clip.get("size") if is_mapping(clip) else None
        _check_region(generator.card, config, size, f"the clips in {folder}")
    tokenizer = _find_tokenizer(generator, config, checkpoint)
    conditions = _clip_conditions(generator.card, folder, config)
    return GenerateClips(clips=folder, **common, tokenizer=tokenizer, conditions=conditions)


def _open_videos(generator: Generator, config: InputConfig, checkpoint: Path, common: dict[str, Any]) -> GenerateVideos:
    card = generator.card
    if config.columns:
        raise UsageError(
            f"columns={config.columns} is for shards, not videos; pass clip shards, or set class= or text="
        )
    (_, lh, lw), s = card.shapes[0], card.tokenizer.spatial_factor
    video = config.video or VideoPolicy(size=(lh * s, lw * s))
    longest = 1 + (card.limits[0] - 1) * card.tokenizer.temporal_factor
    frames = longest
    if isinstance(config, InterpolateConfig) and config.insert:
        frames = 1 + (longest - 1) // (config.insert + 1)
        if frames < 2:
            raise UsageError(
                f"insert={config.insert} makes at least {config.insert + 2} frames, more than the {longest} that this "
                f"generator was trained on; set {longest - 2} or less"
            )
    if isinstance(config, PredictConfig):
        frames = config.given
        config = replace(config, frames=config.frames or max(longest, config.given + 1))
    if isinstance(config, FillConfig):
        _check_region(card, config, video.size, "the videos, scaled to video.size,")
    tokenizer = _find_tokenizer(generator, config, checkpoint)
    common["config"] = config
    return GenerateVideos(**common, tokenizer=tokenizer, frames=frames, video=video)


def _find_tokenizer(generator: Generator, config: RequestConfig, checkpoint: Path) -> Path:
    """Return the folder of the tokenizer, after checking that it fits the generator's tokens and the request."""
    tokenizer = find_tokenizer(checkpoint)
    model, card = load_tokenizer(tokenizer)
    remedy = "; set --checkpoint to the tokenizer that made them"
    _check_tokenizer(generator, card.token_fingerprint, checkpoint_name(checkpoint), remedy)
    if config.sampling.takes_mean:
        import torch

        model.latents(torch.zeros(1, 1, 1, 1, dtype=torch.int64))
    return tokenizer


def _find_decoder(generator: Generator, config: SampleConfig | PredictConfig, checkpoint: Path) -> Path | None:
    """Check that the tokenizer can decode the samples, unless they stay tokens; return it if codes are averaged."""
    if config.format == "none" and not config.sampling.takes_mean:
        return None
    found = _find_tokenizer(generator, config, checkpoint)
    return found if config.sampling.takes_mean else None


def _check_sample(card: GeneratorCard, config: SampleConfig, texts: int) -> None:
    if config.label is not None:
        label_index(card, config.label)
    if config.n * max(texts, 1) > _MAX_SAMPLES:
        each = f" for each of {texts} texts" if texts else ""
        raise UsageError(
            f"n={config.n}{each} is more than the {_MAX_SAMPLES:,} samples of a job; run several with different seeds"
        )
    if texts:
        open_text_encoder(card, config.text_encoder)
    if config.fps is None and not 0.001 <= card.fps <= 1000:
        raise UsageError(f"the training samples have {card.fps:g} frames per second; set fps= (0.001 to 1000)")
    frames, height, width = sample_size(card, config)
    r, s = card.tokenizer.temporal_factor, card.tokenizer.spatial_factor
    check_shape(card, (1 + -(-(frames - 1) // r), -(-height // s), -(-width // s)))


def _check_given(card: GeneratorCard, config: PredictConfig) -> None:
    given_latents(card, config.given)
    if config.frames is not None and config.frames <= config.given:
        raise UsageError(f"frames={config.frames} must be more than given={config.given}")


def _check_region(card: GeneratorCard, config: FillConfig, size: Sequence[int] | None, clips: str) -> None:
    """Check the region to fill as far as it is known before the clips are read.

    Args:
        size: height and width of all clips; None if they differ.
        clips: the clips, for the message.
    """
    mask = read_mask(config.mask) if config.mask else None
    if mask is not None:
        height, width = mask.shape[1:]
        if size and (height, width) != tuple(size):
            raise UsageError(
                f"each of {clips} has {size[1]}x{size[0]} pixels; mask={config.mask} has {width}x{height}, so use "
                "another mask"
            )
        size = height, width
    # A box enlarges the smallest clip the least.
    height, width = size or (1, 1)
    _, height_made, width_made = result_shape(config, (1, height, width))
    s = card.tokenizer.spatial_factor
    box = ",".join(map(str, config.box or ()))
    try:
        check_shape(card, (1, -(-height_made // s), -(-width_made // s)))
    except UsageError as error:
        if (height_made, width_made) == (height, width):
            raise
        raise UsageError(f"with box={box}, {error}, or a box inside of them") from None
    if size:
        try:
            hide_region(config, np.zeros((1 if mask is None else len(mask), height, width, 1), np.uint8), mask)
        except UsageError as error:
            raise UsageError(f"each of {clips} {error}") from None


def _check_tokenizer(generator: Generator, fingerprint: str, where: str, remedy: str = "") -> None:
    wanted = generator.card.tokenizer.token_fingerprint
    if fingerprint != wanted:
        raise UsageError(
            f"{generator.path} was trained on tokens of tokenizer {wanted[:12]}; {where} has tokenizer "
            f"{fingerprint[:12]}{remedy}"
        )


def _check_conditions(card: GeneratorCard, config: InputConfig) -> None:
    """Check the class and the text of a request, and the text encoder."""
    if config.label is not None:
        label_index(card, config.label)
    if config.text is not None or (config.columns and card.text):
        open_text_encoder(card, config.text_encoder)
    if isinstance(config, InterpolateConfig) and config.insert and config.columns and card.actions:
        raise UsageError(
            f"insert={config.insert} changes the frame rate, to which the actions in columns={config.columns} belong; "
            "use every= or leave columns out"
        )


def _clip_conditions(card: GeneratorCard, clips: Path, config: InputConfig) -> ClipConditions:
    """Read the conditions of the clips in a directory, by key."""
    if config.columns is None:
        return ClipConditions()
    commits = read_commits(clips, read_plan(clips).shard_names())
    keys = {member.key for commit in commits if commit for member in commit.members}
    return read_conditions(card, config.columns, keys)


def _token_conditions(generator: Generator, tokens: Path, config: PredictConfig) -> ClipConditions:
    """Check the tokens, and read the conditions of their clips, by key."""
    card = generator.card
    _check_tokenizer(generator, read_tokenizer_card(tokens).token_fingerprint, str(tokens))
    locations = index_tokens(tokens)
    if not locations:
        raise UsageError(f"{tokens} holds no tokens; nothing to predict")
    if config.columns is None:
        return ClipConditions()
    return read_conditions(card, config.columns, {location.key for location in locations})
