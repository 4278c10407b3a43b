"""`vidvq shard` as a stage of the corpus job."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidvq.config import to_dict
from vidvq.corpus.source import Source
from vidvq.errors import JobStopped, UsageError
from vidvq.formats.clip_shard import PREFIX, media_of, parse_clip_info
from vidvq.formats.commit import Commit
from vidvq.formats.rows import GONE, REMOVED
from vidvq.jobs.nvdec import NvdecMonitor
from vidvq.jobs.report import jpeg_grid, read_sample
from vidvq.jobs.stage import Activity, ShardTask, Thumbnail, VideoStage
from vidvq.runtime import Pool, count_gpus
from vidvq.shard.config import ShardConfig
from vidvq.shard.probe import probe_clips, reject
from vidvq.shard.rows import PlannedClip
from vidvq.shard.shots import check_installed
from vidvq.shard.worker import ClipShardWorker
from vidvq.video import VideoError
from vidvq.video.decode import decode_clip

_IDENTITY = ("clip", "cut", "filters", "lists", "clips_per_shard", "limits")


@dataclass(frozen=True, kw_only=True)
class ShardStage(VideoStage[PlannedClip]):
    """Cuts videos into clip shards."""

    config: ShardConfig
    name = "shard"
    prefix = PREFIX
    work = "cut"
    activities = {  # noqa: RUF012 (a constant)
        "cut": Activity("cutting clips"),
        "wait": Activity("waiting for a CPU core", "more CPUs"),
    }
    sheet_title = "Clips drawn from all shards: first, middle and last frame"
    config_type = ShardConfig
    row = PlannedClip
    # The worker of a shard only waits for the calls that cut.
    cpus = 0

    @property
    def per_shard(self) -> int:
        """Number of planned clips in one shard."""
        return self.config.clips_per_shard

    @property
    def probes_per_worker(self) -> int:
        """1 if videos are decoded to find their shots; else the default."""
        return 1 if self.config.cut.kind == "shots" else super().probes_per_worker

    def check(self) -> None:
        """Refuse settings that cannot run, before any work.

        Raises:
            UsageError: PySceneDetect is needed and not installed, or a GPU is needed and not found.
        """
        if self.config.cut.kind == "shots":
            check_installed()
        if self.config.clip.decoder == "nvdec":
            self._check_gpu()

    def _check_gpu(self) -> None:
        gpus = count_gpus(self.config.runtime)
        if gpus == 0:
            raise UsageError(f"{self.config.runtime.address} has no GPU; set clip.decoder=pyav")
        if gpus is None:
            from vidvq.video.nvdec import check_available

            try:
                check_available()
            except JobStopped as error:
                raise UsageError(str(error)) from error

    def identity(self) -> dict[str, Any]:
        """The settings that decide which clips there are and how they are encoded."""
        settings = to_dict(self.config)
        normal = {"lists": self.config.lists.identity(), "limits": self.config.limits.identity()}
        return {name: settings[name] for name in _IDENTITY} | normal

    def probe(self, source: Source) -> list[PlannedClip]:
        """The clips of one video."""
        return probe_clips(source, self.config)

    def reject(self, source: Source, reason: str, detail: str) -> PlannedClip:
        """The row of a video that fails as a whole."""
        return reject(source, "failed", reason, detail)

    def select(self, rows: Iterable[PlannedClip], existing: Iterable[PlannedClip]) -> Iterator[PlannedClip]:
        """Replace the rows of a file with the same bytes as an earlier one by a single row ``filtered(duplicate)``."""
        absent = {REMOVED, GONE, "duplicate"}
        known = {row.sha256: row.source.uri for row in existing if row.sha256 and row.reason not in absent}
        dropped = ""
        for row in rows:
            source = row.source
            first = known.setdefault(row.sha256, source.uri) if row.sha256 else source.uri
            if first == source.uri or not self.config.filters.duplicates:
                yield row
            elif dropped != source.identity:
                dropped = source.identity
                yield reject(source, "filtered", "duplicate", f"has the same bytes as {first}", row.sha256)

    def units(self, tasks: Sequence[ShardTask[PlannedClip]]) -> int:
        """Number of videos, since those of one shard are cut at the same time."""
        return len({row.source.uri for task in tasks for row in task.rows if not row.outcome})

    def monitor(self) -> NvdecMonitor:
        """Build the count of frames by decoder."""
        return NvdecMonitor()

    def worker(self, pool: Pool) -> ClipShardWorker:
        """Build the worker, in its process."""
        return ClipShardWorker(self.config, pool)

    def thumbnails(self, out: Path, drawn: Sequence[tuple[Commit, PlannedClip]]) -> Iterator[Thumbnail]:
        """Yield the first, middle and last frame of clips."""
        for commit, row in drawn:
            key = row.key
            try:
                files = read_sample(out, commit, key)
                info = parse_clip_info(files["json"], key)
                frames = decode_clip(files[media_of(files, key)], key)
            except (OSError, KeyError, UsageError, VideoError):
                # Another driver deletes older shards, or a shard is damaged, which `vidvq verify` reports.
                continue
            carried = "".join(f"; {name}: {value}" for name, value in sorted(info.carried.items()))
            caption = f"{info.num_frames} frames, {info.width}×{info.height}, {info.fps:.3g} fps{carried}"
            yield Thumbnail(key, caption, jpeg_grid([[frames[0], frames[len(frames) // 2], frames[-1]]]))
