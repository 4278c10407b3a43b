"""Several decoding processes per stream: the same shards, and as many processes as the encoder needs."""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.decoders import count_or_die, decode_or_crash, decode_or_fail, numbered
from vidvq.corpus import frames as corpus_frames
from vidvq.corpus.frames import ClipFrames, DecodeMessage, VideoFrames, decode_items
from vidvq.corpus.source import Source, source_at
from vidvq.errors import UsageError
from vidvq.formats.clip_shard import clip_files
from vidvq.formats.commit import Commit, ShardDraft, commit_shard
from vidvq.formats.execution import CPU
from vidvq.formats.plan import read_plan
from vidvq.formats.token_index import index_tokens
from vidvq.jobs.nvdec import NvdecMonitor
from vidvq.jobs.rows import ClipRow
from vidvq.jobs.stage import ShardResult, ShardTask
from vidvq.runtime import RuntimeConfig, WorkerDied, ray_feeder
from vidvq.tokenize import decoders, shard_input, worker
from vidvq.tokenize.config import TokenizeConfig
from vidvq.tokenize.decoders import Decoders, PlannedClips, decoders_per_stream
from vidvq.tokenize.probe import probe_samples
from vidvq.tokenize.quality_gates import QualityGates
from vidvq.tokenize.rows import PlannedSample
from vidvq.tokenize.stage import _check_decoder, open_stage
from vidvq.video import VideoError
from vidvq.video.encode import encode_npy
from vidvq.video.limits import Limits
from vidvq.video.policy import VideoPolicy

INLINE = "runtime.workers=0"
RAW = ("video.short_side=32", "video.multiple=8", "items_per_shard=7", "max_failed=1")


@pytest.mark.parametrize(
    ("encode_s", "decode_s", "streams", "cores", "expected"),
    [
        (10.0, 4.0, 1, 16, 1),  # The encoder is slower.
        (1.0, 4.0, 1, 16, 5),  # Four keep up on average, a quarter more over varying videos.
        (1.0, 12.0, 8, 16, 2),  # 15 processes, the same number for each stream.
        (1.0, 12.0, 8, 11, 1),  # No more than cores.
        (1.0, 12.0, 8, 12, 2),  # Rather 16 on 12 cores than 8.
        (1.0, 100.0, 4, 64, 16),
        (0.0, 5.0, 2, 8, 4),  # An encoder too fast to measure.
    ],
)
def test_the_number_of_processes_follows_from_the_rates(encode_s, decode_s, streams, cores, expected):
    assert decoders_per_stream(encode_s, decode_s, streams, cores) == expected


class FakeFeeder:
    """Decodes in this process."""

    def feed(self, function, item, deadline_s=None, ahead=2):
        return (message for message in function(item))

    def release(self) -> None:
        pass


@pytest.fixture
def short_turns(monkeypatch):
    """Turns of two clips or 20 frames, in this process."""
    monkeypatch.setattr(decoders, "Feeder", FakeFeeder)
    monkeypatch.setattr(corpus_frames, "TURN_CLIPS", 2)
    monkeypatch.setattr(corpus_frames, "TURN_FRAMES", 20)


@pytest.fixture(scope="module")
def videos(tmp_path_factory, make_video):
    """Videos shorter and much longer than a turn, one that ends in the middle of a frame, and a file that is none."""
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "a.mp4", 150, codec_options={"g": "12"})
    make_video(folder / "b.mp4", 23, size=(48, 48))
    make_video(folder / "c.mp4", 31)
    torn = make_video(folder / "torn.mkv", 90).read_bytes()
    (folder / "torn.mkv").write_bytes(torn[: len(torn) * 2 // 3])
    (folder / "bad.mp4").write_text("no video")
    return folder


@pytest.mark.parametrize("settings", [("gop_frames=9",), ("gop_frames=null",), ("gop_frames=9", "batch=2")], ids=str)
def test_turns_change_no_byte_of_raw_video(vidvq, videos, checkpoint_dir, tmp_path, snapshot, short_turns, settings):
    for count in (1, 3):
        where = ("--checkpoint", checkpoint_dir, "--out", tmp_path / str(count))
        assert vidvq("tokenize", videos, *where, *RAW, *settings, INLINE, f"runtime.decoders={count}").code == 0
    assert snapshot(tmp_path / "1") == snapshot(tmp_path / "3")
    streams = 2 if "batch=2" in settings else 1
    metrics = json.loads((tmp_path / "3/metrics.json").read_bytes())
    assert metrics["decoders"] == -(-3 // streams) * streams


def test_turns_change_no_byte_of_clips(vidvq, clips_dir, checkpoint_dir, tmp_path, snapshot, short_turns):
    for count in (1, 3):
        where = ("--checkpoint", checkpoint_dir, "--out", tmp_path / str(count))
        assert vidvq("tokenize", clips_dir, *where, INLINE, f"runtime.decoders={count}").code == 0
    assert snapshot(tmp_path / "1") == snapshot(tmp_path / "3")


def test_a_clip_is_one_message_also_if_it_is_damaged(clips_dir, monkeypatch):
    shard = sorted(clips_dir.glob("*.tar"))[0]
    keys = [key for key, _, _ in corpus_frames.read_clips(shard)]
    real = corpus_frames.decode_clip

    def decode(data: bytes, key: str, *shape):
        if key == keys[1]:
            raise corpus_frames.VideoError("decode_error", "broken")
        return real(data, key, *shape)

    monkeypatch.setattr(corpus_frames, "decode_clip", decode)
    messages = list(decode_items(ClipFrames(shard, frozenset(keys), share=(0, 1))))
    assert [message.key for message in messages] == keys
    assert [bool(message.error) for message in messages] == [key == keys[1] for key in keys]
    assert all(message.info and message.done for message in messages if message.frames is not None)


def test_an_npy_clip_of_other_frames_than_its_json_says_is_an_error(tmp_path, clips_dir):
    ((_, _, info), *_) = corpus_frames.read_clips(sorted(clips_dir.glob("*.tar"))[0])
    frames = np.zeros((info.num_frames, info.height, info.width, 3), np.uint8)

    def fill(draft: ShardDraft) -> None:
        draft.add("a", clip_files(encode_npy(frames[1:]), "npy", info))
        draft.add("b", clip_files(encode_npy(frames), "npy", info))

    commit_shard(tmp_path, "clips-000000.tar", "", fill)
    short, whole = decode_items(ClipFrames(tmp_path / "clips-000000.tar", frozenset("ab")))
    assert short.error is not None and "its JSON says otherwise" in short.error.detail and short.frames is None
    assert whole.error is None and whole.done


def test_each_process_decodes_its_own_turns_only(clips_dir, monkeypatch):
    monkeypatch.setattr(corpus_frames, "TURN_CLIPS", 2)
    shard = sorted(clips_dir.glob("*.tar"))[0]
    keys = [key for key, _, _ in corpus_frames.read_clips(shard)]
    assert len(keys) >= 3
    decoded = []
    for index in range(2):
        messages = decode_items(ClipFrames(shard, frozenset(keys), share=(index, 2)))
        decoded.append([message.key for message in messages if message.done])
    assert decoded == [[*keys[0:2], *keys[4:6]], keys[2:4]]


def test_a_damaged_clip_costs_neither_the_one_before_it_nor_the_one_after(
    clips_dir, checkpoint_dir, tokens_dir, tmp_path, vidvq, monkeypatch
):
    monkeypatch.setattr("vidvq.tokenize.decoders.decode_items", decode_or_fail)
    out = tmp_path / "out"
    command = ("tokenize", clips_dir, "--checkpoint", checkpoint_dir, "--out", out, INLINE, "max_failed=1")
    assert vidvq(*command).code == 0
    found, whole = ({one.key for one in index_tokens(folder)} for folder in (out, tokens_dir))
    assert found < whole and [key[-6:] for key in whole - found] == ["-00001"]


def test_real_processes_take_turns_and_one_that_dies_costs_one_item(
    vidvq, videos, checkpoint_dir, tmp_path, snapshot, monkeypatch
):
    settings = ("gop_frames=9", *RAW, INLINE)
    where = ("--checkpoint", checkpoint_dir, "--out")
    assert vidvq("tokenize", videos, *where, tmp_path / "one", *settings).code == 0
    assert vidvq("tokenize", videos, *where, tmp_path / "two", *settings, "runtime.decoders=2").code == 0
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")
    monkeypatch.setattr("vidvq.tokenize.decoders.decode_items", decode_or_crash)
    for count in (1, 2):
        out = tmp_path / f"crash{count}"
        assert vidvq("tokenize", videos, *where, out, *settings, f"runtime.decoders={count}").code == 0
        assert json.loads((out / "summary.json").read_bytes())["failed"]["decoder_died"]["count"] >= 3
    assert snapshot(tmp_path / "crash1") == snapshot(tmp_path / "crash2")


def test_processes_that_took_turns_are_reused(clips_dir):
    shard = sorted(clips_dir.glob("*.tar"))[0]
    job = ClipFrames(shard, frozenset(key for key, _, _ in corpus_frames.read_clips(shard)))
    own, processes = Decoders(1, 2, cores=2), []
    for _ in range(2):
        messages = own.messages(0, job, 60)
        assert sum(not isinstance(each, WorkerDied) and each.done for each in messages) == len(job.keys)
        processes.append([feeder._running and feeder._running.process.pid for feeder in own._feeders[0]])
    assert None not in processes[0] and processes[0] == processes[1]


def test_processes_are_added_and_removed_after_a_shard(clips_dir, monkeypatch):
    monkeypatch.setattr(decoders, "Feeder", FakeFeeder)
    shard = sorted(clips_dir.glob("*.tar"))[0]
    job = ClipFrames(shard, frozenset(key for key, _, _ in corpus_frames.read_clips(shard)))

    def decode(found: Decoders) -> list[np.ndarray]:
        return [message.frames for message in found.messages(1, job, 60) if message.frames is not None]

    found = Decoders(2, "auto", cores=8)
    assert found.count == 2
    before = decode(found)
    found.adapt(encode_s=1e-6)
    assert found.count == 8
    after = decode(found)
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    found.adapt(encode_s=1e6)
    assert found.count == 2
    found.adapt(encode_s=1e-6)
    assert found.count == 2, "nothing was decoded since"
    fixed = Decoders(2, 3, cores=8)
    decode(fixed)
    fixed.adapt(encode_s=1e-6)
    assert fixed.count == 4


def test_a_setting_out_of_range_is_refused(vidvq, clips_dir, checkpoint_dir, tmp_path):
    for count in ("0", "1" + 20 * "0"):
        out = ("--out", tmp_path / "o", f"runtime.decoders={count}")
        done = vidvq("tokenize", clips_dir, "--checkpoint", checkpoint_dir, *out)
        assert done.code == 2 and f"decoders={count} must be auto, or from 1 to 1024" in done.error


def test_a_damaged_part_fails_the_whole_item_once(make_video, tmp_path, monkeypatch):
    """Parts of one item are decoded by different processes; the item is reported once."""
    monkeypatch.setattr(decoders, "Feeder", FakeFeeder)
    monkeypatch.setattr(corpus_frames, "TURN_FRAMES", 20)
    video = make_video(tmp_path / "a.mp4", 90)
    rows = tuple(
        PlannedSample(key=f"k{index}", source=Source(str(video)), first=0, num_frames=length)
        for index, length in enumerate((90, 30))
    )
    real = corpus_frames.open_reader

    def broken(*arguments):
        reader = real(*arguments)
        read = reader.read

        def fail(indices):
            if 50 in indices:
                raise corpus_frames.VideoError("decode_error", "broken")
            return read(indices)

        reader.read = fail
        return reader

    monkeypatch.setattr(corpus_frames, "open_reader", broken)
    found = Decoders(1, 3, cores=8)
    job = VideoFrames(rows, VideoPolicy(), Limits(), 8)
    messages = list(found.messages(0, job, 60))
    assert [message.key for message in messages if message.error] == ["k0"]
    assert [message.key for message in messages if message.done] == ["k1"]
    error = next(index for index, message in enumerate(messages) if message.error)
    assert {message.key for message in messages[error + 1 :]} == {"k1"}
    assert sum(len(message.frames) for message in messages if message.frames is not None and message.key == "k1") == 30


class FakeRemoteFeeder(FakeFeeder):
    """Stands for a feeder on another node."""

    fed, started = 0, True

    def feed(self, function, item, deadline_s=None, ahead=2):
        type(self).fed += 1
        return super().feed(function, item, deadline_s, ahead)


@pytest.mark.parametrize(("ready", "fed"), [(3, 3), (1, 1), (0, 0)])
def test_processes_on_a_cluster_decode_the_same_and_a_child_does_where_none_has_started(
    clips_dir, short_turns, monkeypatch, ready, fed
):
    monkeypatch.setattr(FakeRemoteFeeder, "fed", 0)
    monkeypatch.setattr(ray_feeder, "RayFeeder", FakeRemoteFeeder)
    monkeypatch.setattr(ray_feeder, "find_ready", lambda feeders, _: feeders[:ready])
    shard = sorted(clips_dir.glob("*.tar"))[0]
    keys = [key for key, _, _ in corpus_frames.read_clips(shard)]
    row = ClipRow(key=keys[0], clip_shard=shard.name, clip_shard_sha256=sha256(shard.read_bytes()).hexdigest())

    def decode(found: Decoders, job) -> list[tuple]:
        messages = found.messages(0, job, 60)
        return [(one.key, one.info, None if one.frames is None else one.frames.tobytes()) for one in messages]

    local = decode(Decoders(1, 1, cores=8), ClipFrames(shard, frozenset(keys)))
    on_cluster = Decoders(1, 3, cores=8, on_cluster=True)
    assert decode(on_cluster, PlannedClips(clips_dir, row, frozenset(keys))) == local
    assert FakeRemoteFeeder.fed == fed
    other = replace(row, clip_shard_sha256="0" * 64)
    with pytest.raises(UsageError, match="not the one that was planned"):
        decode(on_cluster, PlannedClips(clips_dir, other, frozenset(keys)))


def test_a_worker_does_not_read_the_clips_that_other_nodes_decode(
    clips_dir, checkpoint_dir, tokens_dir, tmp_path, short_turns, monkeypatch
):
    monkeypatch.setattr(ray_feeder, "RayFeeder", FakeRemoteFeeder)
    monkeypatch.setattr(ray_feeder, "find_ready", lambda feeders, _: feeders)
    monkeypatch.setattr(worker, "cores_per_worker", lambda *_, **__: 2)
    monkeypatch.setattr(shard_input, "local_clips", lambda *_: pytest.fail("the worker opens the clip shard"))
    config = TokenizeConfig(runtime=RuntimeConfig(address="auto", decode_on="cluster"))
    plan = read_plan(tokens_dir)
    shard, rows = next(iter(plan.shards(ClipRow)))
    make = worker.TokenShardWorker(checkpoint_dir, config, clips_dir, CPU)
    make(ShardTask(tmp_path, shard, plan.id_of(0), rows))
    assert (tmp_path / shard).read_bytes() == (tokens_dir / shard).read_bytes()


def test_after_a_crash_the_rest_of_a_shard_is_left_to_pyav(checkpoint_dir, demo_videos, tmp_path, monkeypatch):
    config = TokenizeConfig(decoder="nvdec", video=VideoPolicy(short_side=32, multiple=8), gop_frames=9)
    make = worker.TokenShardWorker(checkpoint_dir, config, None, CPU)
    used = []

    def messages(slot, job, deadline_s):
        used.append(job.decoder)
        if len(used) == 1:
            yield WorkerDied("crashed")
        else:
            yield from decode_items(job)

    monkeypatch.setattr(make._decoders, "messages", messages)
    rows = probe_samples(Source(str(demo_videos / "train/carphone.mp4")), config)[:3]
    result = make(ShardTask(tmp_path, "tokens-000000.tar", "0" * 16, rows))
    assert used == ["nvdec", "pyav"]
    assert result.commit.stats["frames"] == 27 and not result.commit.failed
    monitor = QualityGates(make._card, config.quality)
    monitor.on_result(result)
    assert monitor.metrics()["nvdec"] == {"frames": 0, "of": 27}
    assert monitor.lines()[-1] == "NVDEC decoded 0.0% of 27 frames, PyAV the others"


def test_frames_that_are_decoded_again_are_counted_once():
    monitor, commit = NvdecMonitor(), Commit("a.tar", "plan", "", 0, 1, (), (), stats={"frames": 9})
    monitor.on_result(ShardResult(commit, "worker", 1.0, {}, {"frames": 3}, details=8))
    assert monitor.metrics()["nvdec"] == {"frames": 6, "of": 6}


def test_frames_from_nvdec_are_counted_per_shard(monkeypatch):
    class OnGpu(FakeFeeder):
        def feed(self, function, item, deadline_s=None, ahead=2):
            for length, from_nvdec in ((3, True), (2, False)):
                yield DecodeMessage("k", frames=np.zeros((length, 8, 8, 3), np.uint8), from_nvdec=from_nvdec)

    monkeypatch.setattr(decoders, "Feeder", OnGpu)
    found = Decoders(1, 1, cores=1)
    assert len(list(found.messages(0, VideoFrames((), VideoPolicy(), Limits(), 8), 60))) == 2
    assert found.from_nvdec == 3
    found.adapt(1.0)
    assert found.from_nvdec == 0


@pytest.mark.parametrize(
    ("settings", "clips", "device", "message"),
    [
        ({}, None, "cpu", "decoder=nvdec needs device=cuda and runtime.decode_on=node, not cpu and node"),
        ({"runtime": RuntimeConfig(address="auto", decode_on="cluster")}, None, "cuda", "not cuda and cluster"),
        ({}, Path("clips"), "cuda", "decoder=nvdec is for raw video"),
    ],
)
def test_nvdec_is_refused_where_no_process_would_use_it(settings, clips, device, message):
    with pytest.raises(UsageError, match=message):
        _check_decoder(TokenizeConfig(decoder="nvdec", **settings), clips, device)
    _check_decoder(TokenizeConfig(**settings), clips, device)


def test_the_plan_records_nvdec_and_its_default_changes_no_older_plan(checkpoint_dir, demo_videos):
    videos = [str(demo_videos / "train")]
    stage = open_stage(videos, checkpoint_dir, TokenizeConfig(device="cpu"))
    assert "decoder" not in stage.identity()
    on_gpu = replace(stage, config=replace(stage.config, decoder="nvdec"))
    assert on_gpu.identity() == stage.identity() | {"decoder": "nvdec"}
    assert on_gpu.settings_of(on_gpu.identity())["decoder"] == "nvdec"


def test_an_actor_returns_blocks_of_bounded_size(tmp_path, monkeypatch):
    """The part of its work that needs no Ray."""
    host = ray_feeder._Host()
    lengths = [len(host.start(numbered, (20, tmp_path / "log"), 60, 2))]
    monkeypatch.setattr(ray_feeder, "_BLOCK_BYTES", 3 << 18)
    while block := host.next():
        lengths.append(len(block))
    assert lengths == [16, 3, 1]
    first, death = host.start(count_or_die, "kill", 60, 2)
    assert first == 1 and isinstance(death, WorkerDied) and death.cause == "died"
    assert host.next() == []
    assert host.start(count_or_die, "", 60, 2) == [1, 2]


def test_decoding_on_a_cluster_needs_one(vidvq, clips_dir, checkpoint_dir, tmp_path):
    command = ("tokenize", clips_dir, "--checkpoint", checkpoint_dir, "--out", tmp_path / "o")
    done = vidvq(*command, "runtime.decode_on=cluster")
    assert done.code == 2 and "decode_on=cluster needs a Ray cluster" in done.error


def test_a_process_probes_a_video_once_for_all_shards_it_is_in(make_video, tmp_path, monkeypatch):
    probed, real = [], corpus_frames.probe
    monkeypatch.setattr(corpus_frames, "probe", lambda path, *given: probed.append(path.name) or real(path, *given))
    sources = [Source(str(make_video(tmp_path / name, 24))) for name in ("a.mp4", "b.mp4")]
    sources = [replace(one, size=(at := Path(one.uri).stat()).st_size, version=str(at.st_mtime_ns)) for one in sources]

    def decode(source: Source, first: int) -> list[DecodeMessage]:
        row = PlannedSample(key=f"k{first}", source=source, first=first, num_frames=12)
        return list(decode_items(VideoFrames((row,), VideoPolicy(), Limits(), 8)))

    for source, first in ((sources[0], 0), (sources[0], 12), (sources[1], 0), (sources[0], 0)):
        assert decode(source, first)[-1].done
    assert probed == ["a.mp4", "b.mp4", "a.mp4"]
    make_video(tmp_path / "a.mp4", 12)
    (failed,) = decode(sources[0], 12)
    assert failed.error is not None and failed.error.reason == "changed_since_plan"
    for _ in range(2):
        # Nothing says that the file is still the same.
        assert decode(Source(str(tmp_path / "a.mp4")), 0)[-1].done
    assert probed[3:] == ["a.mp4", "a.mp4"]


def test_an_item_ends_with_its_error_and_the_next_one_has_a_new_reader(make_video, tmp_path, monkeypatch):
    opened, real = [], corpus_frames.open_reader

    class Torn:
        decoder = "pyav"

        def __init__(self, *given) -> None:
            opened.append(given)
            self._reader = real(*given)

        def read(self, indices):
            if 9 in indices and len(opened) == 1:
                raise VideoError("decode_error", "torn")
            return self._reader.read(indices)

    monkeypatch.setattr(corpus_frames, "open_reader", Torn)
    source = source_at(str(make_video(tmp_path / "a.mp4", 48)))
    rows = tuple(PlannedSample(key=key, source=source, first=at, num_frames=24) for key, at in (("a", 0), ("b", 24)))

    def decode() -> list[tuple[str, bool, bool]]:
        messages = decode_items(VideoFrames(rows, VideoPolicy(), Limits(), 8))
        return [(message.key, message.error is not None, message.done) for message in messages]

    whole = [("b", False, False), ("b", False, False), ("b", False, True)]
    assert decode() == [("a", False, False), ("a", True, False), *whole]
    assert decode()[-4:] == [("a", False, True), *whole] and len(opened) == 2


def test_ranges_of_a_video_that_changed_between_them_are_not_of_one_file(make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4", 24)
    planned = [sha256(path.read_bytes()).hexdigest(), sha256(b"what the server gave before").hexdigest()]
    rows = tuple(
        PlannedSample(key=f"k{index}", source=Source(str(path), start_s=index), sha256=digest, num_frames=4)
        for index, digest in enumerate(planned)
    )
    done, failed = decode_items(VideoFrames(rows, VideoPolicy(), Limits(), 8))
    assert done.done and failed.error is not None and failed.error.reason == "changed_since_plan"
