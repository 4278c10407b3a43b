"""Writer of training metrics: ``metrics.jsonl`` and TensorBoard."""

import io
import json
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from vidvq.model.pixels import to_frames
from vidvq.storage import write_atomic
from vidvq.training.distributed import DistributedContext

# Frame rate of animations (frames per second).
_FPS = 8


class MetricWriter:
    """Writes scalars, images and videos by step.

    Args:
        run: run directory.
        first: number of finished steps; records of later steps, left by a killed or rolled-back run, are removed.
    """

    def __init__(self, run: Path, first: int) -> None:
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=first + 1)
        path = run / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        write_atomic(path, b"".join(line for line in lines if _is_of_step(line, first)))
        self._lines = path.open("a", encoding="utf-8")

    def scalars(self, step: int, metrics: dict[str, Any]) -> None:
        """Write the metrics of a step."""
        # JSON has no infinity, which the gradient norm is when fp16 overflows.
        finite = {name: value if isfinite(value) else None for name, value in metrics.items()}
        self._lines.write(json.dumps({"step": step} | finite) + "\n")
        self._lines.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def comparisons(self, step: int, videos: list[tuple[Tensor, Tensor]]) -> None:
        """Write pairs of videos ``1 c t h w`` in [-1, 1], stacked vertically, as animations and images."""
        for index, pair in enumerate(videos):
            frames = np.concatenate([to_frames(video) for video in pair], axis=1)
            self._board.add_image(f"held_out/{index}", frames[0], step, dataformats="HWC")
            image = Summary.Image(
                height=frames.shape[1], width=frames.shape[2], colorspace=3, encoded_image_string=_gif(frames)
            )
            value = Summary.Value(tag=f"held_out_video/{index}", image=image)
            self._board._get_file_writer().add_summary(Summary(value=[value]), step)

    def close(self) -> None:
        """Flush and close the files."""
        self._lines.close()
        self._board.close()


def open_writer(run: Path, first: int, context: DistributedContext) -> MetricWriter | None:
    """Open the writer of a run, on rank 0 alone; see :class:`MetricWriter`."""
    return MetricWriter(run, first) if context.rank == 0 else None


def _gif(frames: np.ndarray) -> bytes:
    """Encode frames ``t h w c`` uint8 as an animated GIF, the video format of TensorBoard."""
    first, *rest = (Image.fromarray(frame) for frame in frames)
    file = io.BytesIO()
    first.save(file, format="gif", save_all=True, append_images=rest, duration=1000 // _FPS, loop=0)
    return file.getvalue()


def _is_of_step(line: bytes, last: int) -> bool:
    """Return whether a line is a whole record of a step up to ``last``: a crash of the machine may leave torn ones."""
    try:
        return json.loads(line)["step"] <= last and line.endswith(b"\n")
    except ValueError:
        return False
