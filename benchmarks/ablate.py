"""Ablations of the architecture: small tokenizers at equal training FLOPs, data and bits, on real video, three seeds.

    python benchmarks/ablate.py --train VIDEOS --held-out VIDEOS --out runs/ablate

Each arm changes one choice of the base arm. All arms train on the same batches in the same order, for the number of
steps that the FLOP budget allows (forward and backward); then their reconstructions of held-out clips are scored.
Rerunning the command resumes with the first missing arm and seed. OUT/table.md is updated after each run.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import cos, pi
from pathlib import Path
from statistics import mean, stdev
from time import monotonic
from typing import Any, Literal

import click
import torch
from einops import rearrange
from flops import count_gflop
from torch import Tensor, nn

from vidvq import config as settings
from vidvq.codebook import codebook_spans
from vidvq.data import ClipDataset, DataConfig, iter_micro_batches
from vidvq.formats.clip_shard import read_clips
from vidvq.formats.plan import read_plan
from vidvq.metrics.perceptual import load_perceptual
from vidvq.metrics.pixel import masked_psnr, mean_frame, psnr, ssim, static_mask
from vidvq.model import TokenizerConfig, VideoTokenizer
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.layers import TemporalCache
from vidvq.model.pixels import to_frames, to_video
from vidvq.model.quantize import (
    DifferentialConfig,
    FSQConfig,
    LFQConfig,
    QuantizerConfig,
    ResidualConfig,
    SimVQConfig,
    VQConfig,
)
from vidvq.model.step_shape import StepShape
from vidvq.pretrained import save_tokenizer
from vidvq.shard import ShardConfig, run_shard
from vidvq.storage import pretty_json, write_atomic
from vidvq.training.ema import WeightAverage
from vidvq.training.schedule import learning_rate
from vidvq.video.decode import decode_clip

SEEDS = (0, 1, 2)
SIDE, BATCH = 64, 4
BUDGET_GFLOP = 3000.0
LEARNING_RATE, WARMUP = 3e-3, 30
CLIPS_PER_VIDEO = 2
# Of the luma over time, at a static position (levels).
STATIC_DEVIATION = 4.0


def _vq(size: int = 1024) -> VQConfig:
    return VQConfig(size=size, warmup=40)


# 10 bits per code in every arm; Haar patches in all arms except those that ablate the patch.
BASE = TokenizerConfig(
    patch="haar",
    encoder=StackConfig((64, 128), (1, 2)),
    decoder=DecoderConfig((64, 128), (2, 3)),
    quantizer=QuantizerConfig(16, _vq(), _vq()),
)
# The network merges frames instead of the patch: causality matters only if layers see several frames of a group.
LAYERED = replace(
    BASE,
    patch_size=2,
    patch_frames=1,
    encoder=StackConfig((16, 48, 128), (1, 1, 2)),
    decoder=DecoderConfig((16, 48, 128), (1, 2, 3)),
)
UNSHUFFLE = replace(BASE, patch="unshuffle")


def _differential(dim: int, book: VQConfig) -> TokenizerConfig:
    return replace(UNSHUFFLE, quantizer=QuantizerConfig(dim, book, book, DifferentialConfig()))


DIFFERENTIAL = _differential(16, _vq())
# With 20 bits in the first of nine groups, as many bits in all as with 10 in each.
FEWER_CODES = 431
# The Gram loss is then about a tenth of the L1 loss of a trained tokenizer.
GRAM = 100.0
FSQ, BSQ = FSQConfig(levels=(8, 8, 4, 4)), LFQConfig(size=1024, spherical=True)


class GatedRecurrence(nn.Module):
    """A gated linear recurrence over groups at each latent position (minGRU; Feng et al. 2024, sec. 3.1).

    It starts without effect. It has no state between calls, so a clip must be one call.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate, self.new, self.out = (nn.Linear(channels, channels) for _ in range(3))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``b t h w c`` to the same shape."""
        state, states = torch.zeros_like(x[:, 0]), []
        for gate, new in zip(self.gate(x).sigmoid().unbind(1), self.new(x).unbind(1), strict=True):
            state = (1 - gate) * state + gate * new
            states.append(state)
        return x + self.out(torch.stack(states, dim=1))


@dataclass(frozen=True)
class Recipe:
    """Training of an arm, beyond L1, L2 and the commitment loss.

    Attributes:
        perceptual: weight of the perceptual distance of one frame per clip.
        gram: weight of the Gram loss of the same features.
        decay: decay of the moving average of the weights that is scored; 0 scores the last weights.
        schedule: learning rate after the warm-up, as in :class:`~vidvq.training.config.OptimizerConfig`.
    """

    perceptual: float = 0.0
    gram: float = 0.0
    decay: float = 0.0
    schedule: Literal["cosine", "wsd"] = "cosine"


@dataclass(frozen=True)
class Arm:
    """One configuration to train and score.

    Attributes:
        name: name of the arm, and prefix of its output folders.
        question: the choice that the arm ablates; empty for the base arm.
        description: description for the table.
        model: architecture of the tokenizer.
        recurrent: whether encoder and decoder have a gated recurrence at the resolution of the latents.
        recipe: training.
    """

    name: str
    question: str
    description: str
    model: TokenizerConfig
    recurrent: bool = False
    recipe: Recipe = Recipe()


ARMS = (
    Arm("base", "", "Haar 4x4x4, VQ 1024 spatial + 1024 temporal, encoder:decoder 1,2 : 2,3 blocks", BASE),
    Arm("layered-group", "causality", "2x2 Haar, time halved twice by the network, group-causal", LAYERED),
    Arm("layered-strict", "causality", "the same, strictly causal", replace(LAYERED, causality="strict")),
    Arm(
        "joint", "codebooks", "one joint VQ codebook of 1024", replace(BASE, quantizer=QuantizerConfig(16, _vq(), None))
    ),
    Arm("fsq", "quantizer", "FSQ 8x8x4x4, spatial + temporal", replace(BASE, quantizer=QuantizerConfig(16, FSQ, FSQ))),
    Arm("bsq", "quantizer", "BSQ 10 bits, spatial + temporal", replace(BASE, quantizer=QuantizerConfig(16, BSQ, BSQ))),
    Arm(
        "simvq",
        "quantizer",
        "SimVQ 1024, spatial + temporal",
        replace(BASE, quantizer=QuantizerConfig(16, SimVQConfig(size=1024), SimVQConfig(size=1024))),
    ),
    Arm("unshuffle", "patch", "4x4x4 pixel-unshuffle", UNSHUFFLE),
    Arm("differential", "memory", "4x4x4 pixel-unshuffle, differential quantization", DIFFERENTIAL),
    Arm("recurrent", "memory", "4x4x4 pixel-unshuffle, gated recurrence in encoder and decoder", UNSHUFFLE, True),
    Arm(
        "first-bits",
        "bits",
        "differential, 20 bits in the first group and 8.75 in later ones",
        replace(
            UNSHUFFLE,
            quantizer=QuantizerConfig(16, ResidualConfig(depth=2, layer=_vq()), _vq(FEWER_CODES), DifferentialConfig()),
        ),
    ),
    Arm("narrow", "codebooks", "differential, latents of 8 channels", _differential(8, _vq())),
    Arm("rotation", "codebooks", "differential, rotation trick", _differential(16, replace(_vq(), rotation=True))),
    Arm("late", "codebooks", "differential, quantized after 600 steps", _differential(16, replace(_vq(), warmup=600))),
    Arm("perceptual", "recipe", "differential, perceptual loss", DIFFERENTIAL, recipe=Recipe(perceptual=0.03)),
    Arm("gram", "recipe", "differential, perceptual and Gram loss", DIFFERENTIAL, recipe=Recipe(0.03, GRAM)),
    Arm("average", "recipe", "differential, averaged weights", DIFFERENTIAL, recipe=Recipe(decay=0.99)),
    Arm(
        "wsd", "recipe", "differential, constant learning rate, then decay", DIFFERENTIAL, recipe=Recipe(schedule="wsd")
    ),
    Arm(
        "refresh",
        "memory",
        "the same, 768 codes of differences and 256 refresh codes",
        replace(UNSHUFFLE, quantizer=QuantizerConfig(16, _vq(), _vq(768), DifferentialConfig(refresh=_vq(256)))),
    ),
    Arm(
        "linear",
        "memory",
        "differential quantization, 24 of 40 channels with a linear path",
        replace(UNSHUFFLE, quantizer=QuantizerConfig(40, _vq(), _vq(), DifferentialConfig()), linear=24),
    ),
    Arm(
        "no-patch",
        "patch",
        "no patch: strided convolutions from full resolution",
        replace(
            BASE,
            patch="unshuffle",
            patch_size=1,
            patch_frames=1,
            encoder=StackConfig((8, 24, 48, 128), (0, 1, 1, 2)),
            decoder=DecoderConfig((8, 24, 48, 128), (0, 1, 2, 3)),
        ),
    ),
    Arm(
        "light-encoder",
        "split",
        "encoder:decoder 1,1 : 2,4 blocks",
        replace(BASE, encoder=StackConfig((64, 128), (1, 1)), decoder=DecoderConfig((64, 128), (2, 4))),
    ),
    Arm(
        "heavy-encoder",
        "split",
        "encoder:decoder 2,3 : 1,2 blocks",
        replace(BASE, encoder=StackConfig((64, 128), (2, 3)), decoder=DecoderConfig((64, 128), (1, 2))),
    ),
)


@click.command()
@click.option(
    "--train", "train", multiple=True, required=True, help="Training video or folder of videos; may be repeated."
)
@click.option(
    "--held-out", multiple=True, required=True, help="Video or folder of videos to score on; may be repeated."
)
@click.option("--out", default="runs/ablate", type=click.Path(path_type=Path), show_default=True)
@click.option("--gflop", default=BUDGET_GFLOP, show_default=True, help="Training budget of each run (GFLOP).")
@click.option("--arm", "names", multiple=True, help="Run only this arm; may be repeated.")
@click.option("--seed", "seeds", multiple=True, type=int, default=SEEDS, help="Run only this seed; may be repeated.")
@click.option("--frames", default=9, show_default=True, help="Frames of a training clip.")
@click.option("--held-out-frames", default=17, show_default=True, help="Frames of a held-out clip.")
def main(
    train: tuple[str, ...],
    held_out: tuple[str, ...],
    out: Path,
    gflop: float,
    names: tuple[str, ...],
    seeds: tuple[int, ...],
    frames: int,
    held_out_frames: int,
) -> None:
    """Train and score all missing arms and seeds, and write OUT/table.md."""
    clips = {}
    for part, videos in (("train", train), ("held-out", held_out)):
        clips[part] = out / "clips" / part
        policy = settings.validate(ShardConfig, settings.apply_overrides({}, _POLICY))
        run_shard(list(videos), clips[part], policy)
    originals = list(_held_out(clips["held-out"], held_out_frames))
    for seed in seeds:
        for arm in ARMS:
            folder = out / f"{arm.name}-{seed}"
            if (names and arm.name not in names) or (folder / "scores.json").exists():
                continue
            started = monotonic()
            tokenizer, facts = _train(arm, clips["train"], seed, gflop, frames)
            save_tokenizer(folder, tokenizer, tokenizer.inference_state_dict(), int(facts["steps"]))
            scores = facts | _score(tokenizer, originals) | {"gflop": gflop, "minutes": (monotonic() - started) / 60}
            write_atomic(folder / "scores.json", pretty_json({"arm": asdict(arm), "seed": seed} | scores))
            click.echo(f"{arm.name} {seed}: " + " ".join(f"{name}={value:.4g}" for name, value in scores.items()))
            write_atomic(out / "table.md", _table(out).encode())


_POLICY: list[str] = [
    "clip.num_frames=33",
    "clip.min_frames=17",
    "clip.short_side=80",
    "clip.multiple=8",
    "runtime.workers=0",
]


def _train(arm: Arm, clips: Path, seed: int, gflop: float, frames: int) -> tuple[VideoTokenizer, dict[str, float]]:
    torch.manual_seed(seed)
    tokenizer = _build(arm)
    batches, loss = _batches(clips, seed, frames), _Loss(arm.recipe)
    encoding, step_gflop = _count(tokenizer, loss, frames)
    steps = int(gflop / step_gflop)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    average = WeightAverage(tokenizer, arm.recipe.decay) if arm.recipe.decay else None
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, steps, arm.recipe.schedule)
        video = next(batches)
        optimizer.zero_grad()
        loss(tokenizer, video).backward()
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
        optimizer.step()
        if average:
            average.update()
    if average:
        tokenizer.load_state_dict(average.state_dict(), strict=False)
    facts = {"steps": steps, "step_gflop": step_gflop, "encode_gflop_per_frame": encoding}
    return tokenizer.eval().requires_grad_(False), facts


def _build(arm: Arm) -> VideoTokenizer:
    tokenizer = VideoTokenizer(arm.model)
    if arm.recurrent:
        tokenizer.encoder.stages.append(GatedRecurrence(arm.model.encoder.channels[-1]))
        tokenizer.decoder.stages.insert(0, GatedRecurrence(arm.model.decoder.channels[-1]))
        # The state lasts for a call: a clip is one.
        tokenizer.step_shape = tokenizer.decode_shape = StepShape(1, 1 << 10, 1 << 30)
    return tokenizer.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]


def _learning_rate(step: int, steps: int, schedule: str) -> float:
    if schedule == "wsd":
        return learning_rate(step, steps, LEARNING_RATE, 0.0, WARMUP, decay=0.2)
    return LEARNING_RATE * min((step + 1) / WARMUP, 0.5 + 0.5 * cos(pi * step / steps))


class _Loss:
    """Loss of a batch ``b c t h w``, a scalar with gradient."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._distance = load_perceptual("st_lpips", "alex") if recipe.perceptual or recipe.gram else None

    def __call__(self, tokenizer: VideoTokenizer, video: Tensor) -> Tensor:
        out = tokenizer(video)
        error = out.reconstruction - video
        loss = error.abs().mean() + error.square().mean() + 0.25 * out.commitment_loss
        if self._distance is not None:
            at = int(torch.randint(video.shape[2], ()))
            distance, gram = self._distance.with_gram(out.reconstruction[:, :, at], video[:, :, at])
            loss = loss + self._recipe.perceptual * distance + self._recipe.gram * gram
        return loss


def _batches(clips: Path, seed: int, frames: int) -> Iterator[Tensor]:
    data = DataConfig((str(clips),), batch_size=BATCH, num_frames=frames, crop=SIDE, shuffle=500, workers=1)
    return (to_video(batch) for batch in iter_micro_batches(ClipDataset(data, seed), 0))


def _count(tokenizer: VideoTokenizer, loss: _Loss, frames: int) -> tuple[float, float]:
    """Count the GFLOP to encode one frame (after frame 0) and those of one training step."""
    group = torch.zeros(1, 3, tokenizer.temporal_factor, SIDE, SIDE)
    batch = torch.zeros(BATCH, 3, frames, SIDE, SIDE)

    # Eval mode: training mode would update the codebooks.
    tokenizer.eval()
    with torch.no_grad():
        encoding = count_gflop(lambda: tokenizer.encoder(group, TemporalCache()))
    training = count_gflop(lambda: loss(tokenizer, batch).backward())
    tokenizer.zero_grad()
    tokenizer.train()
    return encoding / tokenizer.temporal_factor, training


def _held_out(clips: Path, length: int) -> Iterator[Any]:
    """Yield centre crops ``t h w c`` of the first clips of each video."""
    seen: dict[str, int] = {}
    for shard in read_plan(clips).shard_names():
        for key, media, info in read_clips(clips / shard):
            seen[info.source] = seen.get(info.source, 0) + 1
            if seen[info.source] <= CLIPS_PER_VIDEO:
                frames = decode_clip(media, key)[:length]
                top, left = (frames.shape[1] - SIDE) // 2, (frames.shape[2] - SIDE) // 2
                yield frames[:, top : top + SIDE, left : left + SIDE]


def _score(tokenizer: VideoTokenizer, originals: list[Any]) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in (*(name for name, _, _ in _SCORES), "psnr_still")}
    distance = load_perceptual("st_lpips", "alex")
    used: dict[str, list[Tensor]] = {}
    for original in originals:
        video = to_video(original)
        codes = tokenizer.encode(video)
        decoded = to_frames(tokenizer.decode(codes, len(original)))
        found["psnr"].append(psnr(original, decoded))
        # Of the last group: what a memory gains.
        found["psnr_last"].append(psnr(original[-4:], decoded[-4:]))
        still = mean_frame(original)
        found["psnr_still"].append(psnr(original, still))
        found["above"].append(found["psnr"][-1] - found["psnr_still"][-1])
        static = static_mask(original, STATIC_DEVIATION)
        for name, mask in (("static", static), ("moving", ~static)):
            mine, theirs = masked_psnr(original, decoded, mask), masked_psnr(original, still, mask)
            if mine is not None and theirs is not None:
                found[f"psnr_{name}"].append(mine)
                found[name].append(mine - theirs)
        found["ssim"].append(ssim(original, decoded))
        pairs = (rearrange(clip, "1 c t h w -> t c h w") for clip in (video, to_video(decoded)))
        found["perceptual"].append(float(distance(*pairs)))
        for book, groups in codebook_spans(tokenizer.codebooks):
            used.setdefault(book.name, []).append(codes[:, groups].flatten())
    use = {f"used_{name}": float(torch.cat(codes).unique().numel()) for name, codes in used.items()}
    bits = mean(tokenizer.bits_per_pixel(len(original), SIDE, SIDE) for original in originals)
    return {name: mean(values) for name, values in found.items()} | use | {"bits_per_pixel": bits}


# Scores of the table, their headings and decimal places. ``above``, ``static`` and ``moving``: PSNR above that of the
# mean frame, of all pixels, static and moving ones.
_SCORES = (
    ("psnr", "PSNR, dB", 2),
    ("psnr_last", "last group", 2),
    ("psnr_static", "static", 2),
    ("psnr_moving", "moving", 2),
    ("above", "above the mean frame", 2),
    ("static", "static", 2),
    ("moving", "moving", 2),
    ("ssim", "SSIM", 3),
    ("perceptual", "ST-LPIPS", 3),
)


def _table(out: Path) -> str:
    heads = ("question", "arm", *(head for _, head, _ in _SCORES), "seeds", "steps", "bits per pixel")
    lines = [f"| {' | '.join(heads)} | encode, GFLOP per frame |", "|---" * (len(heads) + 1) + "|"]
    for arm in ARMS:
        runs = [json.loads(path.read_text()) for path in sorted(out.glob(f"{arm.name}-[0-9]*/scores.json"))]
        if not runs:
            continue
        figures = [_spread([run[name] for run in runs], digits) for name, _, digits in _SCORES]
        lines.append(
            f"| {arm.question or 'all'} | {arm.description} | {' | '.join(figures)} | {len(runs)} | "
            f"{runs[0]['steps']} | {runs[0]['bits_per_pixel']:.4f} | {runs[0]['encode_gflop_per_frame']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def _spread(values: list[float], digits: int) -> str:
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


if __name__ == "__main__":
    main()
