"""A corpus of damaged and hostile files: the job ends, accounts for every item and opens no connection."""

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.helpers.mutants import make_bases, make_mutants
from vidvq.formats.clip_shard import read_clips
from vidvq.video.decode import decode_clip

SETTINGS = "clip.num_frames=8 clip.min_frames=4 clip.short_side=32 clip.multiple=8 clips_per_shard=64".split()
_MAX_RSS_BYTES = 1_500_000_000


class Listener:
    """Counts connections."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.callers = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.callers += 1
            connection.close()


def watch_memory(job: subprocess.Popen, worst: list[int]) -> None:
    """Keep the largest resident size of any process of a job in ``worst[0]``."""
    while job.poll() is None:
        with suppress(psutil.Error):
            family = [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]
            worst[0] = max([worst[0], *(process.memory_info().rss for process in family)])
        with suppress(subprocess.TimeoutExpired):
            job.wait(0.2)


def run_fuzz(tmp_path: Path, videos: list[Path], count: int, workers: int, timeout_s: float) -> Path:
    listener = Listener()
    bases, corpus, out = tmp_path / "bases", tmp_path / "corpus", tmp_path / "out"
    bases.mkdir()
    corpus.mkdir()
    make_mutants(corpus, make_bases(bases, videos), count, listener.url)
    command = ["shard", corpus, "--out", out, *SETTINGS, f"runtime.workers={workers}", "limits.deadline_s=30"]
    command += ["max_failed=1", "filters.duplicates=false"]
    worst = [0]
    with (tmp_path / "log").open("wb") as log:
        job = subprocess.Popen([sys.executable, "-m", "vidvq", *map(str, command)], stderr=log, stdout=log)
        watcher = threading.Thread(target=watch_memory, args=(job, worst), daemon=True)
        watcher.start()
        assert job.wait(timeout_s) == 0, (tmp_path / "log").read_text()[-3000:]
        watcher.join()
    assert listener.callers == 0, "a container made a decoder ask the network"
    listener.socket.close()
    assert 0 < worst[0] < _MAX_RSS_BYTES
    summary = json.loads((out / "summary.json").read_bytes())
    lost = {name: reason["count"] for verdict in ("failed", "filtered") for name, reason in summary[verdict].items()}
    assert summary["ok"] + sum(lost.values()) == summary["planned"] >= count
    assert (
        subprocess.run([sys.executable, "-m", "vidvq", "verify", out], check=False, capture_output=True).returncode == 0
    )
    assert "unexpected" not in lost, "each way to be broken has a name"
    named = {reason for reason in lost if lost[reason]}
    assert {"not_a_video", "decode_error", "unreadable"} <= named, named
    clips = [clip for path in sorted(out.glob("*.tar")) for clip in read_clips(path)]
    assert len(clips) == summary["ok"] > count // 4
    for key, media, info in clips[:: max(len(clips) // 100, 1)]:
        assert len(decode_clip(media, key)) == info.num_frames
    print(count, "mutants:", summary["ok"], "clips,", lost, f"largest process {worst[0] / 1e6:.0f} MB")
    return out


def test_hostile_files_cost_themselves_alone(tmp_path, demo_videos):
    run_fuzz(tmp_path, sorted((demo_videos / "train").glob("*.mp4")), count=120, workers=2, timeout_s=400)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_mutants_make_the_same_shards_on_any_number_of_workers(tmp_path, demo_videos, snapshot):
    videos = sorted((demo_videos / "train").glob("*.mp4"))
    (tmp_path / "two").mkdir()
    two = run_fuzz(tmp_path / "two", videos, count=1200, workers=2, timeout_s=1500)
    three = tmp_path / "three"
    command = ["shard", tmp_path / "two/corpus", "--out", three, *SETTINGS, "runtime.workers=3", "limits.deadline_s=30"]
    command += ["max_failed=1", "filters.duplicates=false"]
    done = subprocess.run([sys.executable, "-m", "vidvq", *command], check=False, env=os.environ, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert snapshot(two) == snapshot(three)
