"""Where a run tells what it did: ``metrics.jsonl``, and TensorBoard."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from vidvq.storage import write_atomic

_FPS = 8


class Sinks:
    """Scalars, images and videos by step.

    Args:
        run: the run's directory.
        first: steps that are done; what a killed run told of later ones will be told again.
    """

    def __init__(self, run: Path, first: int) -> None:
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=first + 1)
        path = run / "metrics.jsonl"
        kept = [line for line in _read_lines(path) if json.loads(line)["step"] <= first]
        write_atomic(path, "".join(kept).encode())
        self._lines = path.open("a", encoding="utf-8")

    def scalars(self, step: int, metrics: dict[str, Any]) -> None:
        """One line, and a point on each curve."""
        self._lines.write(json.dumps({"step": step} | metrics) + "\n")
        self._lines.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def pairs(self, step: int, videos: list[tuple[Tensor, Tensor]]) -> None:
        """Originals above their reconstructions, ``1 c t h w`` in [-1, 1]: first frames as images, then as videos."""
        for index, (original, other) in enumerate(videos):
            both = np.concatenate([_pixels(original), _pixels(other)], axis=3)
            self._board.add_image(f"held_out/{index}", both[0, 0], step)
            image = Summary.Image(
                height=both.shape[3], width=both.shape[4], colorspace=3, encoded_image_string=_gif(both)
            )
            value = Summary.Value(tag=f"held_out_video/{index}", image=image)
            self._board._get_file_writer().add_summary(Summary(value=[value]), step)

    def close(self) -> None:
        """Write what is left."""
        self._lines.close()
        self._board.close()


def _gif(video: np.ndarray) -> bytes:
    """``1 t c h w`` uint8 as an animation, which is how TensorBoard shows videos."""
    first, *rest = (Image.fromarray(frame.transpose(1, 2, 0)) for frame in video[0])
    file = io.BytesIO()
    first.save(file, format="gif", save_all=True, append_images=rest, duration=1000 // _FPS, loop=0)
    return file.getvalue()


def _pixels(video: Tensor) -> np.ndarray:
    """``1 c t h w`` in [-1, 1] to ``1 t c h w`` uint8."""
    return video.float().add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 1, 3, 4).cpu().numpy()


def _read_lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]
