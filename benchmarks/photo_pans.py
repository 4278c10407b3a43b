"""Short videos over photographs, as further training data for a tokenizer: pans, zooms and still pictures.

    python benchmarks/photo_pans.py PHOTO... --out FOLDER [--per-photo 6] [--seed 0]

Photographs have textures that small collections of videos lack. A view moves over each photograph along a straight
line, with a constant zoom and rotation; every fourth video stands still, with the noise of a sensor.
"""

from fractions import Fraction
from math import cos, pi, sin
from pathlib import Path

import av
import click
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vidvq.video.write import TimedFrame, VideoShape, write_frames

FRAMES, HEIGHT, WIDTH = 33, 128, 192
FPS = 24
# Photographs are sampled at twice the size of a frame and averaged, against aliasing.
OVERSAMPLING = 2
# Height of a view as a share of the photograph's, and pixels of a frame per frame.
VIEW, SPEED = (0.25, 0.9), (0.2, 4.0)
# Change of the view's size, and rotation (radians), per frame.
ZOOM, ROTATION = 0.004, 0.004
NOISE = 2.0
STILL_EVERY = 4
CRF = 8


@click.command()
@click.argument("photos", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the videos.")
@click.option("--per-photo", default=6, show_default=True, help="Videos per photograph.")
@click.option("--seed", default=0, show_default=True, help="Seed of all random choices.")
def main(photos: tuple[Path, ...], out: Path, per_photo: int, seed: int) -> None:
    """Write videos of 33 frames, 192 x 128 pixels, over photographs."""
    out.mkdir(parents=True, exist_ok=True)
    shape = VideoShape(FRAMES, HEIGHT, WIDTH, Fraction(1, FPS))
    generator = torch.Generator().manual_seed(seed)
    for number, photo in enumerate(photos):
        picture = read_photo(photo)
        for index in range(per_photo):
            still = index % STILL_EVERY == STILL_EVERY - 1
            frames = [
                TimedFrame(pixels, Fraction(at, FPS), Fraction(at + 1, FPS))
                for at, pixels in enumerate(view(picture, still, generator))
            ]
            write_frames(out / f"{number:03}-{index:02}.mp4", "mp4", frames, shape, crf=CRF)


def read_photo(path: Path) -> Tensor:
    """Read a photograph as ``1 3 h w`` in [0, 255]."""
    with av.open(str(path)) as container:
        pixels = next(container.decode(video=0)).to_ndarray(format="rgb24")
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float()


def view(picture: Tensor, still: bool, generator: torch.Generator) -> np.ndarray:
    """Return what a moving view sees of a photograph.

    Args:
        picture: ``1 3 h w`` in [0, 255].
        still: whether the view stands still.
        generator: source of all random choices.

    Returns:
        Frames ``t h w c`` uint8.
    """

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    height, width = picture.shape[2:]
    # In photograph pixels: half the height of the view, which must not be wider than the photograph.
    half = draw(*VIEW) * min(height, width * HEIGHT / WIDTH) / 2
    # Averaging down to the sampling grid first, where the photograph is much finer.
    factor = max(int(2 * half / (HEIGHT * OVERSAMPLING)), 1)
    picture = F.avg_pool2d(picture, factor)
    height, width, half = picture.shape[2], picture.shape[3], half / factor
    per_pixel = 2 * half / HEIGHT
    speed, angle = 0.0 if still else draw(*SPEED) * per_pixel, draw(0, 2 * pi)
    zoom, turn = (0.0, 0.0) if still else (draw(-ZOOM, ZOOM), draw(-ROTATION, ROTATION))
    center = torch.tensor([draw(half, height - half), draw(half * WIDTH / HEIGHT, width - half * WIDTH / HEIGHT)])
    grid = [torch.arange(OVERSAMPLING * size) / OVERSAMPLING - size / 2 for size in (HEIGHT, WIDTH)]
    y, x = torch.meshgrid(*grid, indexing="ij")
    frames = []
    for at in range(-(FRAMES // 2), FRAMES - FRAMES // 2):
        scale, c, s = per_pixel * (1 + zoom) ** at, cos(turn * at), sin(turn * at)
        rows = center[0] + at * speed * sin(angle) + scale * (c * y + s * x)
        columns = center[1] + at * speed * cos(angle) + scale * (c * x - s * y)
        points = torch.stack([2 * columns / width - 1, 2 * rows / height - 1], dim=-1)[None]
        seen = F.grid_sample(picture, points, padding_mode="reflection", align_corners=False)
        frame = F.avg_pool2d(seen, OVERSAMPLING)[0]
        if still:
            frame = frame + NOISE * torch.randn(frame.shape, generator=generator)
        frames.append(frame.round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
    return np.stack(frames)


if __name__ == "__main__":
    main()
