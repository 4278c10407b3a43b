"""Shared fixtures: tiny videos and tokenizers, finished directories, a small disk, an object store."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream
from av.video.stream import VideoStream
from hypothesis import settings

from vidvq.cli.main import run
from vidvq.log import console
from vidvq.runtime import feeder

if TYPE_CHECKING:
    from tests.helpers.warm import WarmInterpreter

_ROOT = Path(__file__).parents[1]
# So that `tests.helpers` can be imported, by child processes too: vidvq hands sys.path on to them.
sys.path.insert(0, str(_ROOT))
# Read when torch loads, here and in child processes. Tests run in as many processes as there are cores: the threads of
# one would wait for those of others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Hypothesis fails an example of over 200 ms by default, which says something of the machine, not of the code.
settings.register_profile("no-clock", deadline=None)
settings.load_profile("no-clock")
DEMO_VIDEOS = _ROOT / "vidvq/demo/videos"
# Small clips, several shards, no Ray.
TINY = "clip.num_frames=9 clip.min_frames=5 clip.short_side=32 clip.multiple=8 clips_per_shard=4".split()
INLINE = "runtime.workers=0"


@pytest.fixture(scope="session")
def tiny_settings() -> list[str]:
    """Overrides of `vidvq shard` for small clips in several shards; tests add their runtime settings."""
    return list(TINY)


@dataclass(frozen=True)
class Ran:
    """Result of one command line."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line on stderr of a usage error."""
        assert "Traceback" not in self.err
        lines = [line for line in self.err.splitlines() if line.startswith("vidvq: ")]
        assert len(lines) == 1 and self.err.endswith(lines[0] + "\n"), self.err
        return lines[0]


@pytest.fixture
def vidvq(capsys) -> Callable[..., Ran]:
    """Run a command line in this process."""

    def command(*arguments: object) -> Ran:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return command


@pytest.fixture(scope="session")
def warm() -> "Iterator[WarmInterpreter]":
    """Starts commands in forks of a process that has imported what training and tokenization import."""
    from tests.helpers.warm import warm_interpreter

    with warm_interpreter(
        "vidvq.train", "vidvq.generate.training.loop", "vidvq.tokenize.worker", "vidvq.shard.worker"
    ) as warm:
        yield warm


@pytest.fixture
def current_devices(monkeypatch) -> list[object]:
    """The tensors whose devices are current, innermost last, of a stand-in for ``torch.cuda.device_of``."""
    current: list[object] = []

    @contextmanager
    def device_of(tensor: object) -> Iterator[None]:
        current.append(tensor)
        yield
        current.pop()

    monkeypatch.setattr("torch.cuda.device_of", device_of)
    return current


@pytest.fixture(autouse=True)
def child_processes_of_earlier_tests(monkeypatch) -> None:
    """Let a test use the idle child process of an earlier one: pytest's own variable does not distinguish them."""

    def without_pytest() -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}

    monkeypatch.setattr(feeder, "_environment", without_pytest)


@pytest.fixture(scope="session")
def make_short_folder() -> Iterator[Callable[[], Path]]:
    """``make_short_folder()``: an empty folder with a short path, as sockets need (at most 107 characters)."""
    with ExitStack() as folders:
        yield lambda: Path(folders.enter_context(TemporaryDirectory(prefix="vvq", ignore_cleanup_errors=True)))


@pytest.fixture(scope="session")
def demo_videos() -> Path:
    """The folder of the demo videos, with ``train/`` and ``heldout/``."""
    return DEMO_VIDEOS


@pytest.fixture(scope="session")
def snapshot() -> Callable[[Path], dict[str, str]]:
    """Hashes of all files below a folder, except reports of run times."""

    def take(folder: Path) -> dict[str, str]:
        return {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != "metrics.json"
        }

    return take


def write_video(
    path: Path,
    num_frames: int = 24,
    *,
    size: tuple[int, int] = (32, 64),
    codec: str = "libx264",
    pts: list[int] | None = None,
    time_base: Fraction = Fraction(1, 25),
    codec_options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write a video whose frame ``i`` shows the bits of ``i`` as eight dark or light bars, to identify frames."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = cast(VideoStream, container.add_stream(codec, rate=25, options=codec_options or {}))
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = time_base
        for index in range(num_frames):
            bars = [220 if index >> bit & 1 else 30 for bit in range(8)]
            row = np.repeat(np.array(bars, dtype=np.uint8), -(-size[1] // 8))[: size[1]]
            picture = np.broadcast_to(row[None, :, None], (*size, 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = pts[index] if pts else index, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_audio(path: Path) -> Path:
    """Write half a second of silence as mp4, without video."""
    with av.open(str(path), "w") as container:
        stream = cast(AudioStream, container.add_stream("aac", rate=8000, layout="mono"))
        for index in range(4):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, index * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    """See :func:`write_video`."""
    return write_video


@pytest.fixture(scope="session")
def make_audio() -> Callable[[Path], Path]:
    """See :func:`write_audio`."""
    return write_audio


@pytest.fixture(scope="session")
def clips_dir(tmp_path_factory) -> Path:
    """A finished directory of clip shards; tests must not change it."""
    console.quiet = True
    out = tmp_path_factory.mktemp("shared") / "clips"
    assert run(["shard", str(DEMO_VIDEOS / "train/carphone.mp4"), "--out", str(out), *TINY, INLINE]) == 0
    console.quiet = False
    return out


def _save(folder: Path, seed: int, other_decoder: bool = False, upscale: int = 1, depth: int | None = None) -> Path:
    import torch

    from vidvq.model import TokenizerConfig, VideoTokenizer
    from vidvq.model.encoder import DecoderConfig, StackConfig
    from vidvq.model.quantize import QuantizerConfig, ResidualConfig, VQConfig
    from vidvq.pretrained import save_tokenizer

    torch.manual_seed(seed)
    small = TokenizerConfig(
        encoder=StackConfig((8, 8), (1, 1)),
        decoder=DecoderConfig((8, 8), (1, 1), upscale),
        quantizer=QuantizerConfig(4, VQConfig(size=32), VQConfig(size=64)),
    )
    if depth:
        book = ResidualConfig(depth=depth, layer=VQConfig(size=512))
        small = replace(small, quantizer=QuantizerConfig(4, book, book))
    tokenizer = VideoTokenizer(small)
    tensors = tokenizer.inference_state_dict()
    if other_decoder:
        tensors = {name: tensor * 2 if name.startswith("decoder.") else tensor for name, tensor in tensors.items()}
    save_tokenizer(folder, tokenizer, tensors, step=1)
    return folder


@pytest.fixture(scope="session")
def checkpoint_dir(tmp_path_factory) -> Path:
    """A tiny untrained tokenizer; tests must not change it."""
    return _save(tmp_path_factory.mktemp("shared") / "checkpoint", seed=0)


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory) -> Path:
    """A tokenizer with another token fingerprint."""
    return _save(tmp_path_factory.mktemp("shared") / "other", seed=1)


@pytest.fixture(scope="session")
def residual_checkpoint(tmp_path_factory) -> Path:
    """A tokenizer with residual codebooks of 262,144 codes, more than 16 bits number."""
    return _save(tmp_path_factory.mktemp("shared") / "residual", seed=0, depth=2)


@pytest.fixture(scope="session")
def better_decoder(tmp_path_factory) -> Path:
    """The tokenizer of ``checkpoint_dir`` with another decoder."""
    return _save(tmp_path_factory.mktemp("shared") / "better", seed=0, other_decoder=True)


@pytest.fixture(scope="session")
def larger_decoder(tmp_path_factory) -> Path:
    """The tokenizer of ``checkpoint_dir`` with a decoder of twice the height and width."""
    return _save(tmp_path_factory.mktemp("shared") / "larger", seed=0, upscale=2)


@pytest.fixture(scope="session")
def tokens_dir(tmp_path_factory, clips_dir, checkpoint_dir) -> Path:
    """A finished directory of token shards, made from ``clips_dir``; tests must not change it."""
    console.quiet = True
    out = tmp_path_factory.mktemp("shared") / "tokens"
    assert run(["tokenize", str(clips_dir), "--checkpoint", str(checkpoint_dir), "--out", str(out), INLINE]) == 0
    console.quiet = False
    return out


@pytest.fixture
def copy_of(tmp_path) -> Callable[[Path], Path]:
    """Copy a shared directory, for a test that changes it."""

    def copy(folder: Path, name: str = "copy") -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    return copy


@pytest.fixture(scope="session")
def flip_byte() -> Callable[..., Any]:
    """Change one byte of a file in place."""

    def flip(path: Path, offset: int) -> None:
        data = bytearray(path.read_bytes())
        data[offset] ^= 0x01
        path.write_bytes(data)

    return flip


def _mount(*arguments: object) -> bool:
    try:
        return subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[int], Path]]:
    """``small_disk(kib)`` mounts a separate file system of this size; further calls resize it."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def resize(kib: int) -> Path:
        option = f"size={kib}k"
        if os.path.ismount(disk):
            assert _mount("-o", f"remount,{option}", disk)
        elif not _mount("-t", "tmpfs", "-o", option, "none", disk):
            pytest.skip("this machine lets nobody mount a tmpfs")
        return disk

    yield resize
    if os.path.ismount(disk):
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """Run a real S3 server on loopback, with the environment that directs all S3 clients to it."""
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    # A cached client would still use another server.
    S3FileSystem.clear_instance_cache()
    yield
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    server.stop()


@pytest.fixture
def bucket(server, request) -> Any:
    """An empty bucket, accessed with another library than vidvq uses."""
    import boto3

    name = f"b{abs(hash(request.node.name)) % 10**10}"
    return boto3.resource("s3").create_bucket(Bucket=name)


@pytest.fixture
def objects(bucket) -> Callable[[], dict[str, bytes]]:
    """Contents of all objects in the bucket, by name."""
    return lambda: {item.key: item.get()["Body"].read() for item in bucket.objects.all()}
