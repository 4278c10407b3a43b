"""Small runs of `vidvq train` in processes of their own, to compare number by number."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.warm import COMMAND

TIMINGS = {"step_s", "data_wait", "frames_per_s", "tflops"}
# Nothing random but the data: FSQ has no start-up, and every loss is there from the first step.
SETTINGS = [
    "steps=6",
    "checkpoint_every=3",
    "log_every=1",
    "data.batch_size=4",
    "data.crop=32",
    "data.num_frames=5",
    "model.encoder={channels: [16, 24], blocks: [1, 1]}",
    "model.decoder={channels: [16, 24], blocks: [1, 1]}",
    "model.quantizer={dim: 3, spatial: {kind: fsq, levels: [5, 5, 5]}, temporal: {kind: vq, size: 32, warmup: 0}}",
    "discriminator={channels: 8, layers: 1}",
    "loss={l1: 1.0, commitment: 0.25, adversarial: 0.1, lecam: 0.01}",
    "generator={lr: 1.0e-3, warmup_steps: 0, final_lr: 1.0}",
    "discriminator_optimizer={lr: 1.0e-3, warmup_steps: 0, final_lr: 1.0}",
]


@dataclass(frozen=True)
class Run:
    """A finished run."""

    out: Path
    stderr: str

    @property
    def lines(self) -> list[dict[str, float]]:
        """Its metrics, without what depends on the clock."""
        text = (self.out / "metrics.jsonl").read_text()
        told = [json.loads(line) for line in text.splitlines()]
        return [{name: value for name, value in line.items() if name not in TIMINGS} for line in told]

    def column(self, name: str) -> list[float]:
        """One metric by step."""
        return [line[name] for line in self.lines if name in line]


def free_port() -> int:
    """A port that nobody listens on, and that no outgoing connection will be given before it is used."""
    for port in random.sample(range(20000, 32000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("a hundred ports are all in use")


@pytest.fixture(scope="session")
def settings() -> list[str]:
    """The overrides of every run here."""
    return list(SETTINGS)


@pytest.fixture(scope="session")
def compiled_adam() -> None:
    """DeepSpeed's Adam for CPUs, which the first run that uses it compiles: minutes on a busy machine."""
    compile_it = "from deepspeed.ops.op_builder import CPUAdamBuilder; CPUAdamBuilder().load()"
    subprocess.run([sys.executable, "-c", compile_it], check=True)


@pytest.fixture(scope="session")
def train(clips_dir, warm, request) -> Callable[..., Run]:
    """``train(out, *overrides, ranks=1, code=0, patch="")``: run it; ``patch`` is code that runs in it first."""

    def run(out: Path, *overrides: str, ranks: int = 1, code: int = 0, patch: str = "") -> Run:
        if not code and any(setting.endswith("offload=true") for setting in overrides):
            request.getfixturevalue("compiled_adam")
        arguments = ["train", "demo", f"data.clips={clips_dir}", f"out={out}", *SETTINGS, *overrides]
        command = f"{patch}\n{COMMAND}"
        if ranks == 1:
            done = warm.run(*arguments, code=command)
            assert done.returncode == code, done.stderr
            return Run(out, done.stderr)
        # As torchrun starts them.
        group = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        forks = [
            warm.start(*arguments, code=command, env=os.environ | _texts(group | {"RANK": rank, "LOCAL_RANK": rank}))
            for rank in range(ranks)
        ]
        try:
            errors = [fork.communicate(timeout=300)[1] for fork in forks]
        finally:
            for fork in forks:
                fork.send_signal(signal.SIGKILL)
        assert [fork.wait() for fork in forks] == [code] * ranks, errors
        return Run(out, "".join(errors))

    return run


def _texts(variables: dict[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in variables.items()}


@pytest.fixture(scope="session")
def whole(train, tmp_path_factory) -> Run:
    """A run on one rank, ZeRO 0, fp32."""
    return train(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="session")
def close() -> Callable[[list[float]], object]:
    """Losses equal to some, but for sums that were split another way.

    A split rounds otherwise; a latent midway between two codes of a grid can then take the other one, in a later step.
    """

    class Close:
        def __init__(self, expected: list[float]) -> None:
            self.expected = expected

        def __eq__(self, other: object) -> bool:
            assert isinstance(other, list)
            same = other[:3] == pytest.approx(self.expected[:3], rel=1e-5)
            return same and other == pytest.approx(self.expected, rel=1e-3)

        def __repr__(self) -> str:
            return f"about {self.expected}"

    return Close
