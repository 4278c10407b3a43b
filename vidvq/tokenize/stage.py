"""`vidvq tokenize` as two stages of the corpus job: over clip shards, and over raw video.

Imports no torch: the processes that probe and decode load this module.
"""

from abc import ABC
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidvq.config import to_dict
from vidvq.corpus.lists import ListPolicy
from vidvq.corpus.source import Source
from vidvq.errors import UsageError
from vidvq.formats.commit import Commit
from vidvq.formats.token_shard import CARD, PREFIX, TokenizerCard, encode_tokenizer_card
from vidvq.jobs.rows import ClipRow
from vidvq.jobs.stage import Activity, AnyRow, ClipStage, Stage, Thumbnail, VideoStage
from vidvq.runtime import Pool
from vidvq.tokenize.config import TokenizeConfig
from vidvq.tokenize.probe import probe_samples, reject
from vidvq.tokenize.quality_gates import QualityGates
from vidvq.tokenize.rows import PlannedSample
from vidvq.video.policy import VideoPolicy

if TYPE_CHECKING:
    from vidvq.tokenize.worker import TokenShardWorker

_GPU_BATCH = 8
_VIDEO_IDENTITY = ("video", "gop_frames", "items_per_shard", "lists", "limits")
# An unbroken stream may be hours long.
_ESTIMATED_FRAMES = 128


@dataclass(frozen=True, kw_only=True)
class _TokenizeStage(Stage[AnyRow], ABC):
    """Base of both stages.

    Attributes:
        config: settings, with ``batch`` resolved for this machine.
        checkpoint: folder of the tokenizer.
        card: the tokenizer's card.
        clips: directory of clip shards; None for raw video.
        gpus: number of GPUs per worker.
    """

    config: TokenizeConfig
    checkpoint: Path
    card: TokenizerCard
    clips: Path | None = None
    gpus: float = 0
    name = "tokenize"
    prefix = PREFIX
    work = "encode"
    activities = {  # noqa: RUF012 (a constant)
        "encode": Activity("encoding"),
        "fetch": Activity("reading and checking clip shards", "storage that is nearer or faster"),
        "decode": Activity("waiting for decoded frames", "more CPUs for each worker"),
        "score": Activity("scoring", "a smaller quality.share"),
    }
    totals = ("frames", "tokens")
    config_type = TokenizeConfig
    thumbnail_count = 6
    sheet_title = "Samples drawn from all shards: originals above, decoded frames below"

    def files(self) -> dict[str, bytes]:
        """``tokenizer.json``."""
        return {CARD: encode_tokenizer_card(self.card)}

    def monitor(self) -> QualityGates:
        """Build the quality gates."""
        return QualityGates(self.card, self.config.quality)

    def worker(self, pool: Pool) -> "TokenShardWorker":
        """Build the worker, in its process."""
        from vidvq.tokenize.worker import TokenShardWorker

        return TokenShardWorker(self.checkpoint, self.config, self.clips)

    def thumbnails(self, out: Path, drawn: Sequence[tuple[Commit, AnyRow]], pool: Pool) -> Iterator[Thumbnail]:
        """Yield originals above decoded frames."""
        from vidvq.tokenize.thumbnails import token_thumbnails

        return token_thumbnails(out, drawn, self.checkpoint, self.config, self.clips, pool)

    def _written_as(self) -> dict[str, Any]:
        """How samples are written. Defaults are left out, so that older plans keep their ids."""
        config = self.config
        written: dict[str, Any] = {"pack": True} if config.pack else {}
        if (config.batch or 1) > 1:
            written["batch"] = config.batch
        if config.quality.share:
            # Scores depend on the decoder too.
            written["quality"] = {"share": config.quality.share, "decoder_fingerprint": self.card.decoder_fingerprint}
            written["quality"] |= {"perceptual": True} if config.quality.perceptual else {}
        return written

    @classmethod
    def open(cls, inputs: list[str], config: TokenizeConfig, **options: Any) -> Stage[Any]:
        """Build the stage for clip shards or videos; the option is ``checkpoint``."""
        return open_stage(inputs, options["checkpoint"], config)

    @classmethod
    def settings_of(cls, made_from: dict[str, Any]) -> dict[str, Any]:
        """The settings that a plan was made with, as far as it keeps them."""
        settings = super().settings_of(made_from)
        settings["batch"] = made_from.get("batch", 1)
        # The fingerprint of the decoder that scored comes from the checkpoint.
        settings["quality"] = {**made_from.get("quality", {})}
        settings["quality"].pop("decoder_fingerprint", None)
        return settings


@dataclass(frozen=True, kw_only=True)
class TokenizeVideos(_TokenizeStage[PlannedSample], VideoStage[PlannedSample]):
    """Tokenizes raw video, with one sample for each restart of the stream."""

    row = PlannedSample

    @property
    def lists(self) -> ListPolicy:
        """Meaning of the columns of lists."""
        return self.config.lists

    @property
    def per_shard(self) -> int:
        """Number of planned samples in one shard."""
        return self.config.items_per_shard

    @property
    def deadline_s(self) -> float:
        """Time limit of probing one video (seconds)."""
        return self.config.limits.deadline_s

    def identity(self) -> dict[str, Any]:
        """The settings that decide which frames are encoded, and the tokenizer."""
        settings = to_dict(self.config)
        decisive = {name: settings[name] for name in _VIDEO_IDENTITY}
        decisive["lists"] = self.config.lists.identity()
        return decisive | {"token_fingerprint": self.card.token_fingerprint} | self._written_as()

    def probe(self, source: Source) -> list[PlannedSample]:
        """The samples of one video."""
        return probe_samples(source, self.config)

    def reject(self, source: Source, reason: str, detail: str) -> PlannedSample:
        """The row of a video that fails as a whole."""
        return reject(source, reason, detail)

    def shorten(self, rows: list[PlannedSample]) -> list[PlannedSample]:
        """The first samples of one video, each cut to a few frames."""
        return [replace(row, num_frames=min(row.num_frames, _ESTIMATED_FRAMES)) for row in super().shorten(rows)]


@dataclass(frozen=True, kw_only=True)
class TokenizeClips(_TokenizeStage[ClipRow], ClipStage):
    """Tokenizes the clips of clip shards."""

    row = ClipRow

    def identity(self) -> dict[str, Any]:
        """Fingerprint of the tokenizer, and how samples are written."""
        return {"token_fingerprint": self.card.token_fingerprint} | self._written_as()


def open_stage(sources: list[str], checkpoint: Path, config: TokenizeConfig) -> Stage[Any]:
    """Check the arguments of a job, and read the card of the tokenizer.

    Args:
        sources: a directory of clip shards, or videos.
        checkpoint: a checkpoint, or a training run.
        config: settings.

    Raises:
        UsageError: a mistake in the arguments.
    """
    import torch

    from vidvq.pretrained import find_tokenizer, load_tokenizer
    from vidvq.tokenize.quality import Scorer

    folder = find_tokenizer(checkpoint)
    tokenizer, card = load_tokenizer(folder)
    clips = ClipStage.find_clips(sources)
    # Raises if scoring needs weights that are not installed.
    Scorer(tokenizer, config.quality)
    gpus = 1 if torch.cuda.is_available() else 0
    config = replace(config, batch=config.batch or (_GPU_BATCH if gpus else 1))
    if clips:
        if config.video != VideoPolicy():
            raise UsageError(
                f"video.* is for raw video; the clips in {clips} have the size and rate they were cut with"
            )
        return TokenizeClips(clips=clips, config=config, checkpoint=folder, card=card, gpus=gpus)
    if config.where:
        raise UsageError(
            f"where={config.where!r} selects clips; lists.where selects raw videos by the columns of lists"
        )
    _check_gop(config.gop_frames, card.temporal_factor)
    if config.gop_frames is None and not tokenizer.supports_streaming:
        raise UsageError(
            f"gop_frames=null needs a tokenizer that supports streaming; {type(tokenizer).__name__} does not"
        )
    return TokenizeVideos(config=config, checkpoint=folder, card=card, gpus=gpus)


def _check_gop(gop_frames: int | None, temporal_factor: int) -> None:
    """Refuse a length that is not a whole number of the tokenizer's groups."""
    if gop_frames is not None and (over := (gop_frames - 1) % temporal_factor):
        below = gop_frames - over
        raise UsageError(
            f"gop_frames={gop_frames} must be 1 + a multiple of {temporal_factor}; nearest {below} or "
            f"{below + temporal_factor}"
        )
