"""Settings of the commands of `vidvq generate`, except train. Imports no torch."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, Strict

from vidvq.corpus.lists import ListPolicy
from vidvq.errors import UsageError
from vidvq.formats.execution import Precision
from vidvq.runtime import RuntimeConfig
from vidvq.storage import resolve_path, sha256_bytes
from vidvq.video.limits import MAX_DEADLINE_S, Limits
from vidvq.video.policy import VideoPolicy

Count = Annotated[int, Field(ge=1)]
Batch = Annotated[int, Field(ge=1, le=256)]
Frames = Annotated[int, Field(ge=1, le=1_000_000)]
# A truth value is no class: YAML reads ``no`` as one.
Label = str | Annotated[int, Strict()] | Annotated[float, Strict()]


@dataclass(frozen=True)
class SamplingConfig:
    """Sampling of the codes.

    Attributes:
        steps: number of parallel decoding steps, per clip (``masked``) or per latent frame (``next``) (1 or more).
        temperature: softmax temperature (0, or 0.001 to 1000); 1 keeps the model's distribution, 0 draws nothing at
            random.
        estimate: code that ``temperature=0`` takes: ``mode``, the most probable one, or ``mean``, the one whose vector
            is nearest to the mean of the code vectors, which has the least expected squared error.
        top_p: cumulative probability of the codes that nucleus sampling keeps (above 0, at most 1); 1 keeps all.
        guidance: scale of classifier-free guidance (Ho and Salimans 2022), 0 to 1000; 1 turns it off.
        order: order of revealing the codes: ``halton``, ``random`` or ``confidence``.
    """

    steps: Annotated[int, Field(ge=1)] = 12
    temperature: Annotated[float, Field(ge=0, le=1000)] = 1.0
    estimate: Literal["mode", "mean"] = "mode"
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    guidance: Annotated[float, Field(ge=0, le=1000)] = 1.0
    order: Literal["halton", "random", "confidence"] = "halton"

    def __post_init__(self) -> None:
        # Logits divided by less overflow, and the codes would be those of no distribution.
        if 0 < self.temperature < 1e-3:
            raise UsageError(f"temperature={self.temperature} must be 0 (nothing at random), or 0.001 or more")
        if self.estimate == "mean" and self.temperature:
            raise UsageError(f"estimate=mean draws nothing at random, but temperature={self.temperature}; set it to 0")

    @property
    def takes_mean(self) -> bool:
        """Whether code vectors are needed."""
        return self.estimate == "mean"


def _in_process() -> RuntimeConfig:
    # Ray takes seconds to start.
    return RuntimeConfig(workers=0)


@dataclass(frozen=True, kw_only=True)
class RequestConfig:
    """Settings of all commands that generate.

    Attributes:
        seed: sampling seed. A sample depends on the seed and its key, not on the workers.
        sampling: sampling of the codes.
        format: format of the decoded video in ``OUT/video``: ``mp4``, ``gif``, ``png`` or ``npy``; ``none`` writes
            tokens only.
        batch: samples that a worker generates together (1 to 256); None means 16 on a GPU and 1 on CPUs. Recorded in
            the plan, because kernels round differently for another batch size.
        device: ``cpu`` or ``cuda``; ``auto`` means the GPUs of the cluster, or of this machine, where there are some.
        precision: type of the network on a GPU: ``bf16``, ``tf32`` or ``fp32``; None means ``bf16`` there, and
            ``fp32`` on CPUs. Codes are always drawn in fp32.
        deadline_s: time limit for decoding one clip (seconds).
        max_failed: fraction of the samples that may fail (0 to 1); above it the exit code is 1.
        runtime: workers of the job; they do not change the output. By default the job runs in this process, because
            Ray takes seconds to start.
    """

    seed: int = 0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    batch: Batch | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision | None = None
    format: Literal["mp4", "gif", "png", "npy", "none"] = "mp4"
    deadline_s: Annotated[float, Field(gt=0, le=MAX_DEADLINE_S)] = 600.0
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.0
    runtime: RuntimeConfig = field(default_factory=_in_process)

    def identity(self) -> dict[str, Any]:
        """Return the settings that the samples depend on, as JSON types."""
        return {"seed": self.seed, "sampling": vars(self.sampling)}


@dataclass(frozen=True, kw_only=True)
class SampleConfig(RequestConfig):
    """Settings of `vidvq generate sample`.

    Attributes:
        n: number of samples, of each text if there are texts (1 or more). A job makes at most 1,000,000 samples.
        label: class of the samples, ``class=`` on the command line; None for no class.
        text: text of the samples; None for no text.
        prompts: text file with one text per line, blank lines left out; None for ``text``.
        text_encoder: folder or name of the text encoder that the generator was trained with; None for where it was in
            training.
        frames: number of frames per sample (1 to 1,000,000); None for the most frequent one of the training samples.
        height: frame height (pixels); None for the most frequent one of the training samples.
        width: frame width (pixels); None for the most frequent one of the training samples.
        fps: frame rate (frames per second, 0.001 to 1000); None for the median of the training samples.
        items_per_shard: number of samples per token shard (1 or more).
    """

    n: Count = 16
    label: Label | None = None
    text: str | None = None
    prompts: str | None = None
    text_encoder: str | None = None
    frames: Frames | None = None
    height: Count | None = None
    width: Count | None = None
    fps: Annotated[float, Field(ge=0.001, le=1000)] | None = None
    items_per_shard: Count = 256

    def identity(self) -> dict[str, Any]:
        """The settings that the samples depend on, except the texts, as JSON types."""
        names = ("n", "label", "frames", "height", "width", "fps", "items_per_shard")
        return super().identity() | {name: getattr(self, name) for name in names}

    def __post_init__(self) -> None:
        if self.text is not None and self.prompts is not None:
            raise UsageError(f"text={self.text} and prompts={self.prompts} exclude each other; set one of them")

    def read_texts(self) -> tuple[str, ...]:
        """Return the texts to sample; empty for no text condition.

        Raises:
            UsageError: ``prompts`` is not readable or holds no text.
        """
        if self.prompts is None:
            return () if self.text is None else (self.text,)
        try:
            lines = resolve_path(self.prompts).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise UsageError(f"prompts={self.prompts} cannot be read as a text file: {error}") from error
        found = tuple(line.strip() for line in lines if line.strip())
        if not found:
            raise UsageError(f"prompts={self.prompts} holds no text; write one per line")
        return found


@dataclass(frozen=True, kw_only=True)
class InputConfig(RequestConfig):
    """Settings of the commands that take clips or videos.

    Attributes:
        label: class of all clips, ``class=`` on the command line; None for the classes in ``columns``.
        text: text about all clips; None for the texts in ``columns``.
        columns: directory of clip shards with the columns of the conditions; None generates without them.
        text_encoder: folder or name of the text encoder that the generator was trained with; None for where it was in
            training.
        video: frame rate and size of videos; None scales and crops them to the most frequent size of the training
            samples.
        lists: columns of input lists of videos.
        limits: limits on a single video.
        items_per_shard: number of videos per token shard (1 or more).
    """

    label: Label | None = None
    text: str | None = None
    columns: str | None = None
    text_encoder: str | None = None
    video: VideoPolicy | None = None
    lists: ListPolicy = field(default_factory=ListPolicy)
    limits: Limits = field(default_factory=Limits)
    items_per_shard: Count = 256

    def identity(self) -> dict[str, Any]:
        """The settings that the samples depend on, as JSON types; of the conditions, those for all clips."""
        given = {"label": self.label, "text": self.text}
        return super().identity() | {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class PredictConfig(InputConfig):
    """Settings of `vidvq generate predict`.

    Attributes:
        given: number of first frames of each clip to continue (1 + a multiple of the temporal factor).
        frames: number of frames of the result, including the given ones (1 to 1,000,000); None for the length of the
            clip, or for videos that of the longest training sample.
    """

    given: Count = 5
    frames: Frames | None = None

    def identity(self) -> dict[str, Any]:
        """The settings that the samples depend on, as JSON types."""
        return super().identity() | {"given": self.given, "frames": self.frames}


@dataclass(frozen=True, kw_only=True)
class InterpolateConfig(InputConfig):
    """Settings of `vidvq generate interpolate`.

    Attributes:
        every: interval of the frames to keep (frames, 2 or more), counted from the first; the last frame is kept too.
            None keeps the first and the last frame.
        insert: number of frames to generate between each two consecutive frames (1 or more), which multiplies the frame
            rate by ``insert + 1``; None inserts none.
    """

    every: Annotated[int, Field(ge=2)] | None = None
    insert: Count | None = None

    def __post_init__(self) -> None:
        if self.every and self.insert:
            raise UsageError(f"every={self.every} and insert={self.insert} exclude each other; set one of them")

    def identity(self) -> dict[str, Any]:
        """The settings that the samples depend on, as JSON types."""
        return super().identity() | {"every": self.every} | ({"insert": self.insert} if self.insert else {})


@dataclass(frozen=True, kw_only=True)
class FillConfig(InputConfig):
    """Settings of `vidvq generate fill`.

    Attributes:
        box: region to generate in every frame: left edge, top edge, width and height (pixels). Parts outside the frame
            enlarge it. None uses ``mask``.
        mask: file with the region to generate, of the size of the frames: a PNG, bright where to generate, or an npy of
            shape ``h w`` or ``t h w``, 0 where not; None uses ``box``.
        outside: whether to generate the rest of the frame instead of the box or the mask.
    """

    box: tuple[int, int, int, int] | None = None
    mask: str | None = None
    outside: bool = False

    def __post_init__(self) -> None:
        if self.box and self.mask:
            raise UsageError(f"box={','.join(map(str, self.box))} and mask={self.mask} exclude each other; set one")
        if self.box and min(self.box[2:]) < 1:
            raise UsageError(f"box={','.join(map(str, self.box))} needs a width and a height of 1 or more (pixels)")

    def identity(self) -> dict[str, Any]:
        """The settings that the samples depend on, as JSON types; of a mask, its content."""
        found = super().identity() | {"box": list(self.box or ()), "outside": self.outside}
        return found | ({"mask": sha256_bytes(resolve_path(self.mask).read_bytes())} if self.mask else {})


@dataclass(frozen=True, kw_only=True)
class GuideConfig:
    """Settings of `vidvq generate guide`.

    Attributes:
        seed: seed of the crops. A sample depends on the seed and its key, not on the workers.
        steps: number of optimizer steps (1 or more).
        lr: learning rate of Adam (standard deviations of a clip's latents, above 0).
        crops: number of random crops that a step compares with the text (1 or more), each of a random frame.
        keep: weight of the mean squared distance to the original latents (0 or more); larger values change less.
        format: format of the decoded video in ``OUT/video``: ``mp4``, ``gif``, ``png`` or ``npy``; ``none`` writes
            tokens only.
        max_failed: fraction of the samples that may fail (0 to 1); above it the exit code is 1.
        runtime: workers of the job; they do not change the output.
    """

    seed: int = 0
    steps: Count = 100
    lr: Annotated[float, Field(gt=0)] = 0.1
    crops: Count = 16
    keep: Annotated[float, Field(ge=0)] = 0.0
    format: Literal["mp4", "gif", "png", "npy", "none"] = "mp4"
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.0
    runtime: RuntimeConfig = field(default_factory=_in_process)

    def identity(self) -> dict[str, Any]:
        """Return the settings that the samples depend on, as JSON types."""
        return {name: getattr(self, name) for name in ("seed", "steps", "lr", "crops", "keep")}


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of `vidvq generate evaluate`.

    Attributes:
        clips: number of held-out clips to score, from the start of the directory (1 or more).
        given: number of frames that condition a prediction (1 + a multiple of the temporal factor).
        samples: number of samples to generate, and to compare with the training samples and the held-out clips; 0 for
            none.
        seeds: sampling seeds (1 or more); scores are means over them.
        batch: samples to generate together (1 to 256); None means 16 on a GPU and 1 on CPUs. Kernels round differently
            for another batch size.
        sampling: sampling of the codes.
        compare_steps: numbers of decoding steps to compare (1 or more each), in quality and time.
        perceptual: whether to compute ST-LPIPS as well as PSNR.
        fvd_backbone: path of the weights of I3D for Kinetics-400 (RGB; .safetensors, .pt or .pth), to compute FVD; None
            for no FVD.
        fvd_frames: length of the windows that FVD compares (frames, 9 or more). Clips are cut into consecutive windows.
        training_samples: largest number of training samples to compare with, spread evenly over the training tokens
            (1 or more).
        text_encoder: folder or name of the text encoder that the generator was trained with; None for where it was in
            training.
    """

    clips: Count = 16
    given: Count = 5
    samples: Annotated[int, Field(ge=0)] = 16
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    batch: Batch | None = None
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    compare_steps: tuple[Count, ...] = ()
    perceptual: bool = False
    fvd_backbone: str | None = None
    fvd_frames: Annotated[int, Field(ge=9, le=1024)] = 16
    training_samples: Count = 10_000
    text_encoder: str | None = None


@dataclass(frozen=True, kw_only=True)
class PlayConfig:
    """Settings of `vidvq generate play`.

    Attributes:
        seed: seed of the frames; the same keys lead to the same frames.
        starts: number of samples to start from (1 or more).
        given: frames of a start (1 + a multiple of the temporal factor).
        keys: action of each key, by the name that browsers give it: ``{ArrowLeft: [-1, 0]}``; None for the digits, with
            the most frequent actions of the training clips.
        sampling: sampling of the codes.
    """

    seed: int = 0
    starts: Count = 24
    given: Count = 1
    keys: dict[str, tuple[float, ...]] | None = None
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(steps=6))
