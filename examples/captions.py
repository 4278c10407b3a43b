r"""A caption for each clip by a model of transformers, for `vidvq map`. The model is built once in each worker.

    vidvq map CLIPS --function examples/captions.py:Captioner gpus=1 \
        arguments.model=Salesforce/blip-image-captioning-base version=1

Without `arguments.model` the model is tiny and has random weights, and its captions are noise: it shows the plumbing,
and needs no download.
"""

from typing import Any

import numpy as np
import torch
from transformers import AutoProcessor, BlipConfig, BlipForConditionalGeneration

from vidvq.formats.clip_shard import ClipInfo

_TINY = {
    "text_config": {
        "vocab_size": 128,
        "hidden_size": 32,
        "encoder_hidden_size": 32,
        "intermediate_size": 64,
        "projection_dim": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "bos_token_id": 1,
        "sep_token_id": 2,
        "pad_token_id": 0,
        "eos_token_id": 2,
    },
    "vision_config": {
        "image_size": 32,
        "patch_size": 16,
        "hidden_size": 32,
        "intermediate_size": 64,
        "projection_dim": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
    "projection_dim": 32,
}
# Mean and deviation of the pixels that BLIP was trained on (red, green, blue).
_MEAN, _STD = torch.tensor([0.481, 0.458, 0.408]), torch.tensor([0.269, 0.261, 0.276])


class Captioner:
    """Captions the middle frame of a clip.

    Args:
        model: name or folder of a BLIP model; None for a tiny one with random weights.
        max_tokens: length of a caption (tokens).
    """

    def __init__(self, model: str | None = None, max_tokens: int = 20) -> None:
        torch.manual_seed(0)
        self._processor = AutoProcessor.from_pretrained(model) if model else None
        built: Any = BlipForConditionalGeneration.from_pretrained(model) if model else None
        self._model: Any = built or BlipForConditionalGeneration(BlipConfig(**_TINY))
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model.to(self._device).eval()
        self._max_tokens = max_tokens

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray, info: ClipInfo) -> dict[str, str | int]:
        """Caption one clip, ``t h w c`` uint8."""
        side = self._model.config.vision_config.image_size
        picture = torch.from_numpy(frames[len(frames) // 2]).float() / 255
        picture = ((picture - _MEAN) / _STD).permute(2, 0, 1)[None].to(self._device)
        picture = torch.nn.functional.interpolate(picture, (side, side), mode="bicubic", antialias=True)
        tokens = self._model.generate(pixel_values=picture, max_new_tokens=self._max_tokens, do_sample=False)[0]
        if self._processor:
            caption = self._processor.decode(tokens, skip_special_tokens=True)
        else:
            caption = " ".join(str(int(token)) for token in tokens)
        return {"caption": caption, "caption_tokens": len(tokens)}
