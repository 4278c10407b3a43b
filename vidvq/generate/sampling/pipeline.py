"""Generation of samples: from a prompt to the files of a token sample."""

from collections.abc import Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from vidvq.corpus.frames import ItemInfo
from vidvq.errors import UsageError
from vidvq.formats.clip_shard import ClipInfo
from vidvq.formats.generator import Generator, GeneratorCard, read_generator
from vidvq.formats.token_shard import TokenInfo, token_files
from vidvq.generate.blanking import BlankedVideo, encode_visible
from vidvq.generate.conditions import NO_CONDITION, ClipCondition, label_index, latent_actions
from vidvq.generate.network.build import load_network
from vidvq.generate.network.code_vectors import code_vectors
from vidvq.generate.requests import (
    FillConfig,
    InputConfig,
    InterpolateConfig,
    PredictConfig,
    RequestConfig,
    SampleConfig,
)
from vidvq.generate.sampling.codes import Condition, SamplePrompt, batch_key, check_shape, sample_codes
from vidvq.generate.sampling.execution import CPU, GenerationExecution
from vidvq.generate.sampling.regions import prepare, read_mask, result_shape
from vidvq.generate.text import TextEncoder, open_text_encoder
from vidvq.generate.training.examples import seeded_rng
from vidvq.log import counted
from vidvq.model import Tokenizer
from vidvq.model.pixels import to_video
from vidvq.model.step_shape import GPU_STREAM
from vidvq.pretrained import load_tokenizer
from vidvq.pretrained.device import allow_tf32, require_cuda, stopping_when_full

# Largest denominator of a frame rate, for rates such as 30000/1001.
_MAX_DENOMINATOR = 1001


@dataclass(frozen=True)
class PendingSample:
    """A sample that is ready to be generated.

    Attributes:
        key: with the seed of the request, it determines the codes.
        given: codes ``t lh lw`` of the first latent frames; None for none.
        shape: shape ``lt lh lw`` of the codes.
        info: metadata of the sample.
    """

    key: str
    given: np.ndarray | None
    condition: Condition
    shape: tuple[int, int, int]
    info: TokenInfo


class GenerationPipeline:
    """A loaded generator, and the settings of a request.

    Args:
        tokenizer: folder of the tokenizer that encodes pixels, or whose code vectors are averaged; None if prompts are
            tokens or nothing, and codes are drawn.
        execution: device, precision and batch size.

    Attributes:
        batch: samples per call of the network; fewer are padded.

    Raises:
        UsageError: a checkpoint is missing, damaged or of another kind, or does not expose the code vectors; or the
            device is missing.
    """

    def __init__(
        self,
        generator: Path,
        config: RequestConfig,
        tokenizer: Path | None = None,
        execution: GenerationExecution = CPU,
    ) -> None:
        # One thread: the number of threads changes the order of sums, so samples would depend on the machine.
        torch.set_num_threads(1)
        if execution.device == "cuda":
            require_cuda()
            allow_tf32(execution.precision == "tf32")
        self._device, self.batch = torch.device(execution.device), execution.batch
        found: Generator = read_generator(generator)
        self.card: GeneratorCard = found.card
        self._network = load_network(found).to(self._device)
        if execution.precision == "bf16":
            self._network.use_half(torch.bfloat16)
        self._name = f"generator:{found.fingerprint[:12]}"
        self._config = config
        masked = isinstance(config, FillConfig) and config.mask
        self._mask = read_mask(masked) if masked else None
        # Loaded with the first text.
        self._encoder: TextEncoder | None = None
        self._tokenizer: Tokenizer | None = None
        if tokenizer:
            self._tokenizer, _ = load_tokenizer(tokenizer)
            self._tokenizer.to(self._device)
            # Frames are bytes, so their range is known.
            self._tokenizer.checks_range = False
            if self._device.type == "cuda":
                self._tokenizer.step_shape = GPU_STREAM
        self._vectors = None
        if config.sampling.takes_mean:
            assert self._tokenizer is not None
            self._vectors = code_vectors(self._tokenizer, self._network.digits)

    def sample(self, key: str, index: int, text: str | None = None) -> PendingSample:
        """Prepare a sample without given frames, optionally of a class or a text.

        Args:
            key: key of the sample; with the seed it determines the codes.
            index: index of the sample in the job.

        Raises:
            UsageError: the size or the class is not one that the generator was trained on.
        """
        config = self._config
        assert isinstance(config, SampleConfig)
        frames, height, width = sample_size(self.card, config)
        r, s = self.card.tokenizer.temporal_factor, self.card.tokenizer.spatial_factor
        shape = (1 + -(-(frames - 1) // r), -(-height // s), -(-width // s))
        label = 0 if config.label is None else label_index(self.card, config.label)
        tick = 1 / Fraction(config.fps or self.card.fps).limit_denominator(_MAX_DENOMINATOR)
        times = {"fps": float(1 / tick), "time_base": str(tick), "pts": tuple(range(frames)), "duration": frames}
        info = TokenInfo(self._name, index, shape, frames, height, width, **times)
        return self._pending(key, None, Condition(label, text=self._encode(text)), info)

    def predict(
        self,
        key: str,
        codes: np.ndarray,
        info: TokenInfo,
        conditions: ClipCondition = NO_CONDITION,
    ) -> PendingSample:
        """Prepare the continuation of a clip.

        Args:
            key: key of the clip; with the seed it determines the codes.
            codes: codes ``lt lh lw``; at least those of the given frames.

        Raises:
            UsageError: the clip is too short.
        """
        config = self._config
        assert isinstance(config, PredictConfig)
        r = self.card.tokenizer.temporal_factor
        prefix, frames = 1 + (config.given - 1) // r, config.frames or info.num_frames
        if info.num_frames < config.given or frames <= config.given:
            raise UsageError(
                f"has {counted(info.num_frames, 'frames')}, too few for given={config.given} and {frames} frames in "
                "the result; set given= to less"
            )
        shape = (1 + -(-(frames - 1) // r), codes.shape[1], codes.shape[2])
        made = replace(extend_times(info, frames), grid=shape)
        return self._pending(key, codes[:prefix], self._condition(conditions, shape[0]), made)

    def from_pixels(
        self, key: str, frames: np.ndarray, info: ClipInfo | ItemInfo, conditions: ClipCondition = NO_CONDITION
    ) -> PendingSample:
        """Prepare the prediction, interpolation or fill of a clip, as the request says.

        Args:
            key: key of the clip; with the seed it determines the codes.
            frames: ``t h w c`` uint8.

        Raises:
            UsageError: the clip is too short, too long or too large for the request or the generator.
            JobStopped: the GPU has too little memory to encode it.
        """
        config, tokenizer = self._config, self._tokenizer
        assert tokenizer is not None
        grid = tokenizer.latent_shape(len(frames), info.height, info.width)
        names = ("source", "clip_index", "num_frames", "height", "width", "fps", "time_base", "pts", "duration")
        tokens = TokenInfo(grid=grid, **{name: getattr(info, name) for name in names})
        if isinstance(config, PredictConfig):
            if len(frames) < config.given:
                raise UsageError(
                    f"has {counted(len(frames), 'frames')}, fewer than given={config.given}; set given= to less"
                )
            with self._encoding(key, config.given, info):
                video = to_video(frames[: config.given]).to(self._device)
                codes = tokenizer.encode(video)[0].cpu().numpy()
            return self.predict(key, codes, tokens, conditions)
        assert isinstance(config, InterpolateConfig | FillConfig)
        # The frames cost memory and time, so the size of the result is checked first.
        grid = tokenizer.latent_shape(*result_shape(config, (len(frames), info.height, info.width)))
        check_shape(self.card, grid, fixed_length=True)
        frames, part, tokens = prepare(config, frames, tokens, self._mask)
        with self._encoding(key, len(frames), tokens):
            hidden = torch.from_numpy(part)[None].to(self._device)
            blanked = encode_visible(tokenizer, to_video(frames).to(self._device), hidden)
        return self._pending(key, None, self._condition(conditions, grid[0], blanked), replace(tokens, grid=grid))

    def batch_key(self, sample: PendingSample) -> Hashable:
        """Return the shapes that samples of a batch share."""
        return batch_key(sample.shape, sample.given, sample.condition)

    def generate(self, samples: list[PendingSample]) -> list[dict[str, bytes]]:
        """Generate samples of one :meth:`batch_key`.

        Args:
            samples: at most :attr:`batch`.

        Returns:
            Files of each sample, by extension.

        Raises:
            JobStopped: the GPU has too little memory for a batch.
        """
        seed, sampling = self._config.seed, self._config.sampling
        prompts = [SamplePrompt(seeded_rng(f"{seed}/{each.key}"), each.given, each.condition) for each in samples]
        # Kernels round differently for another batch size.
        padding = [replace(prompts[0], rng=seeded_rng("")) for _ in range(self.batch - len(samples))]
        shape = samples[0].shape
        what = f"a batch of {counted(self.batch, 'samples')} of {'x'.join(map(str, shape))} codes"
        with stopping_when_full(what, "or set batch= to less and give another --out"):
            made = sample_codes(self._network, self.card, shape, prompts + padding, sampling, self._vectors)
        card = self.card.tokenizer
        return [token_files(codes, each.info, card) for codes, each in zip(made, samples, strict=False)]

    def _encoding(self, key: str, frames: int, info: ClipInfo | ItemInfo | TokenInfo) -> AbstractContextManager[None]:
        what = f"{key}: encoding {counted(frames, 'frames')} of {info.width}x{info.height}"
        return stopping_when_full(what, "or use smaller or shorter clips")

    def _pending(self, key: str, given: np.ndarray | None, condition: Condition, info: TokenInfo) -> PendingSample:
        t, h, w = info.grid
        check_shape(self.card, (t, h, w), condition.blanked is not None)
        return PendingSample(key, given, condition, (t, h, w), info)

    def _condition(self, clip: ClipCondition, latents: int, blanked: BlankedVideo | None = None) -> Condition:
        """Return the conditions of a clip; a class or a text of the request replaces that of the clip."""
        config, actions = self._config, None
        assert isinstance(config, InputConfig)
        label = clip.label if config.label is None else label_index(self.card, config.label)
        text = clip.text if config.text is None else config.text
        if clip.actions is not None:
            actions = torch.from_numpy(latent_actions(clip.actions, np.arange(latents), self.card))
        return Condition(label, actions, blanked, self._encode(text))

    def _encode(self, text: str | None) -> torch.Tensor | None:
        if text is None:
            return None
        if self._encoder is None:
            assert isinstance(self._config, SampleConfig | InputConfig)
            self._encoder = open_text_encoder(self.card, self._config.text_encoder)
        return self._encoder.encode(text)


def sample_size(card: GeneratorCard, config: SampleConfig) -> tuple[int, int, int]:
    """Return the number of frames, height and width (pixels) of the samples of a request."""
    lt, lh, lw = card.shapes[0]
    r, s = card.tokenizer.temporal_factor, card.tokenizer.spatial_factor
    return config.frames or 1 + (lt - 1) * r, config.height or lh * s, config.width or lw * s


def extend_times(info: TokenInfo, frames: int) -> TokenInfo:
    """Change the number of frames in the metadata of a clip: cut times, or repeat the last interval."""
    times = list(info.pts)
    step = times[-1] - times[-2] if len(times) > 1 else max(info.duration, 1)
    times += [times[-1] + step * (i + 1) for i in range(frames + 1 - len(times))]
    duration = info.duration if frames == info.num_frames else times[frames] - times[0]
    return replace(info, pts=tuple(times[:frames]), num_frames=frames, duration=duration, quality=None)
