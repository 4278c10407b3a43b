"""Evaluation of the averaged weights on a fixed set of held-out clips."""

from itertools import islice
from math import log2
from pathlib import Path

import torch
from torch import Tensor

from vidvq.codebook import codebook_spans
from vidvq.errors import UsageError
from vidvq.formats.clip_shard import read_clips
from vidvq.formats.plan import read_clip_plan
from vidvq.metrics.perceptual import PerceptualDistance
from vidvq.metrics.pixel import psnr, ssim
from vidvq.model import VideoTokenizer
from vidvq.model.enlarge import shrink
from vidvq.model.pixels import to_frames, to_video
from vidvq.model.step_shape import GPU_STREAM
from vidvq.storage import resolve_path
from vidvq.train.codebook_usage import count_codes, measure_usage
from vidvq.train.config import TrainConfig
from vidvq.train.degrade import degrade
from vidvq.training.distributed import DistributedContext, all_reduce_sum
from vidvq.video.decode import decode_clip

# Frames that the perceptual network compares at once. Its first features take twenty times the memory of a frame.
_COMPARED = 4


class Evaluator:
    """Scores reconstructions of held-out clips with the inference path, distributed over the ranks.

    Args:
        config: config of the run.
        context: this process in the job.
        perceptual: network of the perceptual distance; None omits that score.

    Raises:
        UsageError: the directory has no clips.
    """

    def __init__(self, config: TrainConfig, context: DistributedContext, perceptual: PerceptualDistance | None) -> None:
        self._config, self._context, self._perceptual = config.evaluation, context, perceptual
        self._degrade = config.degrade
        self._distance = config.loss.perceptual_net.kind.replace("_", "-").upper()
        self._clips: list[tuple[str, bytes]] = []
        if config.evaluation.clips:
            self._clips = _read(resolve_path(config.evaluation.clips), config.evaluation.num_clips)
            # A separate network: averaged weights are scored, and under ZeRO 3 the trained weights are sharded.
            self._tokenizer = VideoTokenizer(config.model).to(context.device).eval().requires_grad_(False)
            if context.device.type == "cuda":
                self._tokenizer.step_shape = self._tokenizer.decode_shape = GPU_STREAM

    def score(self, weights: dict[str, Tensor]) -> tuple[dict[str, float], list[tuple[Tensor, Tensor]]]:
        """Score the held-out clips. Collective: call on every rank.

        Args:
            weights: inference tensors of the tokenizer.

        Returns:
            Scores by name, and pairs of clip and reconstruction ``1 c t h w`` for the clips to show.
        """
        self._tokenizer.load_inference_state_dict(weights)
        books = self._tokenizer.codebooks
        counts = {book.name: torch.zeros(book.size, dtype=torch.int32, device=self._context.device) for book in books}
        sums: dict[str, float] = {"psnr": 0.0, "ssim": 0.0, "bits": 0.0, "pixels": 0.0}
        sums |= {"perceptual": 0.0} if self._perceptual else {}
        shown: list[tuple[Tensor, Tensor]] = []
        for index, (key, media) in enumerate(self._clips):
            is_shown, is_local = index < self._config.shown, index % self._context.size == self._context.rank
            if not (is_shown or is_local):
                continue
            frames = decode_clip(media, key)
            video = to_video(frames).to(self._context.device)
            codes, reconstruction = self._reconstruct(video, index)
            if is_shown:
                shown.append((video, reconstruction))
            if not is_local:
                continue
            decoded = to_frames(reconstruction)
            sums["psnr"] += psnr(frames, decoded)
            sums["ssim"] += ssim(frames, decoded)
            sums["pixels"] += frames[..., 0].size
            for book, groups in codebook_spans(books):
                count_codes(counts[book.name], codes[:, groups])
                sums["bits"] += codes[:, groups].numel() * log2(book.size)
            if self._perceptual:
                parts = (each[0].transpose(0, 1).split(_COMPARED) for each in (video, reconstruction))
                distances = [self._perceptual.per_frame(*pair) for pair in zip(*parts, strict=True)]
                sums["perceptual"] += float(torch.cat(distances).mean())
        total = all_reduce_sum(torch.tensor(list(sums.values()), dtype=torch.float64, device=self._context.device))
        named = dict(zip(sums, total.tolist(), strict=True))
        scores = {"bits_per_pixel": named.pop("bits") / named.pop("pixels")}
        scores |= {name: value / len(self._clips) for name, value in named.items()}
        for name, count in counts.items():
            use = measure_usage(name, count)
            scores[f"usage_{name}"], scores[f"perplexity_{name}"] = use.share, use.perplexity
        return scores, shown

    def _reconstruct(self, video: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Encode and decode clip ``index``, ``1 c t h w``: codes ``1 lt lh lw``, and a video of the clip's shape."""
        generator = torch.Generator(self._context.device).manual_seed(index)
        degraded = degrade(shrink(video, self._tokenizer.upscale), self._degrade, [generator])
        codes = self._tokenizer.encode(degraded)
        decoded = self._tokenizer.decode(codes, degraded.shape[2], (degraded.shape[3], degraded.shape[4]))
        return codes, decoded[..., : video.shape[3], : video.shape[4]]

    def selection_score(self, scores: dict[str, float]) -> float:
        """Return the score that selects the best checkpoint, signed so that larger is better."""
        metric = self._config.metric
        return -scores[metric] if metric == "perceptual" else scores[metric]

    def summary(self, scores: dict[str, float]) -> str:
        """Format the scores in one line."""
        parts = [f"{scores['psnr']:.2f} dB", f"SSIM {scores['ssim']:.3f}", f"{scores['bits_per_pixel']:.4f} bits/pixel"]
        parts += [f"{self._distance} {scores['perceptual']:.3f}"] if "perceptual" in scores else []
        used = [f"{scores[f'usage_{book.name}']:.0%} of {book.name} codes" for book in self._tokenizer.codebooks]
        return ", ".join(parts + used)


def _read(folder: Path, count: int) -> list[tuple[str, bytes]]:
    shards = (folder / shard for shard in read_clip_plan(folder, "evaluation.clips").shard_names())
    entries = (entry for shard in shards if shard.is_file() for entry in read_clips(shard))
    clips = [(key, media) for key, media, _ in islice(entries, count)]
    if not clips:
        raise UsageError(f"evaluation.clips={folder} has no clips; use a directory written by vidvq shard")
    return clips
