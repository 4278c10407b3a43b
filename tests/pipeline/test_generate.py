"""`vidvq generate` end to end: training, resume, generated token shards, evaluation, and errors before any work."""

import io
import itertools
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from tests.helpers.generators import make_card, write_random
from tests.helpers.warm import COMMAND
from vidvq.config import load
from vidvq.corpus.frames import decode_items
from vidvq.data import TokenDataConfig, TokenDataset
from vidvq.errors import UsageError
from vidvq.formats.code_statistics import read_code_statistics
from vidvq.formats.generator import read_generator
from vidvq.formats.token_index import index_tokens
from vidvq.formats.token_shard import read_tokenizer_card
from vidvq.generate.conditions import label_index, read_column, read_conditions
from vidvq.generate.config import ConditionConfig, GenerateTrainConfig, PixelConfig
from vidvq.generate.evaluation import evaluate
from vidvq.generate.evaluation.evaluate import _Evaluation
from vidvq.generate.evaluation.held_out_conditions import HeldOutConditions
from vidvq.generate.evaluation.ngram import NgramModels
from vidvq.generate.network.code_vectors import code_vectors
from vidvq.generate.network.transformer import VideoTransformer
from vidvq.generate.requests import FillConfig, InterpolateConfig, PredictConfig, SampleConfig, SamplingConfig
from vidvq.generate.stages.open import open_request
from vidvq.generate.training.training_data import open_training_data
from vidvq.model import VideoTokenizer
from vidvq.pretrained import load_tokenizer

FAST = ("sampling.steps=2", "format=none")
TRAIN = (
    *("steps=4", "checkpoint_every=2", "log_every=1", "keep_checkpoints=9", "data.batch_size=2", "data.workers=0"),
    *("model={width: 24, depth: 1, heads: 2}", "optimizer.warmup_steps=0"),
)

SLOW = """
import sys, time
from vidvq import config
from vidvq.generate.training import loop
from vidvq.generate.config import GenerateTrainConfig

def measure(self, weights):
    time.sleep(5)
    return 1.0

def save(*arguments):
    time.sleep(5)
    return saved(*arguments)

loop.HeldOutLoss.measure = measure
saved, loop.save_checkpoint = loop.save_checkpoint, save
loop.run_generate_train(config.load(GenerateTrainConfig, config.find_config("generate-nano"), sys.argv[1:]))
"""

BREAK_ONCE = """
import torch
from vidvq.generate.training.trainer import GeneratorTrainer
train, broken = GeneratorTrainer.forward_backward, []
def forward_backward(self, examples, micro_step):
    terms = train(self, examples, micro_step)
    if self.progress.step == 3 and not broken:
        broken.append(1)
        with torch.no_grad():
            next(self.network.parameters()).fill_(float("nan"))
    return terms
GeneratorTrainer.forward_backward = forward_backward
"""


@pytest.fixture(scope="module")
def generator(tmp_path_factory, tokens_dir):
    """A generator for every task, with random weights."""
    return write_random(tmp_path_factory.mktemp("generator") / "run", make_card(read_tokenizer_card(tokens_dir)))


def codes_of(folder):
    card = read_tokenizer_card(folder)
    return {location.key: location.read(card) for location in index_tokens(folder)}


@pytest.fixture(scope="module")
def train(warm):
    def run(tokens, out, *overrides):
        done = warm.run("generate", "train", tokens, "--out", out, *TRAIN, *overrides)
        assert done.returncode == 0, done.stderr
        return done.stderr

    return run


def distances(vectors):
    """Distances of all pairs of vectors ``k d``, flat."""
    return np.linalg.norm(vectors[:, None] - vectors, axis=-1)[np.triu_indices(len(vectors), 1)]


def resume(train, tokens, run, whole, *settings):
    """Train to ``whole``, and to ``run`` with a resume at step 2; check that both have the same weights and state."""
    last = "checkpoints/step-00000004"
    train(tokens, run, *settings)
    shutil.copytree(run, whole)
    shutil.rmtree(run / last)
    assert "resuming from" in train(tokens, run, *settings)
    for file in ("model.safetensors", "fingerprint", "training/optimizer.safetensors"):
        assert (run / last / file).read_bytes() == (whole / last / file).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_under_zero_with_bf16_resumes_exactly(train, tmp_path, tokens_dir, stage):
    resume(train, tokens_dir, tmp_path / "run", tmp_path / "whole", f"zero_stage={stage}", "precision=bf16")


def test_a_run_resumes_exactly_and_its_generator_makes_tokens(
    train, tmp_path, tokens_dir, clips_dir, checkpoint_dir, vidvq
):
    tasks = ("tasks={generate: 1, predict: 1, interpolate: 1, fill: 1}", f"pixels.clips=[{clips_dir}]")
    tasks = (*tasks, f"code_vectors={checkpoint_dir}")
    settings = (*tasks, f"pixels.tokenizer={checkpoint_dir}", f"held_out.tokens={tokens_dir}", "held_out.every=2")
    run, whole = tmp_path / "run", tmp_path / "whole"
    resume(train, tokens_dir, run, whole, *settings)
    timings = {"step_s", "data_wait", "tokens_per_s"}
    first, second = (
        [
            {name: value for name, value in json.loads(line).items() if name not in timings}
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (run, whole)
    )
    assert first == second and [line["step"] for line in first] == [1, 2, 2, 3, 4, 4]
    weights = read_generator(whole).tensors["embeddings.1.tables.0.weight"]
    tokenizer, _ = load_tokenizer(checkpoint_dir)
    vectors = code_vectors(tokenizer, [(book.size,) for book in tokenizer.codebooks])[1][0].numpy()
    assert np.corrcoef(distances(weights), distances(vectors))[0, 1] > 0.5
    samples = tmp_path / "samples"
    done = vidvq("generate", "sample", run, "--out", samples, "--checkpoint", checkpoint_dir, "n=2", "sampling.steps=2")
    assert done.code == 0, done.err
    assert {path.suffix for path in (samples / "video").iterdir()} == {".mp4", ".json"}


def test_weights_that_are_not_finite_are_rolled_back_not_saved(tmp_path, tokens_dir, warm):
    run = tmp_path / "run"
    done = warm.run("generate", "train", tokens_dir, "--out", run, *TRAIN, code=BREAK_ONCE + COMMAND)
    assert done.returncode == 0, done.stderr
    assert "step 4: the generator has weights that are not finite; rolled back to step 2" in done.stderr
    assert all(np.isfinite(array).all() for array in read_generator(run).tensors.values())


def test_a_step_takes_no_longer_after_an_evaluation_or_a_save(tmp_path, tokens_dir):
    run = tmp_path / "run"
    held_out = (f"held_out.tokens={tokens_dir}", "held_out.every=2")
    settings = (*TRAIN, f"data.tokens=[{tokens_dir}]", f"out={run}", *held_out)
    subprocess.run([sys.executable, "-c", SLOW, *settings], check=True)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    taken = {line["step"]: line["step_s"] for line in lines if "step_s" in line}
    assert sorted(taken) == [1, 2, 3, 4] and taken[3] < 5


def test_a_generator_of_a_codebook_above_16_bits_makes_videos(train, tmp_path, tiny_clips, residual_checkpoint, vidvq):
    tokens, run, out = (tmp_path / name for name in ("tokens", "run", "samples"))
    inline = ("--checkpoint", residual_checkpoint, "runtime.workers=0")
    assert vidvq("tokenize", tiny_clips, *inline, "--out", tokens).code == 0
    train(tokens, run, "steps=2", f"code_vectors={residual_checkpoint}")
    assert read_generator(run).tensors["embeddings.0.tables.1.weight"].shape == (512, 24)
    done = vidvq("generate", "sample", run, *inline, "--out", out, "n=1", "sampling.steps=2")
    assert done.code == 0, done.err
    ((codes, _),) = codes_of(out).values()
    assert codes.shape == (2, 2, 4) and 1 << 16 < codes.max() < 1 << 18
    assert {path.suffix for path in (out / "video").iterdir()} == {".mp4", ".json"}


def test_samples_are_token_shards_like_any_other(tmp_path, generator, tokens_dir, vidvq):
    out = tmp_path / "samples"
    done = vidvq("generate", "sample", generator, "--out", out, "n=3", "items_per_shard=2", *FAST)
    assert done.code == 0, done.err
    assert read_tokenizer_card(out) == read_tokenizer_card(tokens_dir)
    made = codes_of(out)
    assert {codes.shape for codes, _ in made.values()} == {(3, 4, 5)}
    assert {(info.num_frames, info.height, info.width, info.fps) for _, info in made.values()} == {(9, 32, 40, 25.0)}
    assert len({codes.tobytes() for codes, _ in made.values()}) == 3
    assert vidvq("verify", out).code == 0
    assert vidvq("export", out, "--to", "bin", "--out", tmp_path / "bin", "--check").code == 0
    recorded = json.loads((out / "generator.json").read_text())
    assert recorded["task"] == "generate" and recorded["seed"] == 0
    size = ("frames=6", "height=30", "width=17", "fps=29.97")
    assert vidvq("generate", "sample", generator, "--out", tmp_path / "size", "n=1", *size, *FAST).code == 0
    ((codes, info),) = codes_of(tmp_path / "size").values()
    assert codes.shape == (3, 4, 3) and (info.num_frames, info.height, info.width) == (6, 30, 17)
    assert (info.fps, info.time_base, info.pts, info.duration) == (29.97, "100/2997", tuple(range(6)), 6)


def test_samples_do_not_depend_on_shards_or_interruptions(tmp_path, generator, vidvq, snapshot):
    whole, again = tmp_path / "whole", tmp_path / "again"
    for out in (whole, again):
        assert vidvq("generate", "sample", generator, "--out", out, "n=4", "items_per_shard=2", *FAST).code == 0
    assert snapshot(whole) == snapshot(again)
    # The state after a kill: one shard without its record, one missing.
    (again / "commits/tokens-000000.tar.json").unlink()
    (again / "commits/tokens-000001.tar.json").unlink()
    (again / "tokens-000001.tar").unlink()
    assert vidvq("generate", "sample", generator, "--out", again, "n=4", "items_per_shard=2", *FAST).code == 0
    assert snapshot(whole) == snapshot(again)
    one = tmp_path / "one"
    assert vidvq("generate", "sample", generator, "--out", one, "n=4", *FAST).code == 0
    assert all(np.array_equal(codes, codes_of(one)[key][0]) for key, (codes, _) in codes_of(whole).items())
    other = vidvq("generate", "sample", generator, "--out", one, "n=4", "seed=1", *FAST)
    assert other.code == 2 and "seed" in other.error


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sample", "predict", "interpolate", "fill"])
def test_samples_do_not_depend_on_the_workers(tmp_path, generator, clips_dir, checkpoint_dir, task, vidvq, snapshot):
    inputs = ["n=6", "items_per_shard=1"] if task == "sample" else [clips_dir, "--checkpoint", checkpoint_dir]
    box = ["box=[8,8,16,16]"] if task == "fill" else []
    found = []
    for workers in (0, 2, 3) if task == "sample" else (0, 2):
        out = tmp_path / str(workers)
        settings = (*box, f"runtime.workers={workers}", *FAST)
        done = vidvq("generate", task, generator, *inputs, "--out", out, *settings)
        assert done.code == 0, done.err
        found.append(snapshot(out))
    assert all(each == found[0] for each in found)


def test_a_prediction_begins_with_the_given_codes(
    tmp_path, generator, tokens_dir, tiny_tokens, clips_dir, checkpoint_dir, vidvq
):
    out, pixels = tmp_path / "tokens", tmp_path / "pixels"
    assert vidvq("generate", "predict", generator, tokens_dir, "--out", out, "given=5", "frames=21", *FAST).code == 0
    given, made = codes_of(tokens_dir), codes_of(out)
    assert given.keys() == made.keys()
    for key, (codes, info) in made.items():
        assert codes.shape[0] == 6 and np.array_equal(codes[:2], given[key][0][:2])
        assert info.num_frames == len(info.pts) == 21 and info.pts[:9] == given[key][1].pts
    other = vidvq("generate", "predict", generator, tiny_tokens, "--out", out, "given=5", "frames=21", *FAST)
    assert other.code == 2 and "Give another --out" in other.error
    arguments = ("--checkpoint", checkpoint_dir, "given=5", *FAST)
    done = vidvq("generate", "predict", generator, clips_dir, "--out", pixels, *arguments)
    assert done.code == 0 and "% generating" in done.err, done.err
    for key, (codes, _) in codes_of(pixels).items():
        assert codes.shape == given[key][0].shape and np.array_equal(codes[:2], given[key][0][:2])


@pytest.mark.parametrize("task", ["sample", "predict"])
def test_mean_codes_do_not_depend_on_the_seed(task, tmp_path, generator, tokens_dir, checkpoint_dir, vidvq):
    def make(name, *settings):
        inputs = [] if task == "sample" else [tokens_dir]
        arguments = ("--checkpoint", checkpoint_dir, "--out", tmp_path / name, *FAST, *settings)
        done = vidvq("generate", task, generator, *inputs, *arguments)
        assert done.code == 0, done.err
        return [codes.tolist() for codes, _ in codes_of(tmp_path / name).values()]

    # With one step, the order of revealing the codes does not matter.
    estimate = ("sampling.temperature=0", "sampling.steps=1")
    mean = make("mean", *estimate, "sampling.estimate=mean")
    assert mean == make("again", *estimate, "sampling.estimate=mean", "seed=1") != make("mode", *estimate)


def test_a_prompt_that_cannot_be_read_is_a_counted_failure(tmp_path, generator, tokens_dir, copy_of, vidvq, snapshot):
    damaged = copy_of(tokens_dir, "damaged")
    location = index_tokens(damaged)[1]
    _, offset, size = next(member for member in location.members if member[0] == "tokens.npy")
    offset += location.offset
    data = bytearray(location.shard.read_bytes())
    data[offset + size - 1] = 0xFF
    whole = location.shard.read_bytes()
    location.shard.write_bytes(data)
    out = tmp_path / "out"
    done = vidvq("generate", "predict", generator, damaged, "--out", out, *FAST)
    assert done.code == 1 and "bad_prompt" in done.err
    assert done.err.count(location.shard.name) == 1 and f"{location.shard}: {location.key}: " in done.err
    assert location.key not in codes_of(out) and len(codes_of(out)) == len(index_tokens(damaged)) - 1
    assert vidvq("verify", out).code == 0
    location.shard.write_bytes(whole)
    done = vidvq("generate", "predict", generator, damaged, "--out", out, *FAST, "--retry-failed=bad_prompt")
    assert done.code == 0 and "1 failed item to retry" in done.err, done.err
    assert vidvq("generate", "predict", generator, damaged, "--out", tmp_path / "fresh", *FAST).code == 0
    retried, fresh = (snapshot(folder) for folder in (out, tmp_path / "fresh"))
    # The name of a shard that was made again has the number of its generation.
    shards = {digest for name, digest in fresh.items() if name.endswith(".tar")}
    assert shards and shards <= set(retried.values())
    assert vidvq("verify", out).code == 0
    card = make_card(read_tokenizer_card(tokens_dir), shapes=((3, 4, 4),))
    small = write_random(tmp_path / "small", card)
    larger = vidvq("generate", "predict", small, damaged, "--out", tmp_path / "larger", *FAST)
    assert larger.code == 1 and "frames of 40x32 are larger than the 32x32" in larger.err
    missing = vidvq("generate", "predict", generator, damaged, "--out", tmp_path / "none", *FAST, "--retry-failed")
    assert missing.code == 2 and "has no failed samples to retry" in missing.error


def test_predict_interpolate_and_fill_take_videos(
    tmp_path, generator, demo_videos, clips_dir, tokens_dir, checkpoint_dir, make_video, vidvq
):
    short = make_video(tmp_path / "short.mp4", 3)
    (tmp_path / "torn.mp4").write_bytes(short.read_bytes()[:300])
    videos = (demo_videos / "train/carphone.mp4", short, tmp_path / "torn.mp4")
    options = ("--checkpoint", checkpoint_dir, *FAST)
    for task, settings in {"predict": (), "interpolate": (), "fill": ("box=[8,8,16,16]",)}.items():
        out = tmp_path / task
        done = vidvq("generate", task, generator, *videos, "--out", out, *settings, *options)
        assert done.code == 1 and "too_short" in done.err and done.err.count("3 planned") == 1, done.err
        needed, remedy = (5, "set given= to less") if task == "predict" else (9, "make a clip of it with vidvq shard")
        assert f"has 3 frames; {needed} are needed; use a longer video, or {remedy}" in done.err
        ((codes, info),) = codes_of(out).values()
        assert codes.shape == (3, 4, 5) and (info.num_frames, info.height, info.width) == (9, 32, 40)
        assert vidvq("verify", out).code == 0
    np.save(tmp_path / "mask.npy", np.arange(40) < np.full((32, 1), 24))
    for task, setting in {"interpolate": "insert=3", "fill": f"mask={tmp_path / 'mask.npy'}"}.items():
        out = tmp_path / f"{task} more"
        done = vidvq("generate", task, generator, videos[0], "--out", out, setting, *options)
        assert done.code == 0, done.err
        ((codes, info),) = codes_of(out).values()
        assert codes.shape == (3, 4, 5) and len(info.pts) == info.num_frames == 9
    # The size is checked before the frames are made.
    for width, found in ((8, 48), (10**30, 10**30 + 40)):
        box = f"box=[40,0,{width},32]"
        larger = vidvq("generate", "fill", generator, videos[0], "--out", tmp_path / str(width), box, *options)
        assert larger.code == 2 and f"with box=40,0,{width},32, frames of {found}x32 are larger than" in larger.error
    longer = vidvq(
        "generate", "interpolate", generator, clips_dir, "--out", tmp_path / "longer", f"insert={10**30}", *options
    )
    assert longer.code == 1 and "more than the 9 that" in longer.err and "train one with data.latents=" in longer.err
    for number, folder in enumerate((clips_dir, tokens_dir)):
        given = ("--out", tmp_path / f"given {number}", "given=13", *options)
        done = vidvq("generate", "predict", generator, folder, *given)
        assert done.code == 1 and "has 9 frames, " in done.err and "given=13" in done.err, done.err
        assert "; set given= to less" in done.err
    wrong = vidvq("generate", "predict", generator, short, "--out", tmp_path / "none", "columns=clips", *options)
    assert wrong.code == 2 and "is for shards, not videos" in wrong.error


@pytest.mark.parametrize("task", ["interpolate", "fill"])
def test_hidden_pixels_do_not_change_the_samples(tmp_path, generator, clips_dir, checkpoint_dir, task, vidvq):
    from vidvq.formats.clip_shard import read_clips
    from vidvq.generate.sampling.pipeline import GenerationPipeline
    from vidvq.video.decode import decode_clip

    key, media, info = next(iter(read_clips(sorted(clips_dir.glob("*.tar"))[0])))
    frames = decode_clip(media, key)
    sampling = SamplingConfig(steps=2)
    fill = FillConfig(box=(8, 8, 16, 16), sampling=sampling)
    config = InterpolateConfig(sampling=sampling) if task == "interpolate" else fill
    pipeline = GenerationPipeline(generator, config, checkpoint_dir)
    hidden, visible = frames.copy(), frames.copy()
    part = np.s_[1:-1] if task == "interpolate" else np.s_[:, 8:24, 8:24]
    hidden[part] = 255 - hidden[part]
    visible[0, :8] = 255 - visible[0, :8]

    def generate(frames):
        return pipeline.generate([pipeline.from_pixels(key, frames, info)])[0]

    made = generate(frames)
    assert generate(hidden) == made
    assert generate(visible) != made
    out = tmp_path / "out"
    box = () if task == "interpolate" else ("box=[8,8,16,16]",)
    done = vidvq("generate", task, generator, clips_dir, "--out", out, "--checkpoint", checkpoint_dir, *box, *FAST)
    assert done.code == 0, done.err
    assert codes_of(out)[key][0].shape == info_grid(made)


def test_a_batch_is_padded_and_recorded(tmp_path, generator, tokens_dir, clips_dir, checkpoint_dir, vidvq):
    from vidvq.generate.sampling.execution import GenerationExecution
    from vidvq.generate.sampling.pipeline import GenerationPipeline

    config = PredictConfig(given=5, sampling=SamplingConfig(steps=2))
    pipeline = GenerationPipeline(generator, config, checkpoint_dir, GenerationExecution(batch=3))
    prompts = codes_of(tokens_dir)
    samples = [pipeline.predict(key, *prompt) for key, prompt in prompts.items()]
    alone = {sample.key: pipeline.generate([sample])[0] for sample in samples}
    assert len(alone) > 3 and len(alone) % 3
    for inputs in (tokens_dir, clips_dir):
        out = tmp_path / inputs.name
        made_by = ("--out", out, "--checkpoint", checkpoint_dir, "given=5", "batch=3", *FAST)
        done = vidvq("generate", "predict", generator, inputs, *made_by)
        assert done.code == 0, done.err
        assert list(codes_of(out)) == list(prompts)
        recorded = json.loads((out / "generator.json").read_text())
        assert recorded["execution"] == {"device": "cpu", "precision": "fp32", "batch": 3}
        other = vidvq("generate", "predict", generator, inputs, *made_by[:-3], "batch=2", *FAST)
        assert other.code == 2 and "Give another --out" in other.error
    found = codes_of(tmp_path / tokens_dir.name)
    for key, files in alone.items():
        assert np.array_equal(np.load(io.BytesIO(files["tokens.npy"])), found[key][0]), key
    for setting, message in {
        "device=cuda": "device=cuda: torch finds no CUDA device",
        "precision=bf16": "precision=bf16 needs a GPU",
        "batch=0": "batch=0",
    }.items():
        wrong = vidvq("generate", "sample", generator, "--out", tmp_path / "none", setting, *FAST)
        assert wrong.code == 2 and message in wrong.error, wrong.err


@pytest.mark.parametrize(
    ("full", "task", "message"),
    [
        ("vidvq.generate.sampling.pipeline.sample_codes", "predict", "a batch of 1 sample of 3x4x5 codes"),
        ("vidvq.model.VideoTokenizer.encode", "predict", ": encoding 5 frames of 40x32"),
        ("vidvq.generate.sampling.pipeline.encode_visible", "interpolate", ": encoding 9 frames of 40x32"),
    ],
)
def test_a_full_gpu_stops_the_job(
    tmp_path, generator, clips_dir, checkpoint_dir, full, task, message, monkeypatch, vidvq
):
    def allocate(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(full, allocate)
    out = ("--out", tmp_path / "out", "--checkpoint", checkpoint_dir)
    done = vidvq("generate", task, generator, clips_dir, *out, *FAST)
    assert done.code == 1 and f"{message} does not fit the memory of the GPU of " in done.error, done.err


def all_but_the_first(job):
    return (message for message in decode_items(job) if message.key != min(job.keys))


def test_a_clip_that_its_shard_lacks_is_named(tmp_path, generator, clips_dir, checkpoint_dir, monkeypatch, vidvq):
    monkeypatch.setattr("vidvq.generate.stages.pixel_worker.decode_items", all_but_the_first)
    options = ("--out", tmp_path / "out", "--checkpoint", checkpoint_dir, *FAST)
    done = vidvq("generate", "predict", generator, clips_dir, *options)
    assert done.code == 2 and "-00000, which was planned" in done.error, done.err


def info_grid(files):
    return tuple(json.loads(files["json"])["grid"])


def test_a_generator_can_be_inspected_and_verified_but_not_used_as_a_tokenizer(tmp_path, generator, tokens_dir, vidvq):
    assert "tasks generate, predict, interpolate, fill" in vidvq("inspect", generator).out
    assert vidvq("verify", generator).code == 0
    wrong = vidvq("decode", tokens_dir, "--checkpoint", generator, "--out", tmp_path / "out")
    assert wrong.code == 2 and "is a generator, of vidvq generate train" in wrong.error
    for name in ("model.safetensors", "config.json"):
        changed = tmp_path / name
        shutil.copytree(generator, changed)
        data = bytearray((changed / name).read_bytes())
        data[-3] ^= 1
        (changed / name).write_bytes(data)
        assert vidvq("verify", changed).code == 1


def test_a_mistake_is_one_line_before_any_work(tmp_path, generator, tokens_dir, clips_dir, other_checkpoint, vidvq):
    out = tmp_path / "out"
    card = make_card(read_tokenizer_card(tokens_dir), tasks=("generate",), labels=("cat",), label="kind")
    plain = write_random(tmp_path / "plain", card)
    slow = write_random(tmp_path / "slow", replace(card, fps=1e-4))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a dog\na cat\n")
    foreign = tmp_path / "foreign"
    shutil.copytree(tokens_dir, foreign)
    text = (foreign / "tokenizer.json").read_text()
    fingerprint = read_tokenizer_card(tokens_dir).token_fingerprint
    (foreign / "tokenizer.json").write_text(text.replace(fingerprint, "f" * 64))
    for arguments, expected in {
        ("predict", plain, tokens_dir): "was not trained to predict; it was trained to generate",
        ("sample", plain, "class=dog"): "class=dog was never seen in training; available: cat",
        ("sample", generator, "class=cat"): "class=cat: this generator was trained without classes",
        ("sample", generator, "text=a cat"): "text: this generator was trained without texts",
        ("sample", generator, "prompts=none.txt"): "prompts=none.txt cannot be read",
        ("sample", generator, "text=a", "prompts=b"): "exclude each other",
        ("sample", generator, f"n={10**11}"): f"n={10**11} is more than the 1,000,000 samples of a job",
        ("sample", generator, "n=600000", f"prompts={prompts}"): "n=600000 for each of 2 texts is more than",
        ("sample", generator, f"frames={10**12}"): "must be an integer, from 1 to 1000000, or null",
        ("predict", generator, tokens_dir, f"frames={10**12}"): "must be an integer, from 1 to 1000000, or null",
        ("sample", generator, "height=64"): "frames of 40x64 are larger than the 40x32",
        ("sample", generator, tokens_dir): "one argument too many",
        ("sample", tokens_dir): "is not a checkpoint",
        ("sample", other_checkpoint): "is not a generator",
        ("sample", generator, "sampling.temperature=1e-300"): "temperature=1e-300 must be 0 (nothing",
        ("sample", generator, "sampling.guidance=1e38"): "must be a number, from 0 to 1000",
        ("sample", generator, "fps=0.0001"): "fps=0.0001: must be a number, from 0.001 to 1000",
        ("sample", slow): "the training samples have 0.0001 frames per second; set fps=",
        ("predict", generator, foreign): "was trained on tokens of tokenizer",
        ("predict", generator, tokens_dir, "given=4"): "given=4 must be 1 + a multiple of 4; nearest 1 or 5",
        ("predict", generator, tokens_dir, "frames=5"): "frames=5 must be more than given=5",
        ("predict", generator, tokens_dir, f"columns={clips_dir}"): "was trained without conditions",
        ("predict", generator): "predict takes a directory of clip shards or token shards, or videos",
        ("fill", generator, clips_dir): "fill needs the region to generate: set box=",
        ("fill", generator, clips_dir, "mask=none.png"): "mask=none.png cannot be read",
        ("interpolate", generator, "a.mp4", "insert=8"): "set 7 or less",
        ("fill", generator, tokens_dir, "box=[0,0,8,8]"): "tokens of visible pixels depend on hidden ones",
        ("interpolate", generator, clips_dir, "--checkpoint", other_checkpoint): "has tokenizer",
        ("sample", generator): "set --checkpoint to the tokenizer that made them",
        ("sample", generator, "sampling.estimate=mean"): "estimate=mean draws nothing at random, but temperature=1.0",
        ("predict", generator, tokens_dir): "set --checkpoint to the tokenizer that made them",
    }.items():
        done = vidvq("generate", *arguments, "--out", out)
        assert done.code == 2 and expected in done.error, (arguments, done.err)
    assert not out.exists()


@pytest.mark.parametrize(
    ("clips", "region", "expected"),
    [
        ("clip.size=[32,40]", "box=[0,0,40,32]", "CLIPS has 40x32 pixels; box=0,0,40,32 must cover some of them"),
        ("clip.size=[32,40]", "box=[0,0,48,32]", "with box=0,0,48,32, frames of 48x32 are larger than the 40x32"),
        ("clip.size=[32,40]", "outside=true box=[40,32,8,8]", "CLIPS has 40x32 pixels; box=40,32,8,8 must cover some"),
        ("clip.size=[32,40]", "mask=24", "each of the clips in CLIPS has 40x32 pixels; mask=MASK has 24x32"),
        ("clip.size=[32,40]", "box=[39,31,1,1]", ""),
        ("clip.short_side=16", "box=[0,0,41,8]", "with box=0,0,41,8, frames of 48x8 are larger than the 40x32"),
        ("clip.short_side=16", "box=[0,0,40,32]", ""),
        ("clip.short_side=16", "mask=48", "frames of 48x32 are larger than the 40x32"),
        ("clip.short_side=16", "mask=24", "has 24x32 pixels; mask=MASK must cover some of them, not all"),
        ("", "box=[0,0,40,32]", "each of the videos, scaled to video.size, has 40x32 pixels"),
        ("", "box=[0,0,40,32] video.short_side=16", ""),
    ],
)
def test_a_region_that_no_clip_can_have_is_refused_before_planning(
    tmp_path, generator, checkpoint_dir, make_video, clips, region, expected, vidvq
):
    folder = make_video(tmp_path / "clip.mp4", 9, size=(64, 80))
    if clips:
        video, folder = folder, tmp_path / "clips"
        shard = ("shard", video, "--out", folder, "clip.num_frames=9", "clip.multiple=8", "runtime.workers=0", clips)
        assert vidvq(*shard).code == 0
    mask = tmp_path / "mask.npy"
    if region.startswith("mask="):
        np.save(mask, np.ones((32, int(region[5:]))))
        region = f"mask={mask}"
    config = load(FillConfig, None, [*region.split(), "format=none"])
    if not expected:
        open_request(generator, [str(folder)], config, checkpoint_dir)
        return
    with pytest.raises(UsageError) as refused:
        open_request(generator, [str(folder)], config, checkpoint_dir)
    assert expected in str(refused.value).replace(str(folder), "CLIPS").replace(str(mask), "MASK")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("objective=next", "tasks.fill=1", "pixels.clips=c"), "tasks.fill needs objective=masked"),
        (("tasks.fill=1", "pixels.clips=[]"), "must be a list of texts, not empty"),
        (("tasks.interpolate=1",), "tasks.interpolate needs pixels"),
        (("conditions.label=kind",), "conditions.label is a column of the clips; set pixels.clips="),
        (("conditions.text=caption", "pixels.clips=[c]"), "texts need both, the column and a text encoder"),
        (("tasks={generate: 0, predict: 0}",), "tasks has no weight above 0"),
        (("data.latents=1",), "data.latents=1 leaves nothing to predict"),
        (("model.mlp=1000",), "mlp=1000.0 must be above 0 and at most 256"),
    ],
)
def test_a_mistake_in_the_training_settings_is_one_line(tmp_path, tokens_dir, overrides, expected, vidvq):
    done = vidvq("generate", "train", tokens_dir, "--out", tmp_path / "run", *overrides)
    assert done.code == 2 and expected in done.error


def test_a_mistake_in_training_names_the_setting_and_no_file_that_was_not_given(tmp_path, monkeypatch, vidvq):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "own.yaml"
    own.write_text("data: {tokens: elsewhere}\nout: run\n")
    for arguments, expected in {
        ("--out", "run"): "vidvq: data.tokens=runs/tokens does not exist; give vidvq generate train a directory that",
        ("nowhere", "--out", "run"): "vidvq: data.tokens=nowhere does not exist; ",
        ("nowhere", "--out", "run", "steps=0"): "vidvq: config has 1 wrong field: steps=0: must be an integer",
        ("--config", own): "vidvq: data.tokens=elsewhere does not exist; ",
        ("--config", own, "steps=0"): f"vidvq: {own} with the given settings has 1 wrong field: steps=0",
    }.items():
        done = vidvq("generate", "train", *arguments)
        assert done.code == 2 and done.error.startswith(expected), done.error
    assert not (tmp_path / "run").exists()


def check_statistics(path, bits, tokens_dir):
    found = read_code_statistics(path)
    card = read_tokenizer_card(tokens_dir)
    counts, sums = np.zeros(2), np.zeros(2)
    grids = [location.read(card)[0] for location in index_tokens(tokens_dir)[:2]]
    for at, book in enumerate(found.books):
        values = np.concatenate([(grid[1:] if at else grid[:1]).ravel() for grid in grids])
        expected, times = np.unique(values, return_counts=True)
        assert sorted(zip(book.codes, book.counts, strict=True)) == list(zip(expected, times, strict=True))
        for code, nearest in zip(book.codes, book.nearest, strict=True):
            assert code not in nearest and set(nearest) < set(book.codes)
        counts[at], sums[at] = times.sum(), np.dot(book.counts, book.bits)
    assert sums.sum() / counts.sum() == pytest.approx(bits)
    # All clips have one grid, so means over places and over times agree with it.
    assert np.mean(found.bits_by_time) == pytest.approx(bits) == np.mean(found.bits_by_place)


def test_evaluate_scores_the_generator_the_baselines_and_the_ceiling(
    tmp_path, generator, tokens_dir, clips_dir, tiny_clips, checkpoint_dir, vidvq, monkeypatch
):
    run = tmp_path / "run"
    shutil.copytree(generator, run / "checkpoints/step-00000001")
    (run / "config.yaml").write_text(f"data: {{tokens: [{tokens_dir}]}}")
    out, codes = tmp_path / "scores.json", tmp_path / "codes.json"
    # A clock that passes of the transformer advance, because other work disturbs a real one.
    ticks, forward = itertools.count(1), VideoTransformer.hidden
    monkeypatch.setattr(evaluate, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(VideoTransformer, "hidden", lambda *given, **named: next(ticks) and forward(*given, **named))
    options = ("--clips", clips_dir, "--checkpoint", checkpoint_dir, "--out", out)
    settings = ("clips=2", "samples=2", "seeds=[0]", "sampling.steps=1", "compare_steps=[1,3]")
    done = vidvq("generate", "evaluate", run, tokens_dir, *options, *settings, "--codes", codes)
    assert done.code == 0, done.err
    scores = json.loads(out.read_text())
    check_statistics(codes, scores["bits"]["generator"], tokens_dir)
    assert scores["bits"]["uniform"] == pytest.approx((5 + 6 + 6) / 3)
    # The held-out clips are the training clips, so the n-gram models fit them.
    assert (
        scores["bits"]["temporal"] < scores["bits"]["unigram"] < scores["bits"]["uniform"] < scores["bits"]["generator"]
    )
    assert scores["nearest_held_out"] == 0 and 0 < scores["nearest"] <= 1 and scores["copies"] == 0
    for task in ("predict", "interpolate", "fill"):
        found = scores["tasks"][task]["psnr"]
        assert found.keys() == {"generator", "probable", "mean", "baseline", "ceiling"} and min(found.values()) > 0
        assert len({found["probable"], found["generator"], found["mean"]}) == 3
        above = scores["tasks"][task]["above"]
        assert above["baseline"] == 0 and all(0 <= above[name] <= 1 for name in found)
    assert len(scores["tasks"]["predict"]["curve"]["generator"]) == 4
    assert scores["tasks"]["predict"]["psnr"]["baseline"] > scores["tasks"]["predict"]["psnr"]["generator"]
    tasks = {"generate", "predict", "interpolate", "fill"}
    assert scores["frechet"].keys() == {"training", *tasks}
    assert scores["frechet"]["training"] < min(scores["frechet"][task] for task in tasks)
    one, three = scores["steps"]["1"], scores["steps"]["3"]
    for task in tasks - {"generate"}:
        assert one["psnr"][task] == scores["tasks"][task]["psnr"]["generator"] != three["psnr"][task]
    assert {name: scores["frechet"][name] for name in tasks} == one["frechet"] != three["frechet"]
    assert 0 < one["seconds"] < three["seconds"]
    assert "3 decoding steps: " in done.err and "Fréchet distance in the tokenizer's latent space: " in done.err
    # The files of an earlier evaluation are replaced, and clips of other tokens refused before any work.
    wrong = vidvq("generate", "evaluate", run, tokens_dir, *options[2:], "--clips", tiny_clips, "--codes", codes)
    assert wrong.code == 2 and f"{tiny_clips} has no clip" in wrong.error and "bits" not in wrong.err
    # Without the tokenizer of the tokens there is no mean.
    estimate = ("sampling.temperature=0", "sampling.estimate=mean")
    other = vidvq("generate", "evaluate", run, tokens_dir, "clips=2", "samples=2", *estimate)
    assert other.code == 2 and "the generator was trained on tokens of" in other.error
    wrong = vidvq("generate", "evaluate", run, tokens_dir, "given=3")
    assert wrong.code == 2 and "given=3 must be 1 + a multiple of 4; nearest 1 or 5" in wrong.error
    wrong = vidvq("generate", "evaluate", run, tokens_dir, "seeds=[]")
    assert wrong.code == 2 and "seeds=[]: must be a list of integers, not empty" in wrong.error
    # Without the task of generating, only what follows the given frames counts: codes of the second codebook.
    card = make_card(read_tokenizer_card(tokens_dir), tasks=("predict",))
    write_random(run / "checkpoints/step-00000002", card)
    few = ("--out", out, "--codes", codes, "clips=2", "samples=2", "training_samples=1")
    assert vidvq("generate", "evaluate", run, tokens_dir, *few).code == 0
    bits = json.loads(out.read_text())["bits"]
    first, second, *_ = codes_of(tokens_dir).values()
    models = NgramModels(card.tokenizer, [first[0]])
    assert bits.keys() == {"predict", "uniform", "unigram", "bigram", "temporal"} and bits["uniform"] == 6
    assert bits.items() > models.bits([first[0], second[0]], given=2).items()
    assert read_code_statistics(codes).bits_by_time == [None, None, pytest.approx(bits["predict"])]
    none = vidvq("generate", "evaluate", run, tokens_dir, "given=9", "clips=1", "samples=0")
    assert none.code == 0 and "given=9 must be below the 9 frames of the longest clip" in none.err


def test_an_evaluation_on_a_gpu_decodes_several_groups_per_call(checkpoint_dir, monkeypatch):
    card = SimpleNamespace(refuse_other_tokenizer=lambda *_: None)
    monkeypatch.setattr(VideoTokenizer, "to", lambda self, device: self)
    calls = {}
    for device in ("cpu", "cuda"):
        evaluation = SimpleNamespace(device=torch.device(device), clips="clips", card=card)
        tokenizer = _Evaluation._load_tokenizer(cast("Any", evaluation), checkpoint_dir)
        assert isinstance(tokenizer, VideoTokenizer)
        calls[device] = []
        tokenizer.decoder.register_forward_hook(lambda *_, device=device: calls[device].append(1))
        _Evaluation._decode(cast("Any", SimpleNamespace(tokenizer=tokenizer)), np.zeros((9, 2, 2), int), 33, (16, 16))
    assert (len(calls["cpu"]), len(calls["cuda"])) == (9, 2)


def test_fvd_is_scored_with_a_backbone_file(
    tmp_path, generator, tokens_dir, clips_dir, checkpoint_dir, monkeypatch, vidvq
):
    """With features that cost less than those of I3D: the means of the channels over a window."""
    from vidvq.generate.evaluation import evaluate
    from vidvq.generate.sampling import codes as sampling
    from vidvq.metrics import fvd

    sample_codes, batches = sampling.sample_codes, []

    def sample(network, card, shape, prompts, *more):
        batches.append(len(prompts))
        return sample_codes(network, card, shape, prompts, *more)

    for module in (evaluate, sampling):
        monkeypatch.setattr(module, "sample_codes", sample)

    class Means(torch.nn.Module):
        def features(self, video):
            return video.mean(dim=(2, 3, 4))

    monkeypatch.setattr(fvd, "load_i3d", lambda _: Means())
    monkeypatch.setattr(fvd, "FEATURES", 3)
    out = tmp_path / "scores.json"
    few = ("clips=2", "samples=2", "seeds=[0]", "sampling.steps=1", "fvd_backbone=i3d.pt", "batch=3")
    given = ("evaluate", generator, tokens_dir, "--checkpoint", checkpoint_dir, "--out", out, *few)
    done = vidvq("generate", *given, "--clips", clips_dir, "fvd_frames=9")
    assert done.code == 0 and "FVD over 2 windows: predict" in done.err, done.err
    # Of random codes, the most probable ones and the mean ones: two predictions, and two clips with two blanked parts.
    # Then two clips without a condition.
    assert batches == [*([2, 3, 1] * 3), 2]
    scores = json.loads(out.read_text())
    assert scores["fvd_windows"] == 2 and scores["fvd"].keys() == {"predict", "interpolate", "fill", "generate"}
    assert min(scores["fvd"].values()) > 0 and len(set(scores["fvd"].values())) == 4
    wrong = vidvq("generate", *given)
    assert wrong.code == 2 and "FVD compares frames; set --clips" in wrong.error
    wrong = vidvq("generate", *given, "--clips", clips_dir)
    assert wrong.code == 2 and "fvd_frames=16: FVD needs 2 or more windows" in wrong.error


def test_classes_and_actions_come_from_columns(train, tmp_path, tokens_dir, clips_dir, copy_of, checkpoint_dir, vidvq):
    clips = copy_of(clips_dir, "clips")
    function = tmp_path / "columns.py"
    function.write_text(
        "import json\n"
        "def columns(frames, info):\n"
        "    return {'kind': 'odd' if info.clip_index % 2 else 'even',"
        " 'move': json.dumps([[i, info.clip_index] for i in range(len(frames))])}\n"
    )
    assert vidvq("map", clips, "--function", f"{function}:columns", "runtime.workers=0").code == 0
    run = tmp_path / "run"
    conditions = ("conditions={label: kind, actions: move}", f"pixels.clips=[{clips}]", "steps=2", "objective=next")
    train(tokens_dir, run, *conditions)
    samples = ("--checkpoint", checkpoint_dir, "n=1", *FAST)
    odd, even = tmp_path / "odd", tmp_path / "even"
    assert vidvq("generate", "sample", run, "--out", odd, "class=odd", "sampling.guidance=2", *samples).code == 0
    assert vidvq("generate", "sample", run, "--out", even, "class=even", "sampling.guidance=2", *samples).code == 0
    assert json.loads((odd / "generator.json").read_text())["label"] == "odd"
    wrong = vidvq("generate", "sample", run, "--out", tmp_path / "none", "class=none", *samples)
    assert wrong.code == 2 and "available: even, odd" in wrong.error
    out = tmp_path / "predicted"
    done = vidvq("generate", "predict", run, tokens_dir, "--out", out, f"columns={clips}", *FAST)
    assert done.code == 0, done.err
    assert len(codes_of(out)) == len(codes_of(tokens_dir))
    scores = tmp_path / "scores.json"
    measured = ("--clips", clips, "--checkpoint", checkpoint_dir, "--out", scores, "--pictures", tmp_path / "pictures")
    small = ("clips=2", "samples=0", "seeds=[0]", "sampling.steps=1")
    ran = vidvq("generate", "evaluate", run, tokens_dir, *measured[2:], *small)
    assert ran.code == 2 and "pictures compares frames; set --clips" in ran.error
    done = vidvq("generate", "evaluate", run, tokens_dir, *measured, *small)
    assert done.code == 0, done.err
    bits = json.loads(scores.read_text())["bits"]
    assert bits["predict"] != bits["unconditional"] and abs(bits["predict"] - bits["unconditional"]) < 1
    made = {path.name: np.load(path) for path in (tmp_path / "pictures").iterdir()}
    assert made.keys() == {f"predict-{name}.npy" for name in ("original", "generator", "baseline", "ceiling")}
    assert {frames.shape for frames in made.values()} == {(9, 32, 40, 3)}
    assert np.array_equal(made["predict-baseline.npy"][5:], np.repeat(made["predict-original.npy"][4:5], 4, axis=0))
    card = json.loads((run / "checkpoints/step-00000002/config.json").read_text())["generator"]
    assert len(card["action_choices"]) == 12 and len(card["action_choices"][0]) == 2


def first_sample(generator, clips, config, checkpoint):
    """Make the sample of the first clip in this process; return its codes, and what the stage records."""
    from vidvq.formats.clip_shard import read_clips
    from vidvq.video.decode import decode_clip

    stage = open_request(generator, [str(clips)], config, checkpoint)
    key, media, info = next(iter(read_clips(sorted(clips.glob("*.tar"))[0])))
    pipeline = stage.pipeline(stage.tokenizer)
    sample = pipeline.from_pixels(key, decode_clip(media, key), info, stage.conditions_of(key))
    return pipeline.generate([sample])[0]["tokens.npy"], stage.identity()


def test_every_task_takes_a_class_and_the_columns_of_clips(
    tmp_path, tokens_dir, copy_of, clips_dir, checkpoint_dir, vidvq
):
    clips, function = copy_of(clips_dir, "clips"), tmp_path / "columns.py"
    function.write_text(
        "import json\n"
        "def columns(frames, info):\n"
        "    return {'kind': 'cat', 'move': json.dumps([[i + info.clip_index] for i in range(len(frames))])}\n"
    )
    assert vidvq("map", clips, "--function", f"{function}:columns", "runtime.workers=0").code == 0
    conditions = {"label": "kind", "labels": ("cat", "dog"), "actions": "move"}
    card = make_card(read_tokenizer_card(tokens_dir), **conditions, action_mean=(4.0,), action_scale=(2.0,))
    generator, sampling = write_random(tmp_path / "run", card), SamplingConfig(steps=1)
    for kind, region in {PredictConfig: {}, InterpolateConfig: {}, FillConfig: {"box": (8, 8, 16, 16)}}.items():
        given = ({}, {"columns": str(clips)}, {"label": "cat"}, {"label": "dog"})
        configs = [kind(sampling=sampling, **region, **each) for each in given]
        made, recorded = zip(*(first_sample(generator, clips, each, checkpoint_dir) for each in configs), strict=True)
        assert len(set(made)) == 4, kind
        assert ["conditions" in each for each in recorded] == [False, True, False, False]
        assert [each.get("label") for each in recorded] == [None, None, "cat", "dog"]
    for setting, expected in {
        "class=bird": "class=bird was never seen in training; available: cat, dog",
        f"columns={clips}": "insert=1 changes the frame rate, to which the actions",
    }.items():
        wrong = vidvq("generate", "interpolate", generator, clips, "--out", tmp_path / "none", "insert=1", setting)
        assert wrong.code == 2 and expected in wrong.error


@pytest.fixture(scope="module")
def captioned(tmp_path_factory, tokens_dir, clips_dir):
    """A generator with a text condition and random weights, and clips with captions."""
    from tests.helpers.text_encoders import write_text_encoder
    from vidvq.generate.text import TextEncoder

    folder = tmp_path_factory.mktemp("captioned")
    clips = shutil.copytree(clips_dir, folder / "clips")
    encoder = TextEncoder(str(write_text_encoder(folder / "t5")))
    text = {"text": "caption", "text_encoder": str(folder / "t5"), "text_width": encoder.width}
    card = make_card(read_tokenizer_card(tokens_dir), text_probe=encoder.probe, **text)
    return write_random(folder / "run", card), clips, folder / "t5"


def test_a_class_and_a_text_are_taken_as_they_are_written(captioned, tmp_path, tokens_dir, vidvq):
    labels = ("no", "007", "a #1", "a: b", "7", "0", "1")
    card = make_card(read_tokenizer_card(tokens_dir), tasks=("generate",), label="kind", labels=labels)
    run, config = write_random(tmp_path / "run", card), tmp_path / "truth.yaml"

    def recorded(generator, setting):
        out = tmp_path / setting.replace("/", "")
        done = vidvq("generate", "sample", generator, "--out", out, setting, "n=1", *FAST)
        assert done.code == 0, done.err
        return json.loads((out / "generator.json").read_text())

    for written, label in {"no": "no", "007": "007", "a #1": "a #1", "a: b": "a: b", "7": 7, "'7'": "7"}.items():
        assert recorded(run, f"class={written}")["label"] == label
    for text in ("clip #2: red", "no", "12"):
        assert recorded(captioned[0], f"text={text}")["texts"] == [text]
    config.write_text("label: no")
    wrong = vidvq("generate", "sample", run, "--out", tmp_path / "none", "--config", config, *FAST)
    assert wrong.code == 2 and "label=False: must be text, or an integer" in wrong.error


def caption(clips, function, vidvq):
    function.write_text("def columns(frames, info):\n    return {'caption': f'a red clip {info.clip_index % 2}'}\n")
    assert vidvq("map", clips, "--function", f"{function}:columns", "runtime.workers=0").code == 0


def test_texts_come_from_a_column_a_setting_or_a_list(captioned, train, tmp_path, tokens_dir, checkpoint_dir, vidvq):
    generator, clips, encoder = captioned
    caption(clips, tmp_path / "columns.py", vidvq)
    run, prompts = tmp_path / "run", tmp_path / "prompts.txt"
    train(
        tokens_dir, run, f"conditions={{text: caption, text_encoder: {encoder}}}", f"pixels.clips=[{clips}]", "steps=2"
    )
    prompts.write_text("a red clip\n\na blue clip\n", encoding="utf-8-sig")
    made = {}
    for name, given in {"red": ["text=a red clip"], "list": [f"prompts={prompts}"], "none": []}.items():
        done = vidvq("generate", "sample", generator, "--out", tmp_path / name, "n=2", *given, *FAST)
        assert done.code == 0, done.err
        made[name] = [codes.tolist() for codes, _ in codes_of(tmp_path / name).values()]
    assert made["red"] == made["list"][:2] and made["red"] != made["none"] and len(made["list"]) == 4
    assert json.loads((tmp_path / "list/generator.json").read_text())["texts"] == ["a red clip", "a blue clip"]
    # Workers take the texts from the plan's stage, not from the file, which may change or be on another machine.
    stage = open_request(generator, [], SampleConfig(prompts=str(prompts), n=2, format="none"), checkpoint_dir)
    prompts.unlink()
    pipeline, rows = stage.pipeline(None), list(stage.rows())
    texts = [stage.prepare_sample(pipeline, row, None).condition.text for row in rows]
    assert len(rows) == 4 and torch.equal(texts[0], texts[1]) and not torch.equal(texts[1], texts[2])
    out = tmp_path / "predicted"
    done = vidvq("generate", "predict", run, tokens_dir, "--out", out, f"columns={clips}", *FAST)
    assert done.code == 0 and len(codes_of(out)) == len(codes_of(tokens_dir)), done.err
    between = [{"text": "a blue clip"}, {"text": "a red clip"}, {"columns": str(clips)}]
    configs = [InterpolateConfig(sampling=SamplingConfig(steps=1), **given) for given in between]
    assert len({first_sample(generator, clips, each, checkpoint_dir)[0] for each in configs}) == 3
    scores = tmp_path / "scores.json"
    measured = ("--clips", clips, "--checkpoint", checkpoint_dir, "--out", scores)
    bits = []
    for batch in ("batch=1", "batch=3"):
        few = ("clips=3", "samples=0", "seeds=[0]", "sampling.steps=1", batch)
        done = vidvq("generate", "evaluate", generator, tokens_dir, *measured, *few)
        assert done.code == 0, done.err
        bits.append(json.loads(scores.read_text())["bits"])
    assert bits[1] == pytest.approx(bits[0], rel=1e-5) and bits[0]["predict"] != bits[0]["unconditional"]
    shutil.move(encoder, tmp_path / "moved")
    wrong = vidvq("generate", "sample", run, "--out", tmp_path / "moved out", "text=a", *FAST)
    assert wrong.code == 2 and "cannot be loaded by transformers" in wrong.error
    moved = vidvq(
        "generate", "sample", run, "--out", tmp_path / "x", "text=a", f"text_encoder={tmp_path / 'moved'}", *FAST
    )
    assert moved.code == 0, moved.err
    shutil.move(tmp_path / "moved", encoder)


def test_conditions_come_from_columns_that_clips_carry(
    captioned, train, tmp_path, make_video, tokens_dir, checkpoint_dir, vidvq
):
    listed, clips, tokens, run = (tmp_path / name for name in ("list.jsonl", "clips", "tokens", "run"))
    # Two ranges of one video.
    rows = [{"end": 0.16, "kind": "cat", "caption": "a red clip"}, {"start": 0.16, "kind": "dog"}]
    uri = str(make_video(tmp_path / "video.mp4", 8))
    listed.write_text("\n".join(json.dumps({"uri": uri, "start": 0, "end": 0.32} | row) for row in rows))
    tiny = ("clip.num_frames=4", "clip.min_frames=4", "clip.short_side=16", "clip.multiple=8", "runtime.workers=0")
    assert vidvq("shard", listed, "--out", clips, *tiny, "lists.carry=[kind,caption]").code == 0
    assert vidvq("tokenize", clips, "--checkpoint", checkpoint_dir, "--out", tokens, "runtime.workers=0").code == 0
    with pytest.raises(UsageError, match=r"carried\.mood; available: carried\.caption, carried\.kind"):
        read_column([str(clips)], "carried.mood")
    conditions = f"conditions={{label: carried.kind, text: carried.caption, text_encoder: {captioned[2]}}}"
    train(tokens, run, conditions, f"pixels.clips={clips}", "steps=2")
    made = []
    for name in ("cat", "dog"):
        settings = ("n=1", f"class={name}", "sampling.guidance=1000", *FAST)
        assert vidvq("generate", "sample", run, "--out", tmp_path / name, *settings).code == 0
        made += [codes.tolist() for codes, _ in codes_of(tmp_path / name).values()]
    assert made[0] != made[1]
    made = []
    for inputs in (tokens, clips):
        out = tmp_path / f"predicted from {inputs.name}"
        given = ("given=1", f"columns={clips}", "sampling.guidance=1000", "--checkpoint", checkpoint_dir, *FAST)
        done = vidvq("generate", "predict", run, inputs, "--out", out, *given)
        assert done.code == 0, done.err
        made.append({key: codes.tolist() for key, (codes, _) in codes_of(out).items()})
    assert made[0] == made[1] and len(made[0]) == 2
    card = read_generator(run).card
    assert (card.labels, card.text) == (("cat", "dog"), "carried.caption")
    assert "texts from the column carried.caption\n" in vidvq("inspect", run).out
    # A class has the same index in training, in an evaluation and in a request.
    data = TokenDataConfig((str(tokens),), batch_size=2, latents=2)
    pixels, label = PixelConfig((str(clips),)), ConditionConfig(label="carried.kind")
    config = GenerateTrainConfig(data, pixels=pixels, conditions=label)
    card, dataset = open_training_data(config, TokenDataset(data, 0))
    examples, kinds = dataset[0, 0], read_column([str(clips)], "carried.kind")
    expected = [label_index(card, kinds[key]) for key in examples.tokens.keys]
    held_out = HeldOutConditions(card, clips, None)
    assert examples.labels.tolist() == expected == [held_out.of(key, 2).label for key in examples.tokens.keys]
    assert sorted(expected) == [1, 2]
    # Clips of other samples, whose conditions would all be missing.
    nothing = "the column carried.kind .* has no value for any of the"
    with pytest.raises(UsageError, match=f"{nothing} 1 samples"):
        read_conditions(card, str(clips), {"other"})
    for column in ("label: carried.kind", f"text: carried.kind, text_encoder: {captioned[2]}"):
        settings = ("--out", tmp_path / "none", f"conditions={{{column}}}", f"pixels.clips={clips}")
        wrong = vidvq("generate", "train", tokens_dir, *settings)
        assert wrong.code == 2 and re.search(nothing, wrong.error), wrong.err


@pytest.mark.slow
def test_samples_of_texts_do_not_depend_on_the_workers(captioned, tmp_path, vidvq, snapshot):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red\ngreen\nblue\n")
    found = []
    for workers in (0, 2):
        out = tmp_path / str(workers)
        settings = ("n=1", "items_per_shard=1", f"prompts={prompts}", f"runtime.workers={workers}")
        assert vidvq("generate", "sample", captioned[0], "--out", out, *settings, *FAST).code == 0
        found.append(snapshot(out))
    assert found[0] == found[1]
