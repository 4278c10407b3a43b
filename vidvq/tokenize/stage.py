"""`vidvq tokenize` as two stages of the corpus job: over clip shards, and over raw video.

Imports no torch: the processes that probe and decode load this module.
"""

from abc import ABC
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from vidvq.config import to_dict
from vidvq.corpus.source import Source
from vidvq.errors import UsageError, WorkerLost
from vidvq.formats.commit import Commit
from vidvq.formats.execution import ANY_GPU, CPU, Execution
from vidvq.formats.plan import has_plan, read_plan
from vidvq.formats.token_shard import CARD, PREFIX, TokenizerCard, encode_tokenizer_card
from vidvq.jobs.rows import ClipRow
from vidvq.jobs.stage import Activity, AnyRow, ClipStage, Stage, Thumbnail, VideoStage
from vidvq.log import info, progress
from vidvq.runtime import Pool, Runtime, WorkerDied, count_gpus
from vidvq.tokenize.config import TokenizeConfig, resolve_execution
from vidvq.tokenize.probe import probe_samples, reject
from vidvq.tokenize.quality_gates import QualityGates
from vidvq.tokenize.rows import PlannedSample
from vidvq.video.policy import VideoPolicy

if TYPE_CHECKING:
    from vidvq.tokenize.worker import TokenShardWorker

# Groups per call for streams without a common length.
_STREAM_GROUPS = 8
_VIDEO_IDENTITY = ("video", "gop_frames", "items_per_shard", "lists", "limits")
# An unbroken stream may be hours long.
_ESTIMATED_FRAMES = 128


@dataclass(frozen=True, kw_only=True)
class _TokenizeStage(Stage[AnyRow], ABC):
    """Base of both stages.

    Attributes:
        clips: directory of clip shards; None for raw video.
        gpus: number of GPUs per worker.
    """

    config: TokenizeConfig
    checkpoint: Path
    card: TokenizerCard
    execution: Execution = CPU
    clips: Path | None = None
    gpus: float = 0
    name = "tokenize"
    prefix = PREFIX
    lookahead = True
    work = "encode"
    activities = {  # noqa: RUF012 (a constant)
        "encode": Activity("encoding"),
        "pad": Activity("encoding padding", "groups and batch that suit the lengths of the samples"),
        "warmup": Activity("compiling the network", "longer jobs, or runtime.compile=off"),
        "fetch": Activity("reading and checking clip shards", "storage that is nearer or faster"),
        "decode": Activity(
            "waiting for decoded frames", "more CPUs for each worker, or clips of clip.encoding=h264-fastdecode"
        ),
        "score": Activity("scoring", "a smaller quality.share"),
    }
    totals = ("frames", "tokens")
    config_type = TokenizeConfig
    thumbnail_count = 6
    sheet_title = "Samples drawn from all shards: originals above, decoded frames below"

    def prepare(self, out: Path, runtime: Runtime) -> Self:
        """Determine the kind of GPU and the step that fits its memory, by a trial or from an existing plan."""
        if self.execution.device != "cuda":
            return self
        if has_plan(out):
            recorded: dict[str, Any] = read_plan(out).made_from.get("execution", {})
            kept = replace(self.execution, max_pixels=recorded.get("max_pixels", self.execution.max_pixels))
            if ANY_GPU not in (kept.gpu, recorded.get("gpu")):
                kept = replace(kept, gpu=recorded.get("gpu"))
            return replace(self, execution=kept)
        pool = runtime.pool(1)
        make = partial(_make_probe, self.checkpoint, self.config.quality.share > 0, self.gpus)
        ((_, found),) = pool.map_stateful(make, [self.execution], gpus=self.gpus)
        if isinstance(found, WorkerDied):
            raise WorkerLost(f"trying a step on a GPU failed: {found.message}; run the same command again")
        if found.max_pixels < self.execution.max_pixels:
            gpu = "the GPU that tried it" if found.gpu == ANY_GPU else found.gpu
            info(
                f"a step of {self.execution.max_pixels / 1e6:.0f} megapixels does not fit the memory of {gpu}; "
                f"steps have at most {found.max_pixels / 1e6:.0f} megapixels, with fewer streams or groups"
            )
        return replace(self, execution=found)

    def files(self) -> dict[str, bytes]:
        """``tokenizer.json``."""
        execution = None if self.execution.is_default else self.execution.to_json()
        return {CARD: encode_tokenizer_card(replace(self.card, execution=execution))}

    def monitor(self) -> QualityGates:
        """Build the quality gates."""
        return QualityGates(self.card, self.config.quality)

    def worker(self, pool: Pool) -> "TokenShardWorker":
        """Build the worker, in its process."""
        from vidvq.tokenize.worker import TokenShardWorker

        return TokenShardWorker(self.checkpoint, self.config, self.clips, self.execution)

    def thumbnails(self, out: Path, drawn: Sequence[tuple[Commit, AnyRow]]) -> Iterator[Thumbnail]:
        """Yield originals above decoded frames."""
        from vidvq.tokenize.thumbnails import token_thumbnails

        if not drawn:
            return
        with progress("thumbnails", None, "clips") as bar:
            for thumbnail in token_thumbnails(out, drawn, self.checkpoint, self.config, self.clips):
                bar.advance()
                yield thumbnail

    def _written_as(self) -> dict[str, Any]:
        """How samples are written. Defaults are left out, so that older plans keep their ids."""
        config = self.config
        written: dict[str, Any] = {"pack": True} if config.pack else {}
        if self.execution.is_default and self.execution.streams > 1:
            written["batch"] = self.execution.streams
        if not self.execution.is_default:
            written["execution"] = self.execution.to_json()
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
        """The settings of a plan, as far as its header has them."""
        settings = super().settings_of(made_from)
        execution = made_from.get("execution") or {**CPU.to_json(), "streams": made_from.get("batch", 1)}
        settings["batch"] = execution["streams"]
        settings |= {name: execution[name] for name in ("device", "precision", "groups")}
        settings["kernels"] = execution.get("kernels", "torch")
        settings["mixed_gpus"] = execution.get("gpu") == ANY_GPU
        # The fingerprint of the decoder that scored comes from the checkpoint.
        settings["quality"] = {**made_from.get("quality", {})}
        settings["quality"].pop("decoder_fingerprint", None)
        return settings


@dataclass(frozen=True, kw_only=True)
class TokenizeVideos(_TokenizeStage[PlannedSample], VideoStage[PlannedSample]):
    """Tokenizes raw video, with one sample for each restart of the stream."""

    row = PlannedSample

    @property
    def per_shard(self) -> int:
        """Number of planned samples in one shard."""
        return self.config.items_per_shard

    def identity(self) -> dict[str, Any]:
        """The settings that decide which frames are encoded, and the tokenizer."""
        settings = to_dict(self.config)
        decisive = {name: settings[name] for name in _VIDEO_IDENTITY}
        decisive |= {"lists": self.config.lists.identity(), "limits": self.config.limits.identity()}
        # The default is left out, so that older plans keep their ids.
        decisive |= {"decoder": self.config.decoder} if self.config.decoder != "pyav" else {}
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

    Raises:
        UsageError: a mistake in the arguments.
    """
    from vidvq.pretrained import find_tokenizer, load_tokenizer
    from vidvq.pretrained.device import find_device
    from vidvq.tokenize.quality import Scorer

    folder = find_tokenizer(checkpoint)
    tokenizer, card = load_tokenizer(folder)
    clips = ClipStage.find_clips(sources)
    # Raises if scoring needs weights that are not installed.
    Scorer(tokenizer, config.quality)
    device = find_device(config.device, partial(count_gpus, config.runtime))
    gpus = config.runtime.gpus_per_worker if device == "cuda" else 0
    frames = _sample_frames(clips) if clips else config.gop_frames
    groups = tokenizer.latent_shape(frames, 1, 1)[0] if frames and tokenizer.supports_streaming else _STREAM_GROUPS
    execution = resolve_execution(config, device, groups)
    _check_decoder(config, clips, device)
    found: dict[str, Any] = {"config": config, "execution": execution, "checkpoint": folder, "card": card, "gpus": gpus}
    if clips:
        if config.video != VideoPolicy():
            raise UsageError(
                f"video.* is for raw video; the clips in {clips} have the size and rate they were cut with"
            )
        if config.gop_frames != TokenizeConfig.gop_frames:
            raise UsageError(
                f"gop_frames={config.gop_frames} is for raw video; each clip in {clips} is one sample. Leave it out"
            )
        return TokenizeClips(clips=clips, **found)
    if config.where:
        raise UsageError(
            f"where={config.where!r} selects clips; lists.where selects raw videos by the columns of lists"
        )
    _check_gop(config.gop_frames, card.temporal_factor)
    if config.gop_frames is None and not tokenizer.supports_streaming:
        raise UsageError(
            f"gop_frames=null needs a tokenizer that supports streaming; {type(tokenizer).__name__} does not"
        )
    return TokenizeVideos(**found)


def _make_probe(checkpoint: Path, decodes: bool, gpus: float) -> Callable[[Execution], Execution]:
    from vidvq.tokenize.gpu_memory import probe_gpu

    return lambda execution: probe_gpu(checkpoint, execution, decodes, gpus)


def _sample_frames(clips: Path) -> int | None:
    """Return the length of a full clip of a directory of clip shards (frames)."""
    clip = read_plan(clips).made_from.get("clip")
    return clip.get("num_frames") if isinstance(clip, dict) else None


def _check_decoder(config: TokenizeConfig, clips: Path | None, device: str) -> None:
    """Refuse ``decoder=nvdec`` where decoding processes see no GPU, or decode no video."""
    if config.decoder == "pyav":
        return
    if clips:
        raise UsageError(f"decoder={config.decoder} is for raw video; PyAV decodes the short clips in {clips} faster")
    if device != "cuda" or config.runtime.decode_on != "node":
        raise UsageError(
            f"decoder={config.decoder} needs device=cuda and runtime.decode_on=node, "
            f"not {device} and {config.runtime.decode_on}; or set decoder=pyav"
        )


def _check_gop(gop_frames: int | None, temporal_factor: int) -> None:
    """Refuse a length that is not a whole number of the tokenizer's groups."""
    if gop_frames is not None and (over := (gop_frames - 1) % temporal_factor):
        below = gop_frames - over
        raise UsageError(
            f"gop_frames={gop_frames} must be 1 + a multiple of {temporal_factor}; nearest {below} or "
            f"{below + temporal_factor}"
        )
