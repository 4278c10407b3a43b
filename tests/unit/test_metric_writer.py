"""Metrics of a run: no duplicate records after a resume, and images of originals above reconstructions."""

import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vidvq.training.metric_writer import MetricWriter


def test_records_after_the_resumed_step_are_removed(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    for step in (1, 2, 3):
        writer.scalars(step, {"loss": step / 2})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'\0\0\xff\n{"step": 2, "lo\n{"step": 2}')
    writer = MetricWriter(tmp_path, 2)
    writer.scalars(3, {"loss": 9.0})
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 9.0}]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(1, 0.5), (2, 1.0), (3, 9.0)]


def test_lines_are_json_where_a_number_is_none(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    writer.scalars(1, {"loss": 0.5, "grad_norm": math.inf, "other": math.nan})
    writer.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {"step": 1, "loss": 0.5, "grad_norm": None, "other": None}


def test_originals_are_above_their_reconstructions(tmp_path):
    white, black = torch.ones(1, 3, 5, 8, 16), -torch.ones(1, 3, 5, 8, 16)
    writer = MetricWriter(tmp_path, 0)
    writer.comparisons(1, [(white, black)])
    writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for tag, frames in {"held_out/0": 1, "held_out_video/0": 5}.items():
        image = Image.open(io.BytesIO(events.Images(tag)[0].encoded_image_string))
        pixels = np.array(image.convert("RGB"))
        assert pixels.shape == (16, 16, 3)
        assert (pixels[:8] == 255).all() and (pixels[8:] == 0).all()
        # Equal frames of an animation may be merged into one.
        assert getattr(image, "n_frames", 1) <= frames
