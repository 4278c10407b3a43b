"""`vidvq view`: tokens in a browser."""

from vidvq.view.gallery import Gallery
from vidvq.view.page import build_page
from vidvq.view.serve import serve

__all__ = ["Gallery", "build_page", "serve"]
