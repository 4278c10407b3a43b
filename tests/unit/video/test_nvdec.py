"""Reading with NVDEC, with FFmpeg's own decoders and its pixel formats in the place of the GPU."""

from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.codec.hwaccel import HWAccel

from vidvq.corpus.frames import VideoFrames, decode_items
from vidvq.corpus.source import Source
from vidvq.errors import JobStopped, UsageError
from vidvq.formats.clip_shard import parse_clip_info
from vidvq.jobs.stage import ShardTask
from vidvq.runtime import RuntimeConfig
from vidvq.shard.config import ClipPolicy, ShardConfig
from vidvq.shard.cut import CutJob, cut_clips
from vidvq.shard.probe import probe_clips
from vidvq.shard.stage import ShardStage
from vidvq.shard.worker import ClipShardWorker
from vidvq.tokenize.rows import PlannedSample
from vidvq.video import VideoError, decode, nvdec, stream
from vidvq.video.decode import decoder_version, decoders_for, open_reader
from vidvq.video.geometry import fit_size
from vidvq.video.limits import Limits
from vidvq.video.policy import VideoPolicy
from vidvq.video.probe import VideoInfo, probe

DEMO = Path(__file__).parents[3] / "vidvq/demo/videos"
GROUPS = {"x264-params": "bframes=3:b-adapt=0:keyint=12:scenecut=0", "crf": "10"}
NUM_FRAMES = 48
# name of the file: codec, its options, pixel format
KINDS = {
    "b.mp4": ("libx264", GROUPS, "yuv420p"),
    "b.mkv": ("libx264", GROUPS, "yuv420p"),
    "full-range.mp4": ("libx264", GROUPS, "yuvj420p"),
    "vp9.webm": ("libvpx-vp9", {"g": "12", "crf": "10", "deadline": "realtime", "cpu-used": "8"}, "yuv420p"),
    "ten-bit.mp4": (
        "libx265",
        {"preset": "ultrafast", "x265-params": "bframes=3:keyint=12:log-level=0"},
        "yuv420p10le",
    ),
}


def transcode(path: Path) -> Path:
    """Encode the first frames of a demo video, in colour, as a file of ``KINDS``."""
    codec, options, pix_fmt = KINDS[path.name]
    with av.open(str(DEMO / "train/carphone.mp4")) as source, av.open(str(path), "w") as container:
        coded = container.add_stream(codec, rate=25, options=options)
        coded.width, coded.height, coded.pix_fmt = 176, 144, pix_fmt
        coded.codec_context.color_range = 2 if pix_fmt == "yuvj420p" else 1
        for index, frame in enumerate(islice(source.decode(video=0), NUM_FRAMES)):
            picture = frame.reformat(format=pix_fmt)
            picture.pts, picture.time_base, picture.pict_type = index, Fraction(1, 25), 0
            container.mux(coded.encode(picture))
        container.mux(coded.encode(None))
    return path


class FakeGpu:
    """Stands for the GPU: decodes as FFmpeg does, and gives the pixel formats of NVDEC.

    Attributes:
        opened: number of files that were opened for it.
        supports: whether it supports the videos; if not, FFmpeg decodes them itself.
        fails_at: index of the packet at which it fails, from the start of decoding.
        noise: what it adds to the first pixel of a picture.
    """

    def __init__(self) -> None:
        self.opened, self.supports, self.fails_at, self.noise = 0, True, -1, 0
        self._contexts: list[object] = []
        self._open, self._decode, self._fed = decode.open_video, stream._decode_packet, count()

    def open(self, path, max_pixels, accelerator=None):
        container = self._open(path, max_pixels)
        if accelerator is not None:
            assert accelerator is self
            self.opened += 1
            self._fed = count()
            self._contexts.append(stream.video_stream(container).codec_context)
        return container

    def decode(self, context, packet, number, order):
        frames = self._decode(context, packet, number, order)
        if not self.supports or not any(context is mine for mine in self._contexts):
            return frames
        if next(self._fed) == self.fails_at:
            order.fail(number, packet.is_discard)
            return []
        return [self._surface(frame) for frame in frames]

    def _surface(self, frame):
        surface = frame.reformat(format="p010le" if "10" in frame.format.name else "nv12")
        if self.noise:
            pixels = bytearray(surface.planes[0])
            pixels[0] = (pixels[0] + self.noise) % 256
            surface.planes[0].update(bytes(pixels))
        return surface


@pytest.fixture
def gpu(monkeypatch) -> FakeGpu:
    found = FakeGpu()
    monkeypatch.setattr(nvdec, "accelerator", lambda: found)
    monkeypatch.setattr(nvdec, "_compared", set())
    monkeypatch.setattr(decode, "open_video", found.open)
    monkeypatch.setattr(stream, "_decode_packet", found.decode)
    return found


@pytest.fixture(scope="module", params=KINDS)
def coded(request, tmp_path_factory) -> Path:
    return transcode(tmp_path_factory.mktemp("coded") / request.param)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return transcode(tmp_path_factory.mktemp("video") / "b.mp4")


def readers(path: Path, *decoders, short_side=None):
    info = probe(path, Limits())
    size = fit_size(info.height, info.width, short_side, 1)
    return [open_reader(path, info, size, decoder) for decoder in decoders]


@pytest.mark.parametrize("short_side", [None, 64])
def test_every_frame_equals_that_of_pyav_from_wherever_reading_begins(coded, gpu, short_side):
    info = probe(coded, Limits())
    assert decoders_for(info, "nvdec") == ("nvdec",)
    on_gpu, pyav = readers(coded, "nvdec", "pyav", short_side=short_side)
    for first in (0, 1, 40, 2, 45, 36, 5):
        indices = range(first, min(first + 4, NUM_FRAMES))
        assert np.array_equal(on_gpu.read(indices), pyav.read(indices))
        assert on_gpu.decoder == "nvdec"
    assert gpu.opened > 1


def test_the_surfaces_of_the_fake_gpu_differ_if_they_are_not_separated(video, gpu, monkeypatch):
    """Conversion of nv12 to RGB takes another path of FFmpeg; without :class:`Download` frames would not be equal."""
    monkeypatch.setattr(nvdec, "Download", lambda _: lambda frame: (frame, True))
    with pytest.raises(JobStopped, match="differ"):
        readers(video, "nvdec")[0].read([0, 1])


@pytest.mark.parametrize("fails_at", [0, 5, 30])
def test_after_an_error_the_whole_video_is_left_to_pyav(video, gpu, fails_at):
    gpu.fails_at = fails_at
    on_gpu, pyav = readers(video, "nvdec", "pyav")
    assert np.array_equal(on_gpu.read(range(NUM_FRAMES)), pyav.read(range(NUM_FRAMES)))
    assert on_gpu.decoder == "pyav" and gpu.opened == 1
    assert np.array_equal(on_gpu.read([3]), pyav.read([3]))
    assert on_gpu.decoder == "pyav" and gpu.opened == 1


def test_what_pyav_cannot_decode_either_is_an_error(tmp_path, gpu):
    data = bytearray((DEMO / "train/carphone.mp4").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    info = probe(path, Limits())
    everything = range(info.num_frames)
    on_gpu, pyav = readers(path, "nvdec", "pyav")
    for reader in (pyav, on_gpu):
        with pytest.raises(VideoError, match="decode_error"):
            reader.read(everything)
    assert on_gpu.decoder == "pyav"
    last = on_gpu._reader
    with pytest.raises(VideoError, match="decode_error"):
        on_gpu.read(everything)
    assert on_gpu._reader is last


def test_a_video_that_ffmpeg_decodes_itself_names_pyav_and_is_not_compared(video, gpu):
    gpu.supports = False
    on_gpu, pyav = readers(video, "nvdec", "pyav")
    assert np.array_equal(on_gpu.read([7, 8]), pyav.read([7, 8]))
    assert on_gpu.decoder == "pyav" and not nvdec.is_compared("h264")


@pytest.mark.parametrize("stream", [{"pixel_format": "yuv420p10le"}, {"width": 174}, {"height": 146}])
def test_surfaces_of_another_format_or_size_than_the_video_are_left_to_pyav(video, gpu, stream):
    info = replace(probe(video, Limits()), **stream)
    on_gpu, pyav = (open_reader(video, info, fit_size(64, 64, None, 1), name) for name in ("nvdec", "pyav"))
    assert np.array_equal(on_gpu.read([1]), pyav.read([1]))
    assert on_gpu.decoder == "pyav"


def test_a_difference_in_the_first_frames_stops_the_job_and_names_both_values(video, gpu):
    gpu.noise = 40
    with pytest.raises(JobStopped, match=r"h264 .* by up to \d+ of 255 levels; the tolerance is 0"):
        readers(video, "nvdec")[0].read([0, 1])


def test_frames_are_compared_once_per_codec(video, gpu):
    readers(video, "nvdec")[0].read([0, 1])
    gpu.noise = 40
    readers(video, "nvdec")[0].read([0, 1])
    assert nvdec.is_compared("h264") and not nvdec.is_compared("hevc")


@pytest.mark.parametrize(
    ("change", "suits"),
    [
        ({}, True),
        ({"codec": "hevc", "pixel_format": "yuv420p10le"}, True),
        ({"codec": "vp9"}, True),
        ({"open_groups": True}, True),
        ({"codec": "mpeg4"}, False),
        ({"codec": "libdav1d"}, False),
        ({"pixel_format": "yuv422p"}, False),
        ({"pixel_format": "yuv420p12le"}, False),
        ({"pixel_format": ""}, False),
        ({"height": 63}, False),
        ({"is_interlaced": True}, False),
        ({"packets": [0]}, False),
    ],
)
def test_nvdec_is_tried_only_where_its_frames_are_exact(video, change, suits):
    info: VideoInfo = replace(probe(video, Limits()), **change)
    assert decoders_for(info, "nvdec") == (("nvdec",) if suits else ("pyav",))


def test_without_a_gpu_the_job_stops_with_one_line(video, monkeypatch):
    monkeypatch.setattr(nvdec, "HWAccel", partial(HWAccel, device="99"))
    with pytest.raises(
        JobStopped, match="decoder=nvdec cannot be used; FFmpeg cannot open an NVIDIA GPU: .*; set decoder"
    ):
        nvdec._open()
    stage = ShardStage(config=ShardConfig(clip=ClipPolicy(decoder="nvdec")))
    with pytest.raises(UsageError, match="FFmpeg cannot open an NVIDIA GPU"):
        stage.check()


def test_an_old_pyav_a_build_without_nvdec_and_a_driver_without_it_are_named(monkeypatch):
    monkeypatch.setattr(av, "__version__", "17.1.0")
    with pytest.raises(JobStopped, match="PyAV 17.1.0 is installed, version 18 or newer is needed"):
        nvdec._open()
    monkeypatch.undo()
    monkeypatch.setattr(av, "Codec", lambda *_: SimpleNamespace(hardware_configs=None))
    with pytest.raises(JobStopped, match="this build of PyAV lacks it"):
        nvdec._open()
    monkeypatch.undo()
    # Without a device, FFmpeg decodes itself, as it does after it has failed to load the driver's library.
    monkeypatch.setattr(nvdec, "HWAccel", lambda *_, **__: None)
    with pytest.raises(JobStopped, match=r"the driver's libnvcuvid\.so\.1 is missing"):
        nvdec._open()


def clips_of(video: Path, decoder) -> CutJob:
    clip = ClipPolicy(num_frames=16, short_side=None, encoding="frames", decoder=decoder)
    config = ShardConfig(clip=clip)
    return CutJob(tuple(probe_clips(Source(str(video)), config)), config)


@pytest.mark.parametrize("fails_at", [-1, 20])
def test_clips_are_the_same_bytes_whatever_decodes_them(video, gpu, fails_at):
    gpu.fails_at = fails_at
    on_gpu, pyav = (cut_clips(clips_of(video, decoder)).cuts for decoder in ("nvdec", "pyav"))
    assert [cut.from_nvdec for cut in on_gpu] == [True, fails_at < 0, fails_at < 0]
    assert [cut.files["npy"] for cut in on_gpu] == [cut.files["npy"] for cut in pyav]
    # Another GPU may support other videos, and a clip is made again with the same bytes.
    names = {parse_clip_info(cut.files["json"], cut.key).decoder for cut in on_gpu}
    assert names == {decoder_version("nvdec")} == {f"pyav {av.__version__}"}


class InThisProcess:
    """Stands for a pool, and calls in this process."""

    def map(self, function, items, **options):
        self.options = options
        return ((item, function(item)) for item in items)


@pytest.mark.parametrize(
    ("decoder", "fails_at", "metrics"),
    [
        ("nvdec", -1, {"nvdec": {"frames": 48, "of": 48}}),
        ("nvdec", 20, {"nvdec": {"frames": 16, "of": 48}}),
        ("pyav", -1, {}),
    ],
)
def test_the_metrics_count_the_frames_of_nvdec(video, gpu, tmp_path, decoder, fails_at, metrics):
    gpu.fails_at = fails_at
    job = clips_of(video, decoder)
    worker = ClipShardWorker(job.config, InThisProcess())
    monitor = ShardStage(config=job.config).monitor()
    monitor.on_result(worker(ShardTask(tmp_path, "clips-000000.tar", "0" * 16, job.rows)))
    assert monitor.metrics() == metrics
    shares = {48: "NVDEC decoded 100.0% of 48 frames, PyAV the others", 16: "NVDEC decoded 33.3% of 48 frames"}
    assert [line.startswith(shares[metrics["nvdec"]["frames"]]) for line in monitor.lines()] == [True] * len(metrics)


def test_a_gpu_that_cannot_be_used_stops_the_job_and_fails_no_clip(video, monkeypatch):
    def refuse():
        raise JobStopped("no GPU")

    monkeypatch.setattr(nvdec, "accelerator", refuse)
    with pytest.raises(JobStopped, match="no GPU"):
        cut_clips(clips_of(video, "nvdec"))
    with pytest.raises(JobStopped, match="no GPU"):
        list(decode_items(frames_of(video, "nvdec")))


def frames_of(video: Path, decoder) -> VideoFrames:
    row = PlannedSample(key="k", source=Source(str(video)), first=4, num_frames=20)
    return VideoFrames((row,), VideoPolicy(short_side=32), Limits(), 8, decoder=decoder)


def test_frames_for_the_encoder_are_the_same(video, gpu):
    on_gpu, pyav = (
        [message.frames for message in decode_items(frames_of(video, decoder)) if message.frames is not None]
        for decoder in ("nvdec", "pyav")
    )
    assert gpu.opened
    assert np.array_equal(np.concatenate(on_gpu), np.concatenate(pyav))


@pytest.mark.parametrize(("decoder", "gpus"), [("nvdec", 0.25), ("pyav", 0)])
def test_processes_that_cut_on_a_gpu_occupy_a_share_of_it(video, gpu, decoder, gpus):
    job, pool = clips_of(video, decoder), InThisProcess()
    config = replace(job.config, runtime=RuntimeConfig(gpus_per_worker=0.25))
    assert len(list(ClipShardWorker(config, pool)._cut(list(job.rows)))) == 3
    assert pool.options["gpus"] == gpus


def test_the_plan_records_the_decoder_of_clips():
    plans = [
        ShardStage(config=ShardConfig(clip=ClipPolicy(decoder=decoder))).identity() for decoder in ("nvdec", "pyav")
    ]
    assert plans[0] != plans[1] and plans[0]["clip"]["decoder"] == "nvdec"
