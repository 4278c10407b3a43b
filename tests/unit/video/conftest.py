"""The video that the odd ones are made from."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def master(make_video, tmp_path_factory) -> Path:
    """Sixty frames at 25 a second, 64x128, without loss."""
    return make_video(tmp_path_factory.mktemp("master") / "master.mkv", 60, size=(64, 128), codec="ffv1")
