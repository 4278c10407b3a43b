"""Evaluation of tokenizers on clips."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from vidvq.config import checked
from vidvq.errors import UsageError
from vidvq.evaluate.config import EvaluateConfig
from vidvq.evaluate.protocols import PROTOCOLS
from vidvq.evaluate.reconstruct import DecodedFiles, InProcess, Reconstructor, list_shards, missing_shards
from vidvq.evaluate.scores import ClipScore, CodecScore, Evaluation, VideoScorer, finish, nominal_bits
from vidvq.formats.checkpoint import checkpoint_name, resolve_checkpoint
from vidvq.formats.clip_shard import ClipInfo, read_clips, read_infos
from vidvq.formats.plan import read_clip_plan, read_plan
from vidvq.formats.token_shard import TokenizerCard
from vidvq.log import info as say
from vidvq.log import progress
from vidvq.metrics.pixel import mean_frame
from vidvq.storage import pretty_json, resolve_path, write_atomic
from vidvq.video.decode import decode_clip
from vidvq.video.reference_codecs import CodecName, EqualBitsSearch, check_codec


def run_evaluate(
    clips: str | Path,
    decoded: str | Path,
    tokens: str | Path,
    out: str | Path | None = None,
    config: EvaluateConfig | None = None,
    report: str | Path | None = None,
) -> Evaluation:
    """Score decoded clips.

    Args:
        decoded: directory written by ``vidvq decode ... format=png``.
        tokens: directory of the token shards that were decoded.
        out: JSON file to write, or None.
        config: settings; None for the defaults.
        report: HTML page of the worst clips to write, or None.

    Raises:
        UsageError: frames are missing or of another size, no clip is in both directories, or a setting needs what is
            not installed.
    """
    clips, decoded, tokens = (resolve_path(each) for each in (clips, decoded, tokens))
    out, report = (resolve_path(each) if each else None for each in (out, report))
    config = checked(EvaluateConfig, config or EvaluateConfig())
    files = DecodedFiles(decoded, tokens)
    infos = _infos(clips)
    known = set(infos)
    if not known & files.keys:
        raise UsageError(f"{clips} and {tokens} have no clip in common; use the tokens of these clips")
    if strange := files.keys - known:
        say(f"{len(strange)} of {len(files.keys)} clips in {tokens} are not in {clips}, and are not scored")
    if without := known - files.keys:
        say(f"{len(without)} of {len(known)} clips in {clips} have no tokens in {tokens}, and are not scored")
    evaluation = _evaluate(clips, infos, [files], config, report)[0]
    if out:
        write_atomic(out, pretty_json(asdict(evaluation)))
    return evaluation


def run_evaluate_tokenizers(
    clips: str | Path,
    checkpoints: Sequence[str | Path],
    out: str | Path | None = None,
    config: EvaluateConfig | None = None,
    report: str | Path | None = None,
) -> list[Evaluation]:
    """Encode, decode and score clips with one or more tokenizers in this process.

    If a decoder enlarges its frames, all tokenizers encode clips that are reduced by its factor, and the frames of the
    other decoders are enlarged by bicubic interpolation.

    Args:
        checkpoints: checkpoints, training runs, or other tokenizers that `vidvq tokenize` takes.
        out: JSON file to write, or None.
        config: settings; None for the defaults.
        report: HTML page of the worst clips to write, or None.

    Raises:
        UsageError: a tokenizer is given twice or cannot be loaded, there are none, there are no clips, or a setting
            needs what is not installed.
    """
    clips = resolve_path(clips)
    out, report = (resolve_path(each) if each else None for each in (out, report))
    config = checked(EvaluateConfig, config or EvaluateConfig())
    if isinstance(checkpoints, str | Path) or not checkpoints:
        raise UsageError(f"checkpoints={checkpoints!r} must be a list of one or more checkpoints")
    paths = [resolve_checkpoint(each) for each in checkpoints]
    names = list(map(checkpoint_name, paths))
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UsageError(f"--checkpoint {twice[0]} is given twice; give each tokenizer once")
    infos = _infos(clips)
    if not infos:
        raise UsageError(f"{clips} has no clips")
    tokenizers = [InProcess(path, name) for path, name in zip(paths, names, strict=True)]
    # Decoders for super-resolution are compared with the bicubic enlargement of the others.
    scale = max(tokenizer.scale for tokenizer in tokenizers)
    for tokenizer in tokenizers:
        tokenizer.share_scale(scale)
    evaluations = _evaluate(clips, infos, tokenizers, config, report)
    if out:
        write_atomic(out, pretty_json({"evaluations": [asdict(each) for each in evaluations]}))
    return evaluations


def _infos(clips: Path) -> dict[str, ClipInfo]:
    shards = list_shards(clips, read_clip_plan(clips, "CLIPS"))
    return {key: info for shard in shards for key, info in read_infos(shard)}


def _check(clips: Path, infos: dict[str, ClipInfo], config: EvaluateConfig) -> None:
    """Check the settings and the clips before any work.

    Raises:
        UsageError: a codec is not installed, or the clips are not those of the protocol.
    """
    for codec in config.codecs:
        check_codec(codec)
    missing = missing_shards(clips)
    if missing:
        say(f"{missing}, whose clips are not scored; finish vidvq shard, or restore them")
    if config.protocol:
        protocol = PROTOCOLS[config.protocol]
        try:
            if missing:
                raise UsageError(f"{missing}; finish vidvq shard, or restore them")
            protocol.check(infos, read_plan(clips).made_from)
        except UsageError as error:
            raise UsageError(f"protocol={config.protocol}: {error}") from error
        say(f"protocol {config.protocol}: PSNR by {protocol.psnr}, {protocol.ssim} SSIM; {protocol.cite}")


def _evaluate(
    clips: Path,
    infos: dict[str, ClipInfo],
    sources: Sequence[Reconstructor],
    config: EvaluateConfig,
    report: Path | None,
) -> list[Evaluation]:
    _check(clips, infos, config)
    scorer = VideoScorer(config)
    worst = None
    if report:
        from vidvq.evaluate.page import WorstClips

        worst = WorstClips(config.worst, [source.name for source in sources])
    scored: list[list[tuple[ClipScore, np.ndarray]]] = [[] for _ in sources]
    wanted = {key for key in infos if all(source.has(key) for source in sources)}
    fvd = None
    if config.fvd_backbone:
        from vidvq.metrics.fvd import FvdScorer
        from vidvq.pretrained.device import find_fp32_device

        lengths = [infos[key].num_frames for key in wanted]
        fvd = FvdScorer(config.fvd_backbone, config.fvd_frames, lengths, find_fp32_device())
    with progress("evaluate", len(wanted), "clips") as bar:
        for key, frames, info in _originals(clips, wanted):
            results = [source.reconstruct(key, frames, info) for source in sources]
            original = _Original(key, frames, info, scorer, config.codecs)
            scores = [
                original.score(codes, decoded, source.card)
                for source, (codes, decoded) in zip(sources, results, strict=True)
            ]
            for found, score, (codes, _) in zip(scored, scores, results, strict=True):
                found.append((score, codes))
            if fvd:
                fvd.add(frames)
                for at, (_, decoded) in enumerate(results):
                    fvd.add_other(str(at), decoded)
            if worst:
                worst.add(info, frames, [decoded for _, decoded in results], scores)
            bar.advance()
    evaluations = [finish(source.name, source.card, found) for source, found in zip(sources, scored, strict=True)]
    if fvd:
        evaluations = [
            replace(evaluation, fvd=distance, fvd_windows=fvd.windows)
            for evaluation, distance in zip(evaluations, fvd.distances().values(), strict=True)
        ]
    if worst and report:
        write_atomic(report, worst.render(evaluations))
    return evaluations


def _originals(clips: Path, wanted: set[str]) -> Iterator[tuple[str, np.ndarray, ClipInfo]]:
    for shard in list_shards(clips):
        for key, media, info in read_clips(shard):
            if key in wanted:
                yield key, decode_clip(media, key), info


class _Original:
    """An original clip, and what all reconstructions of it are compared with."""

    def __init__(
        self, key: str, frames: np.ndarray, info: ClipInfo, scorer: VideoScorer, codecs: Sequence[CodecName]
    ) -> None:
        self._key, self._frames, self._info, self._scorer = key, frames, info, scorer
        self._mask = scorer.static_mask(frames)
        self._still = scorer.score(frames, mean_frame(frames), self._mask)
        self._searches = {name: EqualBitsSearch(name, frames, info.fps) for name in codecs}

    def score(self, codes: np.ndarray, decoded: np.ndarray, card: TokenizerCard) -> ClipScore:
        """Score frames ``t h w c`` uint8 that were decoded from codes ``lt lh lw``."""
        info = self._info
        bits, pixels = nominal_bits(codes, card), info.num_frames * info.height * info.width
        scores, curves = self._scorer.score_frames(self._frames, decoded, self._mask)
        return ClipScore(
            key=self._key,
            source=info.source,
            num_frames=info.num_frames,
            height=info.height,
            width=info.width,
            fps=info.fps,
            **vars(scores),
            frame_psnr=curves.psnr,
            frame_ssim=curves.ssim,
            frame_st_lpips=curves.st_lpips,
            mean_frame_psnr=self._still.psnr,
            mean_frame_ssim=self._still.ssim,
            mean_frame=self._still,
            static_share=float(self._mask.mean()),
            bits_per_pixel=bits / pixels,
            codecs={name: self._score_codec(search, bits, pixels) for name, search in self._searches.items()},
        )

    def _score_codec(self, search: EqualBitsSearch, bits: float, pixels: int) -> CodecScore:
        coded = search.largest_within(bits)
        scores = self._scorer.score(self._frames, coded.frames, self._mask)
        return CodecScore(**vars(scores), crf=coded.crf, bits_per_pixel=coded.bits / pixels, fits=coded.bits <= bits)
