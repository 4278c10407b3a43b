"""Several decoding processes of a long video: few frames are decoded twice, whatever the distance of its keyframes."""

import tarfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from vidvq.corpus import frames as corpus_frames
from vidvq.corpus.frames import DecodeMessage, VideoFrames
from vidvq.corpus.source import Source, source_at
from vidvq.corpus.tars import read_tar
from vidvq.tokenize import decoders
from vidvq.tokenize.decoders import Decoders
from vidvq.tokenize.rows import PlannedSample
from vidvq.video import VideoError, stream
from vidvq.video import decode as video_decode
from vidvq.video.limits import Limits
from vidvq.video.policy import VideoPolicy
from vidvq.video.probe import probe

NUM_FRAMES, GOP = 1200, 33
TURN = 100
X264 = "keyint={}:min-keyint={}:scenecut=0:bframes=3:b-adapt=0"
# name of the file, distance of its keyframes, whether groups are open
KINDS = [("closed.mp4", 50, False), ("open.mp4", 50, True), ("rare.mp4", 400, False), ("one.mp4", 9999, False)]
KINDS += [("stream.ts", 50, False)]


@dataclass
class Counted:
    """Frames that came out of the codec, by process."""

    frames: Counter[int]
    process: int = 0


@pytest.fixture
def counted(monkeypatch) -> Counted:
    """Several processes, in this one: each decoded frame counts for the process whose message is computed."""
    counted = Counted(Counter())
    real = stream._decode_packet

    def count(*arguments):
        found = real(*arguments)
        counted.frames[counted.process] += len(found)
        return found

    class Feeder:
        def __init__(self) -> None:
            self.memory = {"_last_probed": {}, "_last_opened": {}}

        def feed(self, function, item, deadline_s=None, ahead=2):
            messages = function(item)
            while True:
                counted.process = item.share[0]
                for name, kept in self.memory.items():
                    monkeypatch.setattr(corpus_frames, name, kept)
                if (message := next(messages, None)) is None:
                    return
                yield message

        def release(self) -> None:
            pass

    monkeypatch.setattr(stream, "_decode_packet", count)
    monkeypatch.setattr(decoders, "Feeder", Feeder)
    monkeypatch.setattr(corpus_frames, "TURN_FRAMES", TURN)
    monkeypatch.setattr(video_decode, "_SKIP_FRAMES", TURN // 2)
    return counted


@pytest.fixture(scope="module")
def videos(tmp_path_factory, make_video) -> Path:
    folder = tmp_path_factory.mktemp("long")
    for name, distance, is_open in KINDS:
        options = X264.format(distance, distance) + (":open-gop=1" if is_open else "")
        make_video(folder / name, NUM_FRAMES, codec_options={"x264-params": options, "preset": "superfast"})
    return folder


def rows_of(source: Source, first: int = 0, stop: int = NUM_FRAMES, gop: int | None = GOP) -> list[PlannedSample]:
    starts = range(first, stop, gop or stop)
    lengths = {start: min(gop or stop, stop - start) for start in starts}
    name = Path(source.uri).name
    return [
        PlannedSample(key=f"{name}-{start}", source=source, first=start, num_frames=lengths[start]) for start in starts
    ]


def decode(rows: list[PlannedSample], processes: int | Decoders) -> list[DecodeMessage]:
    job = VideoFrames(tuple(rows), VideoPolicy(short_side=16, multiple=8), Limits(), 16)
    found = processes if isinstance(processes, Decoders) else Decoders(1, processes, cores=8)
    return [message for message in found.messages(0, job, 60) if isinstance(message, DecodeMessage)]


def frames_of(messages: list[DecodeMessage]) -> list[tuple[str, bytes]]:
    return [(one.key, one.frames.tobytes()) for one in messages if one.frames is not None]


@pytest.mark.parametrize("gop", [GOP, None])
@pytest.mark.parametrize(("name", "distance", "is_open"), KINDS, ids=[kind[0] for kind in KINDS])
def test_few_frames_of_a_long_video_are_decoded_twice(videos, counted, name, distance, is_open, gop):
    assert probe(videos / name, Limits()).open_groups is is_open
    counted.frames.clear()
    rows = rows_of(source_at(str(videos / name)), gop=gop)
    alone = decode(rows, 1)
    assert counted.frames.total() == NUM_FRAMES + 1, "the first frame, for its colours, and each frame once"
    for processes in (3, 4):
        counted.frames.clear()
        assert frames_of(decode(rows, processes)) == frames_of(alone)
        # Before each turn: the reorder buffer, and what is between a keyframe and the next sample or message.
        turns = NUM_FRAMES // max(TURN, distance)
        assert counted.frames.total() <= NUM_FRAMES + processes + turns * (32 + GOP)
        if distance < NUM_FRAMES and name != "stream.ts":
            assert max(counted.frames.values()) < 0.6 * NUM_FRAMES


@pytest.mark.parametrize("processes", [3, 4])
def test_processes_share_videos_without_keyframes_to_seek_to(videos, counted, processes):
    names = ["one.mp4", "stream.ts"] * 4
    rows = [row for name in names[:processes] for row in rows_of(source_at(str(videos / name)))]
    rows = [replace(row, key=f"{index}") for index, row in enumerate(rows)]
    assert [one.key for one in decode(rows, processes) if one.done] == [row.key for row in rows]
    assert counted.frames.total() <= processes * (NUM_FRAMES + processes)
    assert max(counted.frames.values()) <= NUM_FRAMES + processes


@pytest.mark.parametrize("processes", [2, 4])
def test_videos_come_in_order_however_many_turns_each_has(videos, counted, processes):
    names = ["closed.mp4", "one.mp4", "rare.mp4", "closed.mp4"]
    rows = [row for name in names for row in rows_of(source_at(str(videos / name)), stop=TURN * 4)]
    rows = [replace(row, key=f"{index}") for index, row in enumerate(rows)]
    assert frames_of(decode(rows, processes)) == frames_of(decode(rows, 1))


def test_the_next_shard_of_a_video_is_decoded_from_where_the_one_before_ends(videos, counted):
    source, found = source_at(str(videos / "one.mp4")), Decoders(1, 3, cores=8)
    shards = [rows_of(source, first, first + 10 * GOP) for first in range(0, NUM_FRAMES - 10 * GOP, 10 * GOP)]
    assert len(shards) == 3
    for rows in shards:
        assert [one.key for one in decode(rows, found) if one.done] == [row.key for row in rows]
    assert counted.frames.total() <= NUM_FRAMES + 3


def test_a_video_is_probed_again_for_another_rate(counted, make_video, tmp_path):
    source = source_at(str(make_video(tmp_path / "v.avi", 25)))
    row = PlannedSample(key="a", source=source, num_frames=2)
    for fps, expected in ((None, "1/25"), (10, "1/50"), (None, "1/25")):
        job = VideoFrames((row,), VideoPolicy(short_side=16, multiple=8, fps=fps), Limits(), 16)
        found = [message.info for message in corpus_frames.decode_items(job) if message.info]
        assert [info.time_base for info in found] == [expected]


def test_no_deleted_copy_stays_open(videos, counted, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(videos / "one.mp4", "a.mp4")
    (source,) = read_tar(tmp_path / "a.tar", (), {".mp4"}, Counter())
    assert source.version and [one.done for one in decode(rows_of(source, 0, GOP), 1)][-1]
    assert not corpus_frames._last_opened


def test_a_process_that_cannot_open_a_video_fails_what_is_left_of_it(videos, counted, monkeypatch):
    real = corpus_frames.probe

    def probe(path, *rest):
        if counted.process == 1 and path.name == "rare.mp4":
            raise VideoError("decode_error", "broken")
        return real(path, *rest)

    monkeypatch.setattr(corpus_frames, "probe", probe)
    rows = [row for name in ("rare.mp4", "closed.mp4") for row in rows_of(source_at(str(videos / name)))]
    found = decode(rows, 3)
    ends = [(one.key, bool(one.error)) for one in found if one.error or one.done]
    assert [key for key, _ in ends] == [row.key for row in rows], "each ends once, in order"
    failed = [key for key, is_failed in ends if is_failed]
    # The first turn ends with the sample before frame 400 + 32; the second process fails the rest.
    assert failed == [row.key for row in rows if row.source.uri.endswith("rare.mp4") and row.first >= 432]
    whole = [row for row in rows if row.key not in failed]
    assert sum(len(one.frames) for one in found if one.frames is not None) == sum(row.num_frames for row in whole)
