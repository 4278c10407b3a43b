"""Jobs over a small fixed corpus, and digests of every file that they write, recorded in ``golden.json``.

Each file has two digests. ``facts`` covers what does not depend on libraries: keys, counts, outcomes, times, rows of
plans. ``bytes`` covers the whole file, and holds for the libraries that ``golden.json`` names.

Record again after an intended change of bytes, with ``python tests/helpers/golden.py``: it prints the files whose
digests have changed, and leaves the output in :data:`ROOT`.
"""

import fcntl
import hashlib
import io
import json
import os
import platform
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import vidvq
from vidvq.cli.main import run

# A key contains a hash of its video's absolute path, so the corpus has the same path on every machine.
ROOT = Path("/tmp/vidvq-golden")
_PIPELINE = Path(__file__).parents[1] / "pipeline"
RECORD = _PIPELINE / "golden.json"
# Stored as files, since another build of an encoder gives other bytes.
VIDEOS = _PIPELINE / "golden_videos"
DEMO_VIDEOS = Path(vidvq.__file__).parent / "demo/videos"
TARGETS = ("megatron", "bin", "parquet", "litdata", "mds", "energon")
# A plan records the modification time of each file (nanoseconds).
_CHANGED_NS = 1_700_000_000 * 10**9
# Reports of a run, which no stage reads.
_ACCOUNTS = {"metrics.json", "report.html"}
# Fields left out of `facts`, since libraries decide them: decoders, kernels, the parquet writer.
_HASHES = {"digest", "plan_id", "parent", "table", "table_sha256", "clip_shard_sha256", "tokens_sha256", "shard_sha256"}
_VOLATILE = _HASHES | {"detail", "examples", "decoder", "quality"}
_SCORE = "_e4"

CLIPS = "clip.num_frames=4 clip.min_frames=3 clip.short_side=16 clip.multiple=8 clips_per_shard=9".split()
FRAMES = "video.short_side=16 video.multiple=8 items_per_shard=4".split()
RUN = ("runtime.workers=0", "max_failed=1")

Digests = dict[str, tuple[str, str]]


class Golden:
    """The corpus, and the output of the jobs over it.

    Args:
        root: absolute path of a folder, emptied first; the recorded digests hold for :data:`ROOT` only.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        empty(root)
        self.videos = root / "videos"
        shutil.copytree(VIDEOS, self.videos)
        shutil.copy(self.videos / "a.mp4", self.videos / "twin.mp4")
        (self.videos / "broken.mp4").write_bytes(b"RIFF")
        for name in ("train/carphone.mp4", "train/phone.mkv", "heldout/cup.webm"):
            (root / "demo").mkdir(exist_ok=True)
            shutil.copy(DEMO_VIDEOS / name, root / "demo")
        self.list = root / "list.csv"
        self.list.write_text(
            "path,start_s,end_s,caption,score\n"
            "demo/carphone.mp4,0.5,0.9,a man in a car,1\n"
            "demo/phone.mkv,1,1.4,a phone,2\n"
            "demo/phone.mkv,2.0,2.2,the phone again,3\n"
            "demo/cup.webm,0.3,0.7,Tee – heiß,4\n"
            "videos/a.mp4,,,all of it,5\n"
            "videos/b.mkv,7,9,past its end,6\n"
            "videos/missing.mp4,,,never there,7\n"
        )
        self.tar = root / "videos.tar"
        with tarfile.open(self.tar, "w", format=tarfile.USTAR_FORMAT) as tar:
            for name in ("a.mp4", "d.ts"):
                add_member(tar, name, (self.videos / name).read_bytes())
                add_member(tar, f"{name[0]}.json", json.dumps({"caption": f"of {name}"}).encode())
        self.checkpoint = write_checkpoint(root / "checkpoint")
        fix_times(root)
        self._digests: dict[str, Digests] = {}
        self._job = ""

    def digests(self, job: str) -> Digests:
        """``job/file`` -> ``(facts, bytes)`` of one of :data:`JOBS`; it runs once, after the jobs it depends on."""
        if job not in self._digests:
            for earlier in _AFTER.get(job, ()):
                self.digests(earlier)
            self._digests[job] = {}
            self._job = job
            JOBS[job](self)
        return self._digests[job]

    def run(self, *arguments: object) -> None:
        """Run a command line that must succeed."""
        code = run([str(argument) for argument in arguments])
        assert code == 0, f"vidvq {' '.join(map(str, arguments))} ended with {code}"

    def take(self, out: Path, name: str = "") -> None:
        """Record the digests of an output directory as it is now."""
        label = name or out.relative_to(self.root).as_posix()
        self._digests[self._job] |= {f"{label}/{file}": found for file, found in digest_folder(out).items()}

    def shard(self, name: str, *arguments: object) -> Path:
        """Shard, and record the digests."""
        out = self.root / "clips" / name
        self.run("shard", *arguments, "--out", out, *RUN)
        self.take(out)
        return out

    def tokenize(self, name: str, *arguments: object) -> Path:
        """Tokenize, and record the digests."""
        out = self.root / "tokens" / name
        # The default on a GPU is another one.
        batch = [] if any(str(argument).startswith("batch=") for argument in arguments) else ["batch=1"]
        self.run("tokenize", *arguments, "--checkpoint", self.checkpoint, "--out", out, *batch, *RUN)
        self.take(out)
        return out

    def change(self, stage: str, out: Path, number: int, *arguments: object) -> None:
        """Update a finished directory, and record its digests after the update."""
        checkpoint = ("--checkpoint", self.checkpoint) if stage == "tokenize" else ()
        self.run(stage, *arguments, "--out", out, *checkpoint, *RUN)
        self.take(out, f"{out.relative_to(self.root).as_posix()}-{number}")

    def growing(self, name: str) -> Path:
        """A folder of four videos, one of them damaged, for :meth:`grow` and :meth:`mend`."""
        folder = self.root / name
        folder.mkdir()
        for video in ("a.mp4", "b.mkv", "d.ts"):
            shutil.copy(self.videos / video, folder)
        (folder / "c.mp4").write_bytes(b"RIFF")
        fix_times(folder)
        return folder

    def grow(self, folder: Path) -> None:
        """Add a new video, and a copy of an old one under another name."""
        shutil.copy(self.videos / "f.mkv", folder)
        shutil.copy(self.videos / "a.mp4", folder / "e.mp4")
        fix_times(folder)

    def mend(self, folder: Path) -> None:
        """Replace the damaged video by the whole one."""
        shutil.copy(self.videos / "c.mp4", folder)
        fix_times(folder)


def shard_encodings(golden: Golden) -> None:
    """Each encoding, windows and shots; with filters, a duplicate, a broken and a torn video."""
    filters = "filters.min_side=20 filters.min_luma=0.1 filters.min_motion=0.005".split()
    golden.shard("h264", golden.videos, *CLIPS, *filters)
    pad = ("clip.short_side=null", "clip.size=[16,24]", "clip.fit=pad")
    golden.shard("ffv1", golden.videos, *CLIPS, *pad, "clip.encoding=ffv1", "clip.fps=10", "clip.stride=3")
    some = [golden.videos / name for name in ("b.mkv", "a.mp4", "twin.mp4")]
    golden.shard("frames", *some, *CLIPS, "clip.encoding=frames", "clip.stride=2", "filters.duplicates=false")
    whole = ("clip.short_side=null", "clip.encoding=copy", "clip.num_frames=8")
    golden.shard("copy", golden.videos / "keys.mkv", golden.videos / "a.mp4", *CLIPS, *whole)
    golden.shard("shots", golden.videos / "cuts.mp4", *CLIPS, "cut.kind=shots", "clip.num_frames=7", "clip.crf=30")


def shard_lists(golden: Golden) -> None:
    """A list of ranges with columns to carry, of real videos too; and videos in a tar."""
    golden.shard("list", golden.list, *CLIPS, "lists.carry=[caption,score]")
    golden.shard("tar", golden.tar, *CLIPS, "lists.carry=[caption]")


def change_clips(golden: Golden) -> None:
    """Updates of clips, and of the tokens made from them."""
    videos = golden.growing("growing")
    clips = golden.shard("changing", videos, *CLIPS, "clips_per_shard=2")
    tokens = golden.tokenize("following", clips)
    packed = golden.tokenize("following-packed", clips, "pack=true", "quality.share=1", "batch=2")
    golden.grow(videos)
    golden.change("shard", clips, 1, videos, "--add")
    golden.change("tokenize", tokens, 1, clips, "batch=1")
    golden.change("shard", clips, 2, "--remove", videos / "d.ts")
    golden.change("tokenize", tokens, 2, clips, "batch=1")
    golden.mend(videos)
    golden.change("shard", clips, 3, "--retry-failed")
    golden.change("tokenize", tokens, 3, clips, "batch=1")
    golden.change("tokenize", packed, 3, clips, "pack=true", "quality.share=1", "batch=2")


def tokenize_clips(golden: Golden) -> None:
    """Tokens of clips with each setting of how they are made and written."""
    clips = golden.root / "clips/h264"
    golden.tokenize("npy", clips)
    golden.tokenize("packed", clips, "pack=true")
    golden.tokenize("scored", clips, "quality.share=0.5", "batch=2")
    golden.tokenize("of-list", golden.root / "clips/list")
    golden.tokenize("of-ffv1", golden.root / "clips/ffv1")


def tokenize_videos(golden: Golden) -> None:
    """Tokens of raw video in groups and in unbroken streams."""
    golden.tokenize("groups", golden.videos, *FRAMES, "gop_frames=9")
    golden.tokenize("streams", golden.videos, *FRAMES, "gop_frames=null", "batch=2", "quality.share=0.5")
    golden.tokenize("ranges", golden.list, golden.tar, *FRAMES, "video.fps=12", "gop_frames=9", "pack=true")
    # Codes enough that a compressor's settings show.
    golden.tokenize("long", golden.root / "demo/phone.mkv", "video.short_side=64", "gop_frames=null", "pack=true")


def change_videos(golden: Golden) -> None:
    """Updates of tokens of raw video."""
    for name, settings in (
        ("changing-groups", ["gop_frames=5"]),
        ("changing-streams", ["gop_frames=null", "pack=true", "quality.share=1", "batch=2"]),
    ):
        videos = golden.growing(name)
        tokens = golden.tokenize(name, videos, *FRAMES, *settings)
        golden.grow(videos)
        golden.change("tokenize", tokens, 1, videos, "--add")
        golden.change("tokenize", tokens, 2, "--remove", videos / "b.mkv")
        golden.mend(videos)
        golden.change("tokenize", tokens, 3, "--retry-failed")


def export_tokens(golden: Golden) -> None:
    """Each target in two or three layouts, and tokens that were updated."""
    layouts = {"raster-clip": (), "temporal-none": ("order=temporal", "specials=none")}
    for target in TARGETS:
        for name, layout in layouts.items():
            export(golden, golden.root / "tokens/npy", target, name, *layout)
    export(golden, golden.root / "tokens/packed", "bin", "raster-group", "specials=group")
    for target in ("mds", "megatron"):
        export(golden, golden.root / "tokens/changing-groups", target, "changed")


def export(golden: Golden, tokens: Path, target: str, name: str, *layout: str) -> None:
    """Export, and record the digests."""
    out = golden.root / "exports" / f"{target}-{name}"
    golden.run("export", tokens, "--to", target, "--out", out, *layout)
    golden.take(out)


JOBS: dict[str, Callable[[Golden], None]] = {
    "shard_encodings": shard_encodings,
    "shard_lists": shard_lists,
    "change_clips": change_clips,
    "tokenize_clips": tokenize_clips,
    "tokenize_videos": tokenize_videos,
    "change_videos": change_videos,
    "export_tokens": export_tokens,
}
_AFTER = {"tokenize_clips": ("shard_encodings", "shard_lists"), "export_tokens": ("tokenize_clips", "change_videos")}


def stack() -> dict[str, str]:
    """What the bytes depend on besides vidvq: versions of libraries, and the kind of processor.

    Not on its instruction sets: bytes are the same with and without AVX2 and AVX-512 (ATEN_CPU_CAPABILITY,
    ONEDNN_MAX_CPU_ISA).
    """
    import av
    import torch

    libraries = ("av", "numpy", "pyarrow", "torch", "zstandard", "scenedetect-headless", "opencv-python-headless")
    found = {name: _version(name) for name in libraries}
    found["ffmpeg"] = str(av.ffmpeg_version_info)
    found["processor"] = platform.machine()
    found["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    return found


def decided_by(file: str) -> tuple[str, ...]:
    """The names in :func:`stack` that the bytes of ``job/file`` depend on."""
    names = ["av", "ffmpeg", "numpy", "processor"]
    if file.startswith("clips/shots/"):
        names += ["scenedetect-headless", "opencv-python-headless"]
    if not file.startswith("clips/"):
        names += ["torch", "device"]
    if file.startswith("tokens/"):
        names += ["zstandard"]
    # Every commit record has the plan id, which covers the bytes of the plan's parquet table.
    if not file.endswith((".tar", "tokenizer.json")) and (not file.startswith("exports/") or "parquet" in file):
        names += ["pyarrow"]
    return tuple(names)


def digest_folder(folder: Path) -> Digests:
    """``file -> (facts, bytes)`` of all files below a folder, without reports."""
    found: Digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in _ACCOUNTS:
            # The table of a plan's later generation has its hash in its name.
            name = re.sub(r"^(plan-\d{4})-[0-9a-f]{12}\.parquet$", r"\1.parquet", path.relative_to(folder).as_posix())
            found[name] = (_digest(_canonical(_facts(path))), _digest(path.read_bytes()))
    return found


def _facts(path: Path) -> Any:
    if path.name.startswith("plan") and path.suffix == ".parquet":
        with path.open("rb") as file:
            table = pq.read_table(file)
        schema = [[column.name, str(column.type)] for column in table.schema]
        return [schema, [_drop(row, _VOLATILE) for row in table.to_pylist()]]
    if path.suffix == ".tar":
        with tarfile.open(path) as tar:
            return [[info.name, _member(info, tar)] for info in tar]
    if path.suffix != ".json" or path.name in {"index.json", ".info.json"}:
        return None
    content = json.loads(path.read_bytes())
    if path.name.startswith("plan"):
        # Tokens of clips name the clips' plan and hashes.
        return _drop(content, _VOLATILE | {"clips", "checks", "files"})
    if "members" in content:
        content["members"] = [name for name, _, _ in content["members"]]
    return content if path.name == "tokenizer.json" else _drop(content, _VOLATILE | {"bytes", "sha256"})


def _member(info: tarfile.TarInfo, tar: tarfile.TarFile) -> Any:
    if not info.name.endswith(".json"):
        return None
    file = tar.extractfile(info)
    assert file
    return _drop(json.loads(file.read()), _VOLATILE)


def _drop(value: Any, names: set[str]) -> Any:
    if isinstance(value, dict):
        kept = {name: item for name, item in value.items() if name not in names and not name.endswith(_SCORE)}
        return {name: _drop(item, names) for name, item in kept.items()}
    return [_drop(item, names) for item in value] if isinstance(value, list) else value


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file without an owner, with modification time 0."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def fix_times(folder: Path) -> None:
    """Set the modification time of every file below a folder to the same value."""
    for path in folder.rglob("*"):
        os.utime(path, ns=(_CHANGED_NS, _CHANGED_NS))


def write_checkpoint(folder: Path) -> Path:
    """A tiny tokenizer with weights from a bit generator, so that they do not depend on a library's initialization."""
    import torch

    from vidvq.model import TokenizerConfig, VideoTokenizer
    from vidvq.model.encoder import DecoderConfig, StackConfig
    from vidvq.model.quantize import QuantizerConfig, VQConfig
    from vidvq.pretrained import save_tokenizer

    small = TokenizerConfig(
        encoder=StackConfig((8, 8), (1, 1)),
        decoder=DecoderConfig((8, 8), (1, 1)),
        quantizer=QuantizerConfig(4, VQConfig(size=32), VQConfig(size=64)),
    )
    tokenizer = VideoTokenizer(small)
    bits = np.random.PCG64(0)
    tensors = {}
    for name, tensor in sorted(tokenizer.inference_state_dict().items()):
        # Uniform in -1 to 1, in steps of 2^-16: exact in float32, as are the powers of two below.
        raw = bits.random_raw(tensor.numel()).astype(np.uint64) >> np.uint64(47)
        values = (raw.astype(np.float32) / 2**16 - 1).reshape(tuple(tensor.shape))
        if "norm" in name and name.endswith("weight"):
            values = 1 + values / 4
        elif name.endswith("bias"):
            values = values / 16
        elif "codebook" not in name:
            fan_in = tensor.numel() // tensor.shape[0]
            values = values / 2 ** (fan_in.bit_length() // 2 - 1)
        tensors[name] = torch.from_numpy(values)
    save_tokenizer(folder, tokenizer, tensors, step=1)
    return folder


def empty(root: Path) -> None:
    """Empty a folder; creates it if it does not exist."""
    root.mkdir(exist_ok=True)
    for path in root.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def alone(root: Path = ROOT) -> Iterator[None]:
    """Lock the folder; another run on this machine waits."""
    root.mkdir(exist_ok=True)
    folder = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def read_record() -> tuple[dict[str, str], dict[str, Digests]]:
    """The stack and the digests of each job, as recorded."""
    record = json.loads(RECORD.read_bytes())
    jobs = {
        job: {file: (pair.split()[0], pair.split()[1]) for file, pair in files.items()}
        for job, files in record["jobs"].items()
    }
    return record["stack"], jobs


def differences(expected: Digests, found: Digests, libraries: set[str]) -> list[str]:
    """A line for each file that is missing, new or changed, ignoring bytes that depend on one of ``libraries``."""
    lines = [f"{file} is missing" for file in expected.keys() - found.keys()]
    lines += [f"{file} is new" for file in found.keys() - expected.keys()]
    for file in expected.keys() & found.keys():
        if expected[file][0] != found[file][0]:
            lines.append(f"{file} has other content")
        elif expected[file][1] != found[file][1] and libraries.isdisjoint(decided_by(file)):
            lines.append(f"{file} has other bytes with the same content")
    return sorted(lines)


def main() -> None:
    """Record the digests; prints what has changed."""
    before = read_record()[1] if RECORD.is_file() else {}
    with alone():
        golden = Golden()
        jobs = {job: golden.digests(job) for job in JOBS}
    changed = [line for job in JOBS for line in differences(before.get(job, {}), jobs[job], set())]
    pairs = {job: {file: " ".join(found) for file, found in sorted(files.items())} for job, files in jobs.items()}
    RECORD.write_text(json.dumps({"stack": stack(), "jobs": pairs}, indent=1) + "\n")
    sys.stdout.write("".join(f"{line}\n" for line in changed))
    sys.stdout.write(f"{len(changed)} files differ from the previous record; see {ROOT}\n")


if __name__ == "__main__":
    main()
