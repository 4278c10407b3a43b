"""Text-guided editing without a generator: latents move along CLIP's gradient through the decoder.

VQGAN-CLIP (Crowson et al. 2022, "VQGAN-CLIP: Open Domain Image Generation and Editing with Natural Language Guidance").
At each step random crops of the decoded frames are compared with the text; latents are quantized straight through.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vidvq.config import is_mapping
from vidvq.errors import UsageError
from vidvq.formats.token_shard import TokenInfo, TokenizerCard, token_files
from vidvq.generate.requests import GuideConfig
from vidvq.generate.text import refusing_damage
from vidvq.generate.training.examples import seeded_rng
from vidvq.log import counted
from vidvq.model import VideoTokenizer
from vidvq.pretrained import load_tokenizer
from vidvq.pretrained.device import stopping_when_full
from vidvq.storage import read_json

# Pixel statistics that CLIP's weights were trained with (RGB, 0 to 1).
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Smallest side of a crop, as a fraction of the short side of the frame.
_SMALLEST = 0.5


class Guided(NamedTuple):
    """Edited codes.

    Attributes:
        codes: ``lt lh lw`` int64.
        losses: loss before each step.
    """

    codes: np.ndarray
    losses: list[float]


class Clip:
    """A CLIP model of transformers and the text to approach.

    Args:
        folder: folder of the model, with ``config.json``, ``model.safetensors`` and the files of its text tokenizer.
        text: what the frames should show.

    Raises:
        UsageError: transformers is not installed, or the folder holds no CLIP model.
    """

    def __init__(self, folder: Path, text: str, device: torch.device) -> None:
        check_clip(folder)
        from transformers import AutoTokenizer, CLIPModel

        with refusing_damage(f"--clip {folder}"):
            # Safetensors alone: nothing is unpickled.
            model: Any = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
            words: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = model.to(device).eval().requires_grad_(False)
        length = model.config.text_config.max_position_embeddings
        given = words(text, return_tensors="pt", truncation=True, max_length=length).to(device)
        found = model.text_model(given["input_ids"], attention_mask=given["attention_mask"])
        self._text = F.normalize(model.text_projection(found.pooler_output), dim=-1)
        self.side = model.config.vision_config.image_size
        self._mean, self._std = (torch.tensor(each, device=device).view(3, 1, 1) for each in (_MEAN, _STD))

    def distance(self, images: Tensor) -> Tensor:
        """Return the mean squared great-circle distance between the text and images ``n 3 side side`` in [-1, 1]."""
        pixels = ((images + 1) / 2 - self._mean) / self._std
        found = self._model.visual_projection(self._model.vision_model(pixels).pooler_output)
        chord = (F.normalize(found, dim=-1) - self._text).norm(dim=-1)
        return (chord / 2).clamp(max=1 - 1e-6).arcsin().square().mul(2).mean()


# Key, codes ``lt lh lw`` and metadata.
GuidedSample: TypeAlias = tuple[str, np.ndarray, TokenInfo]


def check_clip(folder: Path) -> None:
    """Check that a folder holds a CLIP model, and that transformers is installed.

    Raises:
        UsageError: one of them is not the case.
    """
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    if not is_mapping(config) or config.get("model_type") != "clip" or not (folder / "model.safetensors").is_file():
        raise UsageError(
            f"--clip {folder} is not a CLIP model of transformers: give a folder with config.json (model_type clip), "
            "model.safetensors and the text tokenizer, such as a download of openai/clip-vit-base-patch32"
        )
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise UsageError("guide needs the library transformers; pip install 'vidvq[interop]'") from error


class Guide:
    """Moves the latents of token samples towards a text.

    Args:
        clip: folder of the CLIP model.
        text: what the frames should show.

    Raises:
        UsageError: a model cannot be loaded.
    """

    batch = 1

    def __init__(self, tokenizer: Path, clip: Path, text: str, config: GuideConfig, card: TokenizerCard) -> None:
        # One thread: the number of threads changes the order of sums, so samples would depend on the machine.
        torch.set_num_threads(1)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._tokenizer = open_tokenizer(tokenizer)[0].to(device)
        self._clip, self._config, self._card = Clip(clip, text, device), config, card

    def batch_key(self, sample: GuidedSample) -> None:
        """Return what samples of a batch share."""

    def generate(self, samples: list[GuidedSample]) -> list[dict[str, bytes]]:
        """Edit a sample and return its files by extension.

        Args:
            samples: one sample.

        Raises:
            JobStopped: the GPU has too little memory.
        """
        ((key, codes, info),) = samples
        what = f"{key}: a step of {counted(info.num_frames, 'frames')} of {info.width}x{info.height}"
        with stopping_when_full(what, "or use smaller or shorter clips"):
            made = self.edit(key, codes, (info.height, info.width)).codes
        return [token_files(made, replace(info, quality=None), self._card)]

    def edit(self, key: str, codes: np.ndarray, size: tuple[int, int]) -> Guided:
        """Move the latents of a sample along the gradient of the distance to the text.

        Args:
            key: key of the sample; with the seed it determines the crops.
            codes: codes ``lt lh lw``.
            size: height and width of the encoded frames (pixels).
        """
        config, tokenizer, rng = self._config, self._tokenizer, seeded_rng(f"{self._config.seed}/{key}")
        height, width = (side * tokenizer.upscale for side in size)
        start = tokenizer.latents(torch.from_numpy(codes.astype(np.int64))[None].to(tokenizer.device))
        spread = float(start.std().clamp(min=1e-6))
        latents = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([latents], lr=config.lr * spread)
        losses: list[float] = []
        for _ in range(config.steps):
            video, _ = tokenizer.decode_latents(latents)
            images = _crops(video[0, :, :, :height, :width], config, self._clip.side, rng)
            loss = self._clip.distance(images)
            if config.keep:
                loss = loss + config.keep * ((latents - start) / spread).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        with torch.no_grad():
            made = tokenizer.decode_latents(latents)[1]
        return Guided(made[0].cpu().numpy(), losses)


def open_tokenizer(folder: Path) -> tuple[VideoTokenizer, TokenizerCard]:
    """Load a frozen tokenizer that gradients can pass through, and its card.

    Raises:
        UsageError: it is one of another package.
    """
    tokenizer, card = load_tokenizer(folder)
    if not isinstance(tokenizer, VideoTokenizer):
        raise UsageError(f"{folder} is a {type(tokenizer).__name__}; guide needs a tokenizer of vidvq train")
    return tokenizer.eval().requires_grad_(False), card


def _crops(video: Tensor, config: GuideConfig, side: int, rng: torch.Generator) -> Tensor:
    """Draw square crops ``n c side side`` of the frames of a video ``c t h w``, half of them mirrored."""
    _, t, h, w = video.shape
    images = []
    for frame, size, top, left, mirror in torch.rand(config.crops, 5, generator=rng).tolist():
        edge = max(round(min(h, w) * (_SMALLEST + (1 - _SMALLEST) * size)), 1)
        y, x = round(top * (h - edge)), round(left * (w - edge))
        crop = video[None, :, min(int(frame * t), t - 1), y : y + edge, x : x + edge]
        crop = F.interpolate(crop, (side, side), mode="bilinear", antialias=True)
        images.append(crop.flip(-1) if mirror < 0.5 else crop)
    return torch.cat(images).clamp(-1, 1)
