"""Images as data URIs."""

import io

import numpy as np
from PIL import Image

from vidvq.html_page import data_uri
from vidvq.video.encode import encode_png

COLUMNS = 8
# Largest height and width of a JPEG by libjpeg (pixels).
_MAX_SIDE = 65500


def sheet_capacity(height: int, width: int) -> int:
    """Return the number of frames of a size (pixels) that fit one sheet of :func:`jpeg_sheet`."""
    columns = _MAX_SIDE // width
    return columns if columns < COLUMNS else COLUMNS * (_MAX_SIDE // height)


def jpeg_sheet(frames: np.ndarray) -> str:
    """Encode frames ``t h w c`` uint8, at most :func:`sheet_capacity`, as one JPEG sheet, in rows of ``COLUMNS``.

    Unlike a video, any browser shows it, with immediate access to every frame.
    """
    t, h, w, _ = frames.shape
    rows = -(-t // COLUMNS)
    sheet = np.zeros((rows * h, min(COLUMNS, t) * w, 3), dtype=np.uint8)
    for index, frame in enumerate(frames):
        y, x = divmod(index, COLUMNS)
        sheet[y * h : (y + 1) * h, x * w : (x + 1) * w] = frame
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, format="JPEG", quality=88, subsampling=0)
    return data_uri("image/jpeg", buffer.getvalue())


def png_strip(pixels: np.ndarray) -> str:
    """Encode pixels ``h w c`` uint8 as a lossless PNG."""
    return data_uri("image/png", encode_png(pixels))
