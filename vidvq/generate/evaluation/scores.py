"""Scores of `vidvq generate evaluate`."""

from dataclasses import dataclass, field

from vidvq.log import counted


@dataclass
class TaskScore:
    """Scores of one task, over the generated frames or region.

    The keys of the scores are ``generator``, ``probable`` (the most probable codes instead of random draws), ``mean``
    (the codes nearest to the mean code vectors, if the tokenizer exposes its latents), ``baseline``, and ``ceiling``:
    the tokenizer's reconstruction of the clip.

    Attributes:
        baseline: description of the baseline.
        psnr: mean PSNR over clips (dB).
        above: fraction of the clips whose PSNR is above that of the baseline (0 to 1). A few still clips, of which a
            repeated frame has a very high PSNR, can decide the mean.
        st_lpips: mean ST-LPIPS over clips (lower is better); empty if not computed.
        curve: mean PSNR of each predicted frame (dB); empty for other tasks.
    """

    baseline: str
    psnr: dict[str, float] = field(default_factory=dict)
    above: dict[str, float] = field(default_factory=dict)
    st_lpips: dict[str, float] = field(default_factory=dict)
    curve: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class StepScore:
    """Scores with another number of decoding steps.

    Attributes:
        seconds: mean time to generate a clip, without encoding and decoding (seconds).
        psnr: mean PSNR over clips and seeds (dB), by task.
        frechet: Fréchet distance in the tokenizer's latent space, by task; see :class:`GeneratorScores`.
    """

    seconds: float
    psnr: dict[str, float] = field(default_factory=dict)
    frechet: dict[str, float] = field(default_factory=dict)


@dataclass
class GeneratorScores:
    """Result of `vidvq generate evaluate`, written as JSON.

    Attributes:
        generator: fingerprint of the generator.
        clips: number of held-out clips.
        skipped: number of clips skipped because their frames are larger than those the generator was trained on.
        bits: bits per token of the generator (if it was trained to ``generate``), of the generator given the first
            frames (``predict``), of the same with its conditions dropped (``unconditional``, if it has conditions), and
            of n-gram models of the training tokens: ``uniform``, ``unigram``, ``bigram`` (previous code in raster
            order) and ``temporal`` (code at the same position of the previous latent frame). Without ``generate``, all
            cover the frames after the given ones only.
        tasks: scores by task.
        copies: fraction of the samples that are copies of a training sample (0 to 1); None if not measured.
        nearest: mean fraction of codes that differ between a sample and the nearest training sample (0 to 1).
        nearest_held_out: the same for the held-out clips.
        frechet: Fréchet distance to the held-out clips in the tokenizer's latent space (lower is better; see
            :class:`vidvq.generate.evaluation.latent_distance.LatentDistance`), by task: of the samples (``generate``)
            and of the clips of the first seed (other tasks). ``training`` is the distance of as many training samples
            as there are held-out clips; compare with it, as few clips make every distance large. Empty if not
            measured.
        fvd: Fréchet video distance to the held-out clips (lower is better), by task as in ``frechet``; empty if not
            computed.
        fvd_windows: number of windows of the held-out clips that ``fvd`` compares with.
        steps: scores by number of decoding steps, for ``compare_steps``.
    """

    generator: str
    clips: int
    skipped: int
    bits: dict[str, float] = field(default_factory=dict)
    tasks: dict[str, TaskScore] = field(default_factory=dict)
    copies: float | None = None
    nearest: float | None = None
    nearest_held_out: float | None = None
    frechet: dict[str, float] = field(default_factory=dict)
    fvd: dict[str, float] = field(default_factory=dict)
    fvd_windows: int = 0
    steps: dict[str, StepScore] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return the scores as lines of text."""
        larger = f"; {self.skipped} with larger frames than the generator was trained on were skipped"
        text = [counted(self.clips, "held-out clips") + (larger if self.skipped else "")]
        text.append("bits per token: " + ", ".join(f"{name} {bits:.2f}" for name, bits in self.bits.items()))
        for task, score in self.tasks.items():
            text += _table(task, score)
        if self.copies is not None and self.nearest is not None and self.nearest_held_out is not None:
            text.append(
                f"{self.copies:.0%} of the samples are copies; codes that differ from the nearest training sample: "
                f"{self.nearest:.0%} (held-out clips: {self.nearest_held_out:.0%})"
            )
        if self.frechet:
            text.append(f"Fréchet distance in the tokenizer's latent space: {_join(self.frechet, '.3f')}")
        if self.fvd:
            text.append(f"FVD over {self.fvd_windows} windows: {_join(self.fvd, '.2f')}")
        for steps, score in self.steps.items():
            parts = [f"{score.seconds:.2f} s per clip"]
            parts += [f"PSNR {_join(score.psnr, '.2f')} dB"] if score.psnr else []
            parts += [f"Fréchet distance {_join(score.frechet, '.3f')}"] if score.frechet else []
            text.append(f"{steps} decoding step{'' if steps == '1' else 's'}: " + "; ".join(parts))
        return text


def _join(values: dict[str, float], digits: str) -> str:
    return ", ".join(f"{name} {value:{digits}}" for name, value in values.items())


def _table(task: str, score: TaskScore) -> list[str]:
    """The scores of one task: a header, and a row for each way to make the frames."""
    named = {"generator": "generator", "probable": "most probable codes", "mean": "mean codes"}
    named |= {"baseline": f"{score.baseline} (baseline)", "ceiling": "tokenizer's reconstruction"}
    horizon = len(score.curve.get("generator", ()))
    shown = sorted({horizon, *(1 << power for power in range(horizon.bit_length()))}) if horizon else []
    header = [f"{task}: PSNR in dB", "mean", "above", *(f"frame {at}" for at in shown)]
    rows = [header + ["ST-LPIPS"] * bool(score.st_lpips)]
    for name in (name for name in named if name in score.psnr):
        above = "-" if name == "baseline" else f"{score.above[name]:.0%}"
        row = [f"  {named[name]}", f"{score.psnr[name]:.2f}", above]
        row += [f"{score.curve[name][at - 1]:.2f}" for at in shown]
        rows.append(row + [f"{score.st_lpips[name]:.3f}" for _ in range(bool(score.st_lpips))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
