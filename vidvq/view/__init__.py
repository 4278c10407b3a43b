"""`vidvq view`: a browser page of decoded clips, their codes and the codebooks."""

from vidvq.view.gallery import Gallery
from vidvq.view.page import build_page
from vidvq.view.serve import build_routes, serve

__all__ = ["Gallery", "build_page", "build_routes", "serve"]
