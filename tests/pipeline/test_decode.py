"""`vidvq decode` in every format: complete clips, intervals of a video, and generated codes."""

import errno
import json
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

import vidvq.decode as stage
from vidvq.decode import batch
from vidvq.decode import job as decode_job
from vidvq.decode.find import find_clips
from vidvq.errors import UsageError
from vidvq.export import ExportConfig, Layout, grid_to_sequence
from vidvq.formats.token_index import committed_shards, index_shard, index_tokens
from vidvq.formats.token_shard import TokenInfo, read_tokenizer_card
from vidvq.model.step_shape import StepShape


@pytest.fixture
def location(tokens_dir):
    return index_tokens(tokens_dir)[0]


@pytest.fixture
def weights(checkpoint_dir):
    return ("--checkpoint", checkpoint_dir)


def gif_of(path):
    with Image.open(path) as gif:
        frames, lengths = [], []
        for index in range(getattr(gif, "n_frames", 1)):
            gif.seek(index)
            frames.append(np.asarray(gif.convert("RGB")))
            lengths.append(gif.info["duration"])
    return np.stack(frames), lengths


def test_all_formats_have_the_same_frames_and_times(vidvq, tmp_path, tokens_dir, location, weights):
    info = location.read_info()
    for kind in ("npy", "gif", "mp4"):
        out = tmp_path / f"clip.{kind}"
        quality = ("crf=0",) if kind == "mp4" else ()
        assert vidvq("decode", tokens_dir, *weights, "--out", out, "--key", location.key, *quality).code == 0
    pixels = np.load(tmp_path / "clip.npy", allow_pickle=False)
    assert pixels.shape == (info.num_frames, info.height, info.width, 3)
    gif, lengths = gif_of(tmp_path / "clip.gif")
    assert gif.shape == pixels.shape
    assert np.abs(gif.astype(int) - pixels).mean() < 8
    seconds = float(info.duration * info.seconds_per_tick)
    assert sum(lengths) == pytest.approx(seconds * 1000, abs=11)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        assert float(stream.duration * stream.time_base) == pytest.approx(seconds, abs=1e-3)
    assert decoded.shape == pixels.shape
    # Chroma is subsampled there; luma is not.
    assert np.abs((decoded.astype(int) - pixels) @ [0.299, 0.587, 0.114]).mean() < 4
    outputs = ["clip.gif", "clip.mp4", "clip.npy"]
    markers = [f"{name}.decode.json" for name in outputs]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*outputs, *markers])


def test_a_larger_decoder_decodes_the_same_tokens(vidvq, tmp_path, tokens_dir, location, larger_decoder):
    info = location.read_info()
    for kind in ("npy", "mp4"):
        job = ("--checkpoint", larger_decoder, "--out", tmp_path / f"clip.{kind}", "--key", location.key)
        assert vidvq("decode", tokens_dir, *job).code == 0
    size = (2 * info.height, 2 * info.width)
    assert np.load(tmp_path / "clip.npy", allow_pickle=False).shape == (info.num_frames, *size, 3)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.height, stream.width, stream.frames) == (*size, info.num_frames)


def test_sample_offsets_come_from_the_records_without_opening_tars(tokens_dir, tmp_path, monkeypatch):
    shards = committed_shards(tokens_dir)
    by_headers = [location for shard in shards for location in index_shard(shard)]
    monkeypatch.setattr(tarfile, "open", None)
    assert index_tokens(tokens_dir) == by_headers
    torn = tmp_path / "torn"
    shutil.copytree(tokens_dir, torn)
    with (torn / shards[-1].name).open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match=r"has 1000 bytes, not the \d+ of its record; run vidvq verify"):
        index_tokens(torn)


def test_an_interval_has_the_frames_shown_in_it_and_reads_no_other_clip(
    vidvq, tmp_path, tokens_dir, weights, monkeypatch
):
    locations = index_tokens(tokens_dir)
    infos = [location.read_info() for location in locations]
    tick = infos[0].seconds_per_tick
    # From within the third clip to within the fifth.
    start, end = infos[2].pts[4] * tick, infos[4].pts[3] * tick
    read = []
    whole = type(locations[0]).read
    monkeypatch.setattr(type(locations[0]), "read", lambda self, card: (read.append(self.key), whole(self, card))[1])
    out = tmp_path / "part.npy"
    source = infos[0].source
    edges = ("--from", str(start), "--to", str(end))
    assert vidvq("decode", tokens_dir, *weights, "--source", source, *edges, "--out", out).code == 0
    assert read == [location.key for location in locations[2:5]]
    got = np.load(out)
    assert len(got) == 5 + 9 + 3
    interval = ("--source", source, *edges, "--out", tmp_path / "part", "format=mp4")
    assert vidvq("decode", tokens_dir, *weights, *interval).code == 0
    mp4 = tmp_path / f"part/{Path(source).stem}-from-{float(start):g}-to-{float(end):g}.mp4"
    with av.open(str(mp4)) as container:
        stream = container.streams.video[0]
        times = sorted(packet.pts * stream.time_base for packet in container.demux(stream) if packet.size)
    shown = [*infos[2].pts[4:], *infos[3].pts, *infos[4].pts[:3]]
    assert times == [(pts - shown[0]) * tick for pts in shown]
    frames = stage.frames(tokens_dir, weights[1], source=source, start=start, end=end)
    assert np.array_equal(np.stack([frame.pixels for frame in frames]), got)
    one = list(stage.frames(tokens_dir, weights[1], key=locations[3].key))
    assert np.array_equal(np.stack([frame.pixels for frame in one]), got[5:14])
    assert [frame.start for frame in one] == [pts * tick for pts in infos[3].pts]


@pytest.mark.parametrize(("second", "overlaps"), [(9, False), (8, True), (4, True)])
def test_an_interval_of_clips_that_share_a_frame_is_refused(tmp_path, second, overlaps):
    def located(start: int) -> SimpleNamespace:
        pts = tuple(range(start, start + 9))
        info = TokenInfo("/a.mp4", 0, (3, 2, 2), 9, 16, 16, 10.0, "1/10", pts, 9)
        return SimpleNamespace(key=f"from-{start}", read_info=lambda: info)

    known = [located(second), located(0)]
    refused = (
        pytest.raises(UsageError, match=f"from-{second} overlaps the clip before it") if overlaps else nullcontext()
    )
    with refused:
        assert [clip.num_frames for clip in find_clips(tmp_path, known, stage.VideoInterval("/a.mp4"))] == [9, 9]


def test_a_source_may_be_a_relative_path(vidvq, tmp_path, tokens_dir, weights, location, monkeypatch):
    source = Path(location.read_info().source)
    monkeypatch.chdir(source.parent.parent)
    relative = f"./{source.parent.name}/../{source.parent.name}/{source.name}"
    out = tmp_path / "part.npy"
    assert vidvq("decode", tokens_dir, *weights, "--source", relative, "--to", "0.2", "--out", out).code == 0
    assert len(np.load(out))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "elsewhere"], "; it has /"),
        (["--source", "{source}", "--from", "1000"], "has no frame of"),
        (["--source", "{source}", "--from", "2", "--to", "1"], "from=2 must be before to=1"),
        (["--source", "{source}x"], "nearest: {source}"),
        (["--from", "1"], "--from and --to need --source"),
        (["--source", "{source}", "--from", "early"], "is not a number of seconds"),
        (["--source", "{source}", "--to", "1e99999999"], "is not a number of seconds"),
        (["--key", "{key}x"], "nearest: {key}"),
        (["format=png"], "format=png contradicts --out out.npy"),
        (["crf=17"], "crf=17 has no effect on npy; leave it out, or decode to mp4"),
        ([], "is one file"),
        (["--flat"], "are for a generator's"),
        (["--key", ""], "the argument after --key is empty"),
        (["--key", "null"], "key=null is not in"),
        (["--key", "a: b"], "key=a: b is not in"),
        (["--source", ""], "the argument after --source is empty"),
    ],
)
def test_a_usage_error_writes_nothing(vidvq, tmp_path, tokens_dir, weights, location, arguments, message):
    words = {"source": location.read_info().source, "key": location.key}
    given = [argument.format(**words) for argument in arguments]
    ran = vidvq("decode", tokens_dir, *weights, "--out", tmp_path / "out.npy", *given)
    assert (ran.code, list(tmp_path.iterdir())) == (2, [])
    assert message.format(**words) in ran.error


def test_output_does_not_depend_on_workers_and_existing_files_are_kept(vidvq, tmp_path, tokens_dir, weights, snapshot):
    for workers in (0, 2):
        out = tmp_path / str(workers)
        assert vidvq("decode", tokens_dir, *weights, "--out", out, "format=npy", f"runtime.workers={workers}").code == 0
    assert snapshot(tmp_path / "0") == snapshot(tmp_path / "2")
    before = snapshot(tmp_path / "0")
    gone, kept = sorted((tmp_path / "0").glob("*.npy"))[:2]
    gone.unlink()
    (tmp_path / "0" / f"{gone.name}.tmp.host-1-00").write_bytes(b"half")
    (tmp_path / "0" / f"{gone.name}.tmp.host-1-01").mkdir()
    stamp = kept.stat().st_mtime_ns
    assert vidvq("decode", tokens_dir, *weights, "--out", tmp_path / "0", "format=npy").code == 0
    assert snapshot(tmp_path / "0") == before
    assert kept.stat().st_mtime_ns == stamp
    ran = vidvq("decode", tokens_dir, *weights, "--out", tmp_path / "0", "format=gif")
    assert (ran.code, 'other settings: format was "npy", now "gif"; give another --out' in ran.error) == (2, True)


def test_a_file_is_overwritten_only_with_force(vidvq, tmp_path, tokens_dir, weights, location):
    out = tmp_path / "mine.npy"
    out.write_bytes(b"precious")
    one = ("decode", tokens_dir, *weights, "--out", out, "--key", location.key)
    interval = ("decode", tokens_dir, *weights, "--out", out, "--source", location.read_info().source, "--to", "0.2")
    for command in (one, interval):
        ran = vidvq(*command)
        assert ran.code == 2 and "exists and was not written by vidvq decode" in ran.error and "--force" in ran.error
        assert out.read_bytes() == b"precious"
    assert vidvq(*one, "--force").code == 0
    whole, stamp = out.read_bytes(), out.stat().st_mtime_ns
    # The same command keeps the file; another one refuses to overwrite it.
    assert vidvq(*one).code == 0 and out.stat().st_mtime_ns == stamp
    ran = vidvq(*interval)
    assert ran.code == 2 and "was decoded from other tokens or settings" in ran.error
    assert out.read_bytes() == whole
    assert vidvq(*interval, "--force").code == 0 and out.read_bytes() != whole


def test_a_shard_that_gnu_tar_packed_again_decodes_alike(vidvq, tmp_path, tokens_dir, weights):
    shard = tokens_dir / "tokens-000000.tar"
    shutil.copy(tokens_dir / "tokenizer.json", tmp_path)
    with tarfile.open(shard) as tar, tarfile.open(tmp_path / shard.name, "w", format=tarfile.GNU_FORMAT) as copy:
        for member in tar.getmembers():
            copy.addfile(member, tar.extractfile(member))
    for name, path in (("one", shard), ("other", tmp_path / shard.name)):
        ran = vidvq("decode", path, *weights, "format=npy", "--out", tmp_path / name)
        assert ran.code == 0, ran.err
    made = sorted((tmp_path / "other").glob("*.npy"))
    assert made and all(path.read_bytes() == (tmp_path / "one" / path.name).read_bytes() for path in made)


def test_a_file_decoded_from_another_shard_is_not_skipped(vidvq, tmp_path, tokens_dir, weights):
    shards = committed_shards(tokens_dir)
    source = index_tokens(tokens_dir)[0].read_info().source
    one, other = (tmp_path / name for name in ("one", "other"))
    for folder, location in zip((one, other), index_tokens(tokens_dir), strict=False):
        # A shard of one clip, without the plan of its directory.
        folder.mkdir()
        shutil.copy(tokens_dir / "tokenizer.json", folder)
        with tarfile.open(location.shard) as tar, tarfile.open(folder / "tokens-000000.tar", "w") as copy:
            for member in tar.getmembers():
                if member.name.startswith(location.key):
                    copy.addfile(member, tar.extractfile(member))
    for first, second, options in (
        (one / "tokens-000000.tar", other / "tokens-000000.tar", ["--out", tmp_path / "clip.npy"]),
        (shards[0], tokens_dir, ["--out", tmp_path / "scene.npy", "--source", source]),
        (one / "tokens-000000.tar", other / "tokens-000000.tar", ["--out", tmp_path / "folder"]),
    ):
        assert vidvq("decode", first, *weights, *options).code == 0
        ran = vidvq("decode", second, *weights, *options)
        assert ran.code == 2 and "was decoded " in ran.error and "give another --out" in ran.error


def test_a_folder_never_mixes_settings(vidvq, tmp_path, tokens_dir, weights, monkeypatch):
    shards, out = committed_shards(tokens_dir), tmp_path / "out"
    everything = ("decode", tokens_dir, *weights, "--out", out)
    assert vidvq(*everything, "crf=17").code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    ran = vidvq("decode", shards[0], *weights, "--out", out, "crf=40", "--force")
    assert ran.code == 2 and "--force would keep " in ran.error
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(decode_job, "decode_together", interrupt)
        assert vidvq(*everything, "crf=40", "--force").code == 130
    assert vidvq(*everything, "crf=40").code == 0
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    assert after.keys() == before.keys() and not any(after[name] == data for name, data in before.items())


def test_force_starts_anew_after_a_killed_run_with_other_settings(vidvq, tmp_path, tokens_dir, weights, location):
    out = tmp_path / "out"
    job = ("decode", tokens_dir, *weights, "--key", location.key, "--out", out)
    assert vidvq(*job, "crf=17").code == 0
    for name in (f"{location.key}.mp4", "decode.json"):
        (out / f"{name}.tmp.host-1-00").write_bytes(b"half")
    (out / "notes.tmp.host-1-00").write_bytes(b"of another program")
    ran = vidvq(*job, "crf=40", "--force")
    assert ran.code == 2 and "--force would keep notes.tmp.host-1-00" in ran.error
    (out / "notes.tmp.host-1-00").unlink()
    ran = vidvq(*job, "crf=40", "--force")
    assert ran.code == 0, ran.err
    assert {path.name for path in out.iterdir()} == {"decode.json", f"{location.key}.mp4"}


def test_a_killed_job_of_frames_resumes(vidvq, tmp_path, tokens_dir, weights, location):
    half = tmp_path / "out" / f"{location.key}.tmp.host-1-00"
    half.mkdir(parents=True)
    (half / "000000.png").write_bytes(b"half")
    job = ("decode", tokens_dir, *weights, "--key", location.key, "--out", tmp_path / "out", "format=png")
    assert vidvq(*job).code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"decode.json", location.key}


def test_temporary_files_of_other_outputs_are_kept(vidvq, tmp_path, tokens_dir, weights, location):
    other = tmp_path / "x1.npy.tmp.host-1-00"
    other.write_bytes(b"of a job that runs")
    assert vidvq("decode", tokens_dir, *weights, "--key", location.key, "--out", tmp_path / "x[1].npy").code == 0
    assert other.exists()


@pytest.mark.parametrize("name", ["clip.avi", "clip.png", "clip.npz"])
def test_an_output_named_as_media_is_no_folder(vidvq, tmp_path, tokens_dir, weights, location, name):
    ran = vidvq("decode", tokens_dir, *weights, "--key", location.key, "--out", tmp_path / name)
    assert ran.code == 2 and f"--out {name} is not a format of decode" in ran.error
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_used_otherwise_is_refused(vidvq, tmp_path, tokens_dir, weights, snapshot):
    before = snapshot(tokens_dir)
    ran = vidvq("decode", tokens_dir, *weights, "--out", tokens_dir)
    assert ran.code == 2 and "is the folder of the tokens" in ran.error
    assert snapshot(tokens_dir) == before
    (tmp_path / "notes").write_text("")
    ran = vidvq("decode", tokens_dir, *weights, "--out", tmp_path / "notes")
    assert ran.code == 2 and f"Not a directory: {tmp_path / 'notes'}" in ran.error


def test_decoding_does_not_overwrite_the_file_of_codes(vidvq, tmp_path, tokens_dir, weights, location):
    codes, _ = location.read(read_tokenizer_card(tokens_dir))
    np.save(tmp_path / "made.npy", codes)
    before = (tmp_path / "made.npy").read_bytes()
    made = ("--tokenizer", tokens_dir, *weights, "fps=25")
    for out in (tmp_path / "made.npy", tmp_path / "." / "made.npy"):
        ran = vidvq("decode", tmp_path / "made.npy", *made, "--out", out, "--force")
        assert ran.code == 2 and "is the input file" in ran.error
    assert (tmp_path / "made.npy").read_bytes() == before


def test_generated_codes_decode_like_the_codes_of_a_shard(vidvq, tmp_path, tokens_dir, weights, location):
    card = read_tokenizer_card(tokens_dir)
    codes, _ = location.read(card)
    assert vidvq("decode", tokens_dir, *weights, "--out", tmp_path / "true.npy", "--key", location.key).code == 0
    true = np.load(tmp_path / "true.npy")
    offsets = np.array([card.codebook_of(t).offset for t in range(len(codes))])[:, None, None]
    flat = (codes + offsets).astype("<u2")
    np.save(tmp_path / "local.npy", codes)
    np.save(tmp_path / "flat.npy", flat.ravel())
    np.save(tmp_path / "batch.npy", np.stack([codes, codes]).astype(np.int64))
    (tmp_path / "two.bin").write_bytes(flat.tobytes() * 2)
    grid = ",".join(map(str, codes.shape))
    made = ("--tokenizer", tokens_dir / "tokenizer.json", *weights, "fps=12.5")
    for name, options in (("local", []), ("flat", ["--flat", "--grid", grid])):
        out = ("--out", tmp_path / "o.npy", "--force")
        assert vidvq("decode", tmp_path / f"{name}.npy", *made, *out, *options).code == 0
        assert np.array_equal(np.load(tmp_path / "o.npy"), true)
    for name, options in (("batch.npy", []), ("two.bin", ["--flat", "--grid", grid])):
        out = tmp_path / name.partition(".")[0]
        assert vidvq("decode", tmp_path / name, *made, "--out", out, *options, "format=npy").code == 0
        names = {f"{out.name}-{index:05d}.npy" for index in (0, 1)}
        assert {path.name for path in out.iterdir()} == {*names, "decode.json"}
        for path in out.glob("*.npy"):
            assert np.array_equal(np.load(path), true)
    assert vidvq("decode", tmp_path / "local.npy", *made, "--out", tmp_path / "o.mp4").code == 0
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert container.streams.video[0].average_rate == Fraction(25, 2)


def test_generated_codes_are_not_taken_for_decoded_by_another_decoder(
    vidvq, tmp_path, tokens_dir, weights, location, larger_decoder
):
    np.save(tmp_path / "made.npy", location.read(read_tokenizer_card(tokens_dir))[0])
    made = ("--tokenizer", tokens_dir, "fps=25", "--out", tmp_path / "out.npy")
    assert vidvq("decode", tmp_path / "made.npy", *weights, *made).code == 0
    ran = vidvq("decode", tmp_path / "made.npy", "--checkpoint", larger_decoder, *made)
    assert ran.code == 2 and "was decoded from other tokens or settings" in ran.error


@pytest.mark.parametrize("specials", ["clip", "group"])
def test_ids_with_the_special_tokens_of_an_export_decode_like_the_shard(
    vidvq, tmp_path, tokens_dir, weights, location, specials
):
    card = read_tokenizer_card(tokens_dir)
    codes, _ = location.read(card)
    ids = grid_to_sequence(codes, Layout(card, ExportConfig(specials=specials)))
    grid = ("--flat", "--grid", ",".join(map(str, codes.shape)))
    made = ("--tokenizer", tokens_dir, *weights, "fps=25", "format=npy", *grid, "--out")
    (tmp_path / "ids.bin").write_bytes(np.concatenate([ids, ids]).astype("<u2").tobytes())
    assert vidvq("decode", tokens_dir, *weights, "--out", tmp_path / "true.npy", "--key", location.key).code == 0
    ran = vidvq("decode", tmp_path / "ids.bin", *made, tmp_path / "out")
    assert ran.code == 0, ran.err
    for index in (0, 1):
        made_frames = np.load(tmp_path / f"out/ids-{index:05d}.npy")
        assert np.array_equal(made_frames, np.load(tmp_path / "true.npy"))
    np.save(tmp_path / "cut.npy", np.delete(np.concatenate([ids, ids]), 5))
    ran = vidvq("decode", tmp_path / "cut.npy", *made, tmp_path / "cut")
    assert ran.code == 2
    # The number of ids is wrong too, but the special token shows where.
    assert f"the special token {card.vocabulary + (1 if specials == 'clip' else 2)} at " in ran.error
    np.save(tmp_path / "none.npy", ids[ids >= card.vocabulary])
    ran = vidvq("decode", tmp_path / "none.npy", *made, tmp_path / "none")
    assert ran.code == 2 and "none.npy has only special tokens" in ran.error


@pytest.mark.parametrize("name", ["codes.npz", "codes.safetensors"])
def test_another_file_of_codes_is_named(vidvq, tmp_path, tokens_dir, weights, name):
    (tmp_path / name).write_bytes(b"PK")
    ran = vidvq("decode", tmp_path / name, "--tokenizer", tokens_dir, *weights, "fps=25", "--out", tmp_path / "out")
    assert ran.code == 2 and f"{name} is not read; save its array of codes as .npy" in ran.error


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (np.zeros((1, 2, 2)), "holds float64; codes are integers"),
        (np.zeros((2, 2), int), "has shape (2, 2); codes are lt lh lw"),
        (np.zeros((0, 2, 2), int), "has shape (0, 2, 2); codes are lt lh lw"),
        (np.zeros(0, int), "has shape (0,); codes are lt lh lw"),
        (np.zeros(8, int), "has 8 ids without a shape; give --grid"),
        (np.zeros((2, 1, 2, 2), int), "holds 2 videos; give a folder"),
    ],
)
def test_codes_of_no_clip_or_of_several_for_one_file_are_refused(vidvq, tmp_path, tokens_dir, weights, ids, said):
    np.save(tmp_path / "made.npy", ids)
    made = ("--tokenizer", tokens_dir, *weights, "fps=25", "--out", tmp_path / "out.npy")
    ran = vidvq("decode", tmp_path / "made.npy", *made)
    assert ran.code == 2 and said in ran.error
    assert [path.name for path in tmp_path.iterdir()] == ["made.npy"]


def test_a_batch_of_generated_codes_decodes_the_same_on_workers(
    vidvq, tmp_path, tokens_dir, weights, location, snapshot
):
    codes, _ = location.read(read_tokenizer_card(tokens_dir))
    batch = np.stack([np.roll(codes, shift, axis=2) for shift in range(5)])
    np.save(tmp_path / "batch.npy", batch)
    for name, workers in (("inline", 0), ("ray", 2)):
        made = ("--tokenizer", tokens_dir, *weights, "--out", tmp_path / name, "fps=25", f"runtime.workers={workers}")
        assert vidvq("decode", tmp_path / "batch.npy", *made).code == 0
    assert len(list((tmp_path / "ray").glob("*.mp4"))) == 5
    assert snapshot(tmp_path / "inline") == snapshot(tmp_path / "ray")
    assert len(set(snapshot(tmp_path / "ray").values())) == 6


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_a_stream(tmp_path, tokens_dir, weights):
    measure = (
        "import resource, sys; from vidvq.cli.main import run; assert run(sys.argv[1:]) == 0; "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peak_kib = []
    for groups in (60, 1200):
        codes = np.random.default_rng(0).integers(0, 32, (groups, 8, 8), dtype=np.uint16)
        np.save(tmp_path / f"{groups}.npy", codes)
        out = tmp_path / f"{groups}.mp4"
        made = ["--tokenizer", tokens_dir, *weights, "--out", out, "fps=25"]
        command = [sys.executable, "-c", measure, "decode", tmp_path / f"{groups}.npy", *made]
        ran = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
        peak_kib.append(int(ran.stdout.split()[-1]))
        with av.open(str(out)) as container:
            assert container.streams.video[0].frames == 1 + 4 * (groups - 1)
    # All frames at once would be 56 MB more.
    assert peak_kib[1] - peak_kib[0] < 20_000, peak_kib


def test_codes_out_of_range_are_reported_and_nothing_is_written(vidvq, tmp_path, tokens_dir, weights, location):
    codes, _ = location.read(read_tokenizer_card(tokens_dir))
    bad = np.stack([codes, codes])
    bad[1, 2, 1, 3] = 64
    np.save(tmp_path / "bad.npy", bad)
    made = ("--tokenizer", tokens_dir, *weights, "--out", tmp_path / "out", "fps=25")
    ran = vidvq("decode", tmp_path / "bad.npy", *made)
    assert "bad.npy[1]: code 64 at t=2 h=1 w=3 is out of range; the temporal codebook has codes 0 to 63" in ran.error
    ran = vidvq("decode", tmp_path / "bad.npy", *made, "--flat")
    assert "bad.npy[0]: id " in ran.error and "the temporal codebook has ids 32 to 95" in ran.error
    (tmp_path / "odd.bin").write_bytes(b"abc")
    np.save(tmp_path / "flat.npy", codes.ravel())
    np.savez(tmp_path / "archive.npz", codes)
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    for name, options, message in (
        ("odd.bin", ["--grid", "1,1,1"], "its 3 bytes are not a whole number of uint16 ids"),
        ("bad.npy", ["--grid", "1,1,1"], "drop --grid"),
        ("bad.npy", ["--grid", "00,1,1"], "must be LT,LH,LW"),
        ("flat.npy", ["--grid", "65536,65536,65536"], "needs a multiple of 281474976710656"),
        ("archive.npy", [], "archive.npy is not a readable file of codes"),
        ("bad.npy", ["fps=0.0005"], "fps=0.0005"),
    ):
        ran = vidvq("decode", tmp_path / name, *made, *options)
        assert (ran.code, message in ran.error) == (2, True)
    assert not (tmp_path / "out").exists()
    assert json.loads((tokens_dir / "tokenizer.json").read_bytes())["codebooks"][1]["offset"] == 32


def test_the_frames_of_a_clip_do_not_depend_on_the_batch(vidvq, tmp_path, tokens_dir, weights, snapshot, monkeypatch):
    """On CPUs, with several clips per call as on a GPU, and where a batch does not fit into memory."""
    together = []
    real = batch.iter_decode_batch

    def count(tokenizer, codes, *size):
        together.append(len(codes))
        return real(tokenizer, codes, *size)

    monkeypatch.setattr(batch, "iter_decode_batch", count)

    def frames(name: str, *settings: str) -> dict[str, str]:
        assert vidvq("decode", tokens_dir, *weights, "--out", tmp_path / name, "format=npy", *settings).code == 0
        return snapshot(tmp_path / name)

    alone = frames("alone")
    assert not together
    assert frames("four", "batch=4") == alone
    assert max(together) > 1

    def as_on_a_gpu(tokenizer, *_):
        tokenizer.decode_shape = StepShape(4, 2)

    monkeypatch.setattr(decode_job, "prepare", as_on_a_gpu)
    padded = frames("padded", "batch=1")
    assert frames("batched", "batch=4") == padded
    infos = [location.read_info() for location in index_tokens(tokens_dir)]
    largest = max(3 * info.num_frames * info.height * info.width for info in infos)
    together.clear()
    assert frames("steps", "batch=9") == padded
    assert max(together) == 4, "the first files are written before the last clips are decoded"
    monkeypatch.setattr(batch, "MAX_BYTES", 2 * largest)
    together.clear()
    assert frames("small", "batch=4") == padded
    assert max(together) == 2


@pytest.fixture
def writes(monkeypatch):
    """Threads of the calls that write a file; the first two calls wait for each other if they may."""
    threads, barrier, write = [], threading.Barrier(2), decode_job.write_frames

    def wait(path, kind, frames, *rest):
        threads.append(threading.current_thread())
        if len(threads) <= 2 and threads[0] is not threading.main_thread():
            barrier.wait(60)
        write(path, kind, frames, *rest)

    monkeypatch.setattr(decode_job, "write_frames", wait)
    monkeypatch.setattr(decode_job, "cores_per_worker", lambda runtime, on_gpu: 2)
    return threads


@pytest.mark.parametrize("kind", ["mp4", "gif", "png", "npy"])
def test_clips_of_a_call_are_written_together_and_alike(kind, vidvq, tmp_path, tokens_dir, weights, snapshot, writes):
    job = ("decode", tokens_dir, *weights, f"format={kind}", "--out")
    assert vidvq(*job, tmp_path / "alone").code == 0
    assert set(writes) == {threading.main_thread()}
    writes.clear()
    ran = vidvq(*job, tmp_path / "four", "batch=4")
    # Had one waited for the other to end, the barrier would have broken.
    assert ran.code == 0 and threading.main_thread() not in writes[:4], ran.err
    assert snapshot(tmp_path / "four") == snapshot(tmp_path / "alone")


def test_frames_that_wait_to_be_written_are_bounded(
    vidvq, tmp_path, tokens_dir, weights, snapshot, writes, monkeypatch
):
    job = ("decode", tokens_dir, *weights, "format=npy", "batch=4", "--out")
    assert vidvq(*job, tmp_path / "all").code == 0
    infos = [location.read_info() for location in index_tokens(tokens_dir)]
    sizes = [3 * info.num_frames * info.height * info.width for info in infos]
    held, most, lock, write = [0], [0], threading.Lock(), decode_job.write_frames

    def count(path, kind, frames, *rest):
        # A stream is no list; it must not be held.
        size = sum(frame.pixels.nbytes for frame in frames) if isinstance(frames, list) else 0
        with lock:
            held[0] += size
            most[0] = max(most[0], held[0])
        time.sleep(0.02)
        with lock:
            held[0] -= size
        write(path, kind, frames, *rest)

    monkeypatch.setattr(decode_job, "cores_per_worker", lambda runtime, on_gpu: 4)
    monkeypatch.setattr(decode_job, "write_frames", count)
    for limit in (max(sizes), min(sizes) - 1):
        most[0] = 0
        monkeypatch.setattr(decode_job, "MAX_BYTES", limit)
        assert vidvq(*job, tmp_path / f"{limit}").code == 0
        assert most[0] <= limit and bool(most[0]) == (limit >= min(sizes))
        assert snapshot(tmp_path / f"{limit}") == snapshot(tmp_path / "all")


def test_a_clip_that_cannot_be_written_stops_the_job_once_the_others_are(
    vidvq, tmp_path, tokens_dir, weights, snapshot, monkeypatch
):
    job = ("decode", tokens_dir, *weights, "format=npy", "batch=4", "--out")
    assert vidvq(*job, tmp_path / "whole").code == 0
    write, failed, written = decode_job.write_frames, [], []

    def fail(path, *rest):
        if not failed:
            failed.append(path)
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, *rest)
        written.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(decode_job, "write_frames", fail)
        ran = vidvq(*job, tmp_path / "out")
    assert ran.code == 1 and failed[0].name in ran.error
    assert written and all(path.exists() for path in written) and not failed[0].exists()
    assert not list((tmp_path / "out").glob("*.tmp.*"))
    assert vidvq(*job, tmp_path / "out").code == 0
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


@pytest.mark.parametrize(("gpus", "asked"), [(4.0, (0.5, 8)), (0.0, (0, 2)), (None, (0, 2))])
def test_workers_get_the_gpus_of_the_cluster_not_of_the_driver(
    vidvq, tmp_path, tokens_dir, weights, monkeypatch, gpus, asked
):
    seen = []

    class Pool:
        def map_stateful(self, make, items, *, gpus):
            seen.append((gpus, max(map(len, items))))
            return [(item, len(item)) for item in items]

    monkeypatch.setattr(decode_job, "count_gpus", lambda runtime: gpus)
    monkeypatch.setattr(
        decode_job, "open_runtime", lambda runtime: nullcontext(SimpleNamespace(pool=lambda units: Pool()))
    )
    # Whatever the machine of the driver has.
    monkeypatch.setattr(decode_job.torch.cuda, "is_available", lambda: gpus == 0)
    cluster = ("batch=2", "runtime.address=auto", "runtime.workers=2", "runtime.gpus_per_worker=0.5")
    assert vidvq("decode", tokens_dir, *weights, "--out", tmp_path / "out", *cluster).code == 0
    assert seen == [asked]


@pytest.mark.parametrize("kind", ["png", "npy"])
def test_a_killed_job_leaves_nothing_behind_once_it_is_resumed(kind, vidvq, tmp_path, tokens_dir, weights, snapshot):
    job = ("decode", tokens_dir, *weights, f"format={kind}", "--out")
    assert vidvq(*job, tmp_path / "whole").code == 0
    whole = snapshot(tmp_path / "whole")
    assert vidvq(*job, tmp_path / "out").code == 0
    name = next(path for path in (tmp_path / "out").iterdir() if not path.name.startswith("decode")).name
    output, attempt = tmp_path / "out" / name, tmp_path / "out" / f"{name}.tmp.host-1-00000000"
    output.rename(attempt)
    (tmp_path / "out/mine.tmp.txt").touch()
    ran = vidvq(*job, tmp_path / "out")
    assert ran.code == 0, ran.err
    (tmp_path / "out/mine.tmp.txt").unlink()
    assert snapshot(tmp_path / "out") == whole and not attempt.exists()


@pytest.mark.parametrize("kind", ["png", "npy"])
def test_a_driver_that_is_overtaken_by_another_ends_well(
    kind, vidvq, tmp_path, tokens_dir, weights, snapshot, monkeypatch
):
    job = ("decode", tokens_dir, *weights, f"format={kind}", "--out")
    assert vidvq(*job, tmp_path / "whole").code == 0
    write, overtaken, inode, written = decode_job.write_frames, [], [], []

    def slow(path, kind, frames, *rest):
        written.append(path)

        def slow_frames():
            for index, frame in enumerate(frames):
                yield frame
                if index == 1 and not overtaken:
                    overtaken.append(path)
                    assert vidvq(*job, tmp_path / "out").code == 0
                    inode.append(path.stat().st_ino)

        write(path, kind, slow_frames(), *rest)

    monkeypatch.setattr(decode_job, "write_frames", slow)
    ran = vidvq(*job, tmp_path / "out")
    assert ran.code == 0 and overtaken, ran.err
    # Only the first one twice: what the other driver has written is left out.
    assert written.count(overtaken[0]) == 2 and len(written) == len(set(written)) + 1
    # A folder would be away for a moment if it were replaced, and another driver would miss it.
    assert kind == "npy" or overtaken[0].stat().st_ino == inode[0]
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


def test_each_driver_starts_with_its_part(vidvq, tmp_path, tokens_dir, weights, monkeypatch):
    write, order = decode_job.write_frames, []
    monkeypatch.setattr(decode_job, "write_frames", lambda path, *rest: order.append(path.name) or write(path, *rest))
    assert vidvq("decode", tokens_dir, *weights, "--out", tmp_path / "0", "format=npy").code == 0
    alone = order.copy()
    order.clear()
    part = "runtime.part=1/2"
    assert vidvq("decode", tokens_dir, *weights, "--out", tmp_path / "1", "format=npy", part).code == 0
    half = len(alone) // 2
    assert order == [*alone[half:], *reversed(alone[:half])] and half


def test_a_file_whose_job_was_killed_is_taken_for_its_own(vidvq, tmp_path, tokens_dir, weights, location, monkeypatch):
    out = tmp_path / "one.npy"
    one = ("decode", tokens_dir, *weights, "--out", out, "--key", location.key)
    write = decode_job.write_frames

    def killed(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(decode_job, "write_frames", killed)
        assert vidvq(*one).code == 130
    stamp = out.stat().st_mtime_ns
    ran = vidvq(*one)
    assert ran.code == 0 and out.stat().st_mtime_ns == stamp, ran.err


@pytest.mark.parametrize("owner", ["shard", "train", "export"])
def test_the_output_directory_of_another_command_is_refused(
    owner, vidvq, tmp_path, tokens_dir, clips_dir, checkpoint_dir, weights, snapshot
):
    out = tmp_path / "out"
    if owner == "shard":
        shutil.copytree(clips_dir, out)
    elif owner == "train":
        shutil.copytree(checkpoint_dir, out / "checkpoints/step-00000001")
    else:
        assert vidvq("export", tokens_dir, "--to", "bin", "--out", out).code == 0
    before = snapshot(out)
    ran = vidvq("decode", tokens_dir, *weights, "--out", out)
    assert ran.code == 2 and f"is the output directory of vidvq {owner}; give another --out" in ran.error
    np.save(tmp_path / "made.npy", np.zeros((1, 1, 1, 1), np.int64))
    ran = vidvq("decode", tmp_path / "made.npy", "--tokenizer", tokens_dir, *weights, "--out", out, "fps=4")
    assert ran.code == 2 and f"is the output directory of vidvq {owner}; give another --out" in ran.error
    assert snapshot(out) == before
