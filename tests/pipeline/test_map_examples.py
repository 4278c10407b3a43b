"""The examples run over the clips of a demo video; a short training then reads the clips that move."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vidvq.data.index import read_clip_index
from vidvq.formats.columns import read_table

EXAMPLES = Path(__file__).parents[2] / "examples"
INLINE = "runtime.workers=0"


@pytest.fixture
def clips(demo_videos, tmp_path, vidvq) -> Path:
    settings = "clip.num_frames=9 clip.min_frames=9 clip.short_side=64 clips_per_shard=8".split()
    videos = [demo_videos / "train/carphone.mp4", demo_videos / "train/box.mp4"]
    assert vidvq("shard", *videos, "--out", tmp_path / "clips", *settings, INLINE).code == 0
    return tmp_path / "clips"


def test_a_motion_score_selects_what_is_trained_on(clips, tmp_path, vidvq):
    ran = vidvq("map", clips, "--function", f"{EXAMPLES}/motion.py:motion", INLINE)
    assert ran.code == 0, ran.err
    table = read_table(clips)
    assert table.names == {"motion", "motion_peak"} and len(table.rows) == len(read_clip_index([str(clips)]).keys)
    assert all(0 <= row["motion"] <= row["motion_peak"] <= 1 for row in table.rows.values())
    threshold = float(np.median([row["motion"] for row in table.rows.values()]))
    where = f"motion > {threshold}"
    assert len(read_clip_index([str(clips)], where).keys) == sum(
        row["motion"] > threshold for row in table.rows.values()
    )
    settings = ["data.batch_size=2", "data.num_frames=5", "data.crop=32", "data.workers=1", "steps=2", "log_every=1"]
    job = ["train", "nano", f"data.clips={clips}", f"data.where={where}", f"out={tmp_path / 'run'}", *settings]
    # Training sets signal handlers and process groups, so it has a process of its own.
    ran = subprocess.run([sys.executable, "-m", "vidvq", *job, "checkpoint_every=2"], capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert where in (tmp_path / "run/config.yaml").read_text()


@pytest.mark.slow
def test_a_captioner_is_built_once_and_its_captions_select(clips, vidvq):
    motion = vidvq("map", clips, "--function", f"{EXAMPLES}/motion.py:motion", INLINE)
    ran = vidvq("map", clips, "--function", f"{EXAMPLES}/captions.py:Captioner", INLINE, "arguments.max_tokens=5")
    assert motion.code == 0 and ran.code == 0, ran.err
    rows = read_table(clips).rows
    assert {name for row in rows.values() for name in row} == {"motion", "motion_peak", "caption", "caption_tokens"}
    assert all(len(row["caption"].split()) == row["caption_tokens"] for row in rows.values())
    found = read_clip_index([str(clips)], "motion > 0.001 and caption is not null")
    assert 0 < len(found.keys) == sum(row["motion"] > 0.001 for row in rows.values())
