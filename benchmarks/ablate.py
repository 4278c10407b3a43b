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
from typing import Any

import click
import torch
from einops import rearrange
from flops import count_gflop
from torch import Tensor

from vidvq import config as settings
from vidvq.data import ClipDataset, DataConfig, iter_micro_batches
from vidvq.formats.clip_shard import read_clips
from vidvq.formats.plan import read_plan
from vidvq.metrics.perceptual import load_perceptual
from vidvq.metrics.pixel import masked_psnr, mean_frame, psnr, ssim, static_mask
from vidvq.model import TokenizerConfig, VideoTokenizer
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.layers import TemporalCache
from vidvq.model.pixels import to_frames, to_video
from vidvq.model.quantize import DifferentialConfig, FSQConfig, LFQConfig, QuantizerConfig, SimVQConfig, VQConfig
from vidvq.pretrained import save_tokenizer
from vidvq.shard import ShardConfig, run_shard
from vidvq.storage import pretty_json, write_atomic
from vidvq.video.decode import decode_clip

SEEDS = (0, 1, 2)
SIDE, BATCH = 64, 4
BUDGET_GFLOP = 3000.0
LEARNING_RATE = 3e-3
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
FSQ, BSQ = FSQConfig(levels=(8, 8, 4, 4)), LFQConfig(size=1024, spherical=True)


@dataclass(frozen=True)
class Arm:
    """One configuration to train and score.

    Attributes:
        name: name of the arm, and prefix of its output folders.
        question: the choice that the arm ablates; empty for the base arm.
        description: description for the table.
        model: architecture of the tokenizer.
    """

    name: str
    question: str
    description: str
    model: TokenizerConfig


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
    Arm(
        "differential",
        "memory",
        "4x4x4 pixel-unshuffle, differential quantization",
        replace(UNSHUFFLE, quantizer=QuantizerConfig(16, _vq(), _vq(), DifferentialConfig())),
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
            tokenizer, facts = _train(arm.model, clips["train"], seed, gflop, frames)
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


def _train(
    model: TokenizerConfig, clips: Path, seed: int, gflop: float, frames: int
) -> tuple[VideoTokenizer, dict[str, float]]:
    torch.manual_seed(seed)
    tokenizer = VideoTokenizer(model).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    batches = _batches(clips, seed, frames)
    encoding, step_gflop = _count(tokenizer, frames)
    steps = int(gflop / step_gflop)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 30, 0.5 + 0.5 * cos(pi * step / steps))
    )
    for _ in range(steps):
        video = next(batches)
        out = tokenizer(video)
        error = out.reconstruction - video
        loss = error.abs().mean() + error.square().mean() + 0.25 * out.commitment_loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    facts = {"steps": steps, "step_gflop": step_gflop, "encode_gflop_per_frame": encoding}
    return tokenizer.eval().requires_grad_(False), facts


def _batches(clips: Path, seed: int, frames: int) -> Iterator[Tensor]:
    data = DataConfig((str(clips),), batch_size=BATCH, num_frames=frames, crop=SIDE, shuffle=500, workers=1)
    return (to_video(batch) for batch in iter_micro_batches(ClipDataset(data, seed), 0))


def _count(tokenizer: VideoTokenizer, frames: int) -> tuple[float, float]:
    """Count the GFLOP to encode one frame (after frame 0) and those of one training step."""
    group = torch.zeros(1, 3, tokenizer.temporal_factor, SIDE, SIDE)
    batch = torch.zeros(BATCH, 3, frames, SIDE, SIDE)

    def step() -> None:
        out = tokenizer(batch)
        (out.reconstruction.abs().mean() + out.commitment_loss).backward()

    # Eval mode: training mode would update the codebooks.
    tokenizer.eval()
    with torch.no_grad():
        encoding = count_gflop(lambda: tokenizer.encoder(group, TemporalCache()))
    training = count_gflop(step)
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
        for at, book in ((slice(0, 1), tokenizer.codebooks[0]), (slice(1, None), tokenizer.codebooks[-1])):
            used.setdefault(book.name, []).append(codes[:, at].flatten())
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
