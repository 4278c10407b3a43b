"""`compile=true`, run as users run it: losses are those of the uncompiled run."""

import pytest

from vidvq.formats.checkpoint import read_checkpoint

# "eager" traces as the default backend does, "aot_eager" differentiates too; neither compiles.
FAST = """
import functools, torch
torch.compile = functools.partial(torch.compile, backend="aot_eager")
"""
COUNT = """
import atexit, sys, torch
atexit.register(lambda: print("graphs", torch._dynamo.utils.counters["stats"]["unique_graphs"],
    "breaks", sum(torch._dynamo.utils.counters["graph_break"].values()), file=sys.stderr))
"""


def graphs(run) -> tuple[int, int]:
    """Number of compiled graphs and of graph breaks."""
    words = next(line for line in run.stderr.splitlines() if line.startswith("graphs ")).split()
    return int(words[1]), int(words[3])


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_a_compiled_run_trains_like_an_uncompiled_one(train, whole, close, tmp_path, backend):
    run = train(tmp_path / "run", "compile=true", patch=FAST.replace("aot_eager", backend) + COUNT)
    assert run.column("loss") == close(whole.column("loss"))
    count, breaks = graphs(run)
    # The tokenizer, the distances, and the discriminator, trained and frozen.
    assert (count, breaks) == (4, 0)
    assert read_checkpoint(run.out).config["model"] == read_checkpoint(whole.out).config["model"]


@pytest.mark.slow
def test_warm_up_masks_bf16_and_recomputed_activations_compile(train, tmp_path):
    books = (
        "model.quantizer={dim: 4, spatial: {kind: vq, size: 16, warmup: 2}, temporal: {kind: vq, size: 16, warmup: 2}}"
    )
    losses = (
        "loss={l1: 1.0, masked: 0.5, wavelet: 0.5, adversarial: 0.1, adversarial_start: 2, adaptive: true, r1: 0.1}"
    )
    settings = ("precision=bf16", "checkpoint_activations=true", "steps=5", books, losses)
    plain = train(tmp_path / "plain", *settings)
    compiled = train(tmp_path / "run", *settings, "compile=true", patch=FAST + COUNT)
    assert compiled.column("loss") == pytest.approx(plain.column("loss"), rel=0.02)
    assert graphs(compiled)[0] >= 3


@pytest.mark.slow
def test_two_processes_compile(train, whole, close, tmp_path):
    run = train(tmp_path / "run", "compile=true", ranks=2, patch=FAST)
    assert run.column("loss") == close(whole.column("loss"))
