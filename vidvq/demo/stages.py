"""Stages of the demo: the regular commands, with their arguments."""

from dataclasses import dataclass
from pathlib import Path

VIDEOS = Path(__file__).parent / "videos"
SPLITS = ("train", "heldout")
# Settings of `vidvq generate evaluate`.
_GENERATOR_SCORES = ("samples=0", "seeds=[0]", "sampling.temperature=0", "sampling.estimate=mean")
# Settings for a smoke test; the model is too small and too briefly trained to be useful.
_QUICK_TRAINING = (
    *("steps=20", "generator.warmup_steps=5", "log_every=5", "checkpoint_every=20", "data.cache_mib=64"),
    *("model.quantizer.spatial.warmup=5", "model.quantizer.temporal.warmup=5"),
    *("loss.adversarial_start=15", "loss.discriminator_warmup=5"),
    *(
        "model.encoder.channels=[32,32]",
        "model.decoder.channels=[32,32]",
        "model.decoder.blocks=[1,2]",
        "data.batch_size=2",
    ),
)
_QUICK_GENERATOR = (
    *("steps=3", "checkpoint_every=3", "log_every=1", "data.batch_size=2", "data.workers=0"),
    "model={width: 24, depth: 1, heads: 2, copy_radius: 1}",
)


@dataclass(frozen=True)
class StageSettings:
    """Settings that are added to the commands.

    Attributes:
        shard: of `vidvq shard`.
        train: of `vidvq train`.
        tokenize: of `vidvq tokenize`.
        generator: of `vidvq generate train`.
        scores: of `vidvq generate evaluate`.
    """

    shard: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    tokenize: tuple[str, ...] = ()
    generator: tuple[str, ...] = ()
    scores: tuple[str, ...] = ("clips=4",)


QUICK = StageSettings(
    shard=("clip.short_side=64", "runtime.workers=1"),
    train=_QUICK_TRAINING,
    tokenize=("runtime.workers=1",),
    generator=_QUICK_GENERATOR,
    scores=("clips=1", "sampling.steps=2"),
)


def stages(out: Path, settings: StageSettings | None = None) -> dict[str, list[str]]:
    """Return the arguments of each stage of a demo in ``out``, by the name of the stage, in execution order."""
    settings = settings or StageSettings()
    train, held_out = str(out / "train"), str(out / "clips" / "heldout")
    tokens, shipped, generator = out / "tokens", out / "bundled", str(out / "generator")
    stages: dict[str, list[str]] = {}
    for split in SPLITS:
        to = ["--out", str(out / "clips" / split), "--config", "demo-shard"]
        stages[f"shard {split}"] = ["shard", str(VIDEOS / split), *to, *settings.shard]
    given = [f"data.clips={out / 'clips' / 'train'}", f"out={train}"]
    stages["train"] = ["train", "demo", *given, *settings.train]
    for split in SPLITS:
        to = ["--checkpoint", train, "--out", str(tokens / split)]
        stages[f"tokenize {split}"] = ["tokenize", str(out / "clips" / split), *to, *settings.tokenize]
    for kind in ("png", "mp4"):
        to = ["--checkpoint", train, "--out", str(out / "decoded" / kind), f"format={kind}"]
        stages[f"decode {kind}"] = ["decode", str(tokens / "heldout"), *to]
    stages["evaluate"] = _evaluate(held_out, out / "decoded" / "png", tokens / "heldout", out / "scores.json")
    # The tokenizer that ships with vidvq, on the same clips.
    to = ["--out", str(shipped / "tokens"), *settings.tokenize]
    stages["tokenize bundled"] = ["tokenize", held_out, *to]
    to = ["--out", str(shipped / "png"), "format=png"]
    stages["decode bundled"] = ["decode", str(shipped / "tokens"), *to]
    to = shipped / "png", shipped / "tokens", shipped / "scores.json"
    stages["evaluate bundled"] = _evaluate(held_out, *to)
    given = ["--config", "generate-demo", f"pixels.clips=[{out / 'clips' / 'train'}]", f"pixels.tokenizer={train}"]
    to = ["--out", generator, f"code_vectors={train}"]
    stages["generate train"] = ["generate", "train", str(tokens / "train"), *to, *given, *settings.generator]
    made = out / "generated"
    to = ["--clips", held_out, "--checkpoint", train, "--out", str(made / "scores.json"), "--pictures", str(made)]
    to += [*_GENERATOR_SCORES, *settings.scores]
    stages["generate evaluate"] = ["generate", "evaluate", generator, str(tokens / "heldout"), *to]
    return stages


def _evaluate(clips: str, decoded: Path, tokens: Path, out: Path) -> list[str]:
    return ["evaluate", clips, str(decoded), "--tokens", str(tokens), "--out", str(out)]
