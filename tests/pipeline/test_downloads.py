"""How often a job downloads a remote video."""

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.helpers.http_server import QuietHandler, serve

FRAMES, GOP, PER_SHARD = 200, 9, 4


@pytest.fixture(scope="module")
def remote(tmp_path_factory, make_video) -> Iterator[tuple[str, Counter[str]]]:
    """A server with one video of several shards, and its downloads."""
    content = make_video(tmp_path_factory.mktemp("remote") / "a.mp4", FRAMES).read_bytes()
    asked: Counter[str] = Counter()

    class Handler(QuietHandler):
        def do_GET(self):
            found = content if self.path == "/a.mp4" else b""
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(found)))
            self.end_headers()
            if self.command == "GET" and found:
                asked["GET"] += 1
                self.wfile.write(found)

    with serve(Handler) as url:
        yield f"{url}/a.mp4", asked


@pytest.mark.parametrize("decoders", [1, 4])
def test_a_video_of_many_shards_is_downloaded_a_few_times(remote, decoders, checkpoint_dir, tmp_path, vidvq):
    url, asked = remote
    asked.clear()
    settings = [f"gop_frames={GOP}", f"items_per_shard={PER_SHARD}", "video.short_side=32", "video.multiple=8"]
    settings += ["lists.allow_private=true", "runtime.workers=0", f"runtime.decoders={decoders}"]
    ran = vidvq("tokenize", url, "--checkpoint", checkpoint_dir, "--out", tmp_path / "out", *settings)
    assert ran.code == 0, ran.err
    assert len(list((tmp_path / "out").glob("*.tar"))) == 6
    # To plan it, to make all shards, and for the six samples of the report. A shard that is made before the copy is
    # held for the next one costs another.
    assert asked["GET"] <= 5
