"""The page of `vidvq view`: its data, and its behaviour in a real browser."""

import http.client
import io
import json
import shutil
import socket
import struct
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator
from hashlib import sha256
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.helpers.browser import BROWSERS, Page
from vidvq.decode import batch
from vidvq.errors import UsageError
from vidvq.formats.code_statistics import BookStatistics, CodeStatistics, write_code_statistics
from vidvq.formats.token_shard import read_tokenizer_card, read_tokens
from vidvq.view import Gallery, build_page
from vidvq.view.atlas import decode_patches
from vidvq.view.page import render
from vidvq.view.pictures import jpeg_sheet
from vidvq.view.serve import build_routes, make_server


@pytest.fixture(scope="module")
def gallery(tokens_dir, clips_dir, checkpoint_dir) -> Gallery:
    return Gallery(tokens_dir, checkpoint_dir, clips_dir)


@pytest.fixture(scope="module")
def written(tmp_path_factory, gallery):
    path = tmp_path_factory.mktemp("view") / "view.html"
    path.write_bytes(build_page(gallery, 3))
    return path


@pytest.fixture
def served(gallery) -> Iterator[str]:
    """URL of a server whose list shows four clips per page."""
    page = build_page(gallery, None).replace(b"LIST = 40", b"LIST = 4")
    # The content security policy has the hash of the script.
    script = page.rpartition(b"<script>")[2].partition(b"</script>")[0]
    old = page.partition(b"'sha256-")[2].partition(b"'")[0]
    server = make_server(page.replace(old, b64encode(sha256(script).digest())), build_routes(gallery), 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def get(address: str, path: str, host: str = "127.0.0.1:1", **headers: str) -> tuple[int, bytes]:
    link = http.client.HTTPConnection("127.0.0.1", urlsplit(address).port, timeout=300)
    link.request("GET", path, headers={"Host": host} | headers)
    answer = link.getresponse()
    got = answer.status, answer.read()
    link.close()
    return got


def png_size(uri: str) -> tuple[int, int]:
    with Image.open(io.BytesIO(b64decode(uri.partition(",")[2]))) as picture:
        return picture.size


def browse(tmp_path, address: str) -> Page:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if not found:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    return Page(found, tmp_path, address)


def carried(text: str) -> dict:
    return json.loads(text.partition('id="data">')[2].partition("</script>")[0])


def test_a_hostile_name_is_escaped(written):
    data = carried(written.read_text())
    assert len(data["clips"]) == 3 and all(clip["original"] for clip in data["clips"])
    hostile = "</script><script>alert(1)</script>"
    data["clips"][0]["source"] = hostile
    text = render(data, "f" * 64).decode()
    assert hostile not in text
    assert carried(text)["clips"][0]["source"] == hostile


def test_the_server_serves_only_its_page_and_only_locally(served, gallery):
    # At port 80, browsers send no port.
    for host in ("127.0.0.1:1", "localhost:1", "127.0.0.1", "localhost"):
        assert get(served, "/", host)[0] == 200
    for path, host in (("/", "evil.example:1"), ("/clip?index=0", "evil.example:1"), ("/etc/passwd", "localhost:1")):
        assert get(served, path, host)[0] == 404


def test_requests_of_other_origins_are_refused(served):
    for site, status in (("same-origin", 200), ("none", 200), ("cross-site", 403), ("same-site", 403)):
        assert get(served, "/clips?start=0&count=1", **{"Sec-Fetch-Site": site})[0] == status
        # A link to the page is followed.
        assert get(served, "/", **{"Sec-Fetch-Site": site})[0] == 200
    for path in ("/clip?index=99", "/clip?index=-1", "/clip?index=x", "/clip", "/clip?other=1", "/code?book=7&code=0"):
        status, said = get(served, path)
        assert status == 400 and said and b"Traceback" not in said and b"()" not in said
    assert b"clip 99 is out of range; the clips are 0 to 12" in get(served, "/clip?index=99")[1]


def test_neither_a_client_that_leaves_nor_a_bad_address_shows_a_traceback(capsys):
    asked, left = threading.Event(), threading.Event()

    def wait() -> str:
        asked.set()
        left.wait(10)
        return "x" * 5_000_000

    server = make_server(b"", {"/wait": wait}, 0)
    # Closing a server then joins the threads of its requests.
    server.daemon_threads = False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert get(f"http://127.0.0.1:{server.server_port}/", "http://[")[0] == 400
    with socket.create_connection(("127.0.0.1", server.server_port)) as client:
        client.sendall(f"GET /wait HTTP/1.1\r\nHost: localhost:{server.server_port}\r\n\r\n".encode())
        assert asked.wait(10)
        # Reset the connection.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    left.set()
    server.shutdown()
    server.server_close()
    assert "Traceback" not in capsys.readouterr().err


def test_every_clip_is_served_as_in_its_shard(served, tokens_dir):
    card = read_tokenizer_card(tokens_dir)
    samples = [sample for shard in sorted(tokens_dir.glob("*.tar")) for sample in read_tokens(shard, card)]
    listed = json.loads(get(served, "/clips?start=0&count=100")[1])
    assert listed["total"] == len(samples)
    listed = listed["clips"]
    assert [(line["index"], line["key"]) for line in listed] == [(at, key) for at, (key, _, _) in enumerate(samples)]
    for index, (key, codes, info) in enumerate(samples):
        clip = json.loads(get(served, f"/clip?index={index}")[1])
        assert clip["key"] == key and clip["codes"] == codes.ravel().tolist() and clip["original"]
        assert len(clip["starts"]) == info.num_frames and clip["duration"] == pytest.approx(listed[index]["duration"])


@pytest.fixture(params=["clips", "shards alone", "raw video"])
def two_sources(request, tmp_path, make_video, checkpoint_dir, vidvq, tiny_settings) -> Gallery:
    """Four clips of each of two videos; the sources come from the clips, the shards or the plan."""
    for name in ("Garden", "street"):
        (tmp_path / name).mkdir()
        make_video(tmp_path / name / f"{name}.mp4", 36, size=(32, 64 if name == "street" else 72))
    out, clips, end = tmp_path / "out", tmp_path / "clips", ("--checkpoint", checkpoint_dir, "runtime.workers=0")
    videos = (tmp_path / "Garden", tmp_path / "street")
    if request.param == "raw video":
        settings = ("gop_frames=9", "items_per_shard=3", "video.short_side=32")
        assert vidvq("tokenize", *videos, "--out", out, *end, *settings).code == 0
    else:
        assert vidvq("shard", *videos, "--out", clips, *tiny_settings, "runtime.workers=0").code == 0
        assert vidvq("tokenize", clips, "--out", out, *end).code == 0
    return Gallery(out, checkpoint_dir, clips if request.param == "clips" else None)


def test_search_finds_clips_by_key_and_source_in_all_shards(two_sources):
    def found(text: str, start: int = 0, count: int = 100) -> tuple[int, list[int]]:
        lines = two_sources.list_clips(start, count, text)
        assert all(line["key"] == two_sources.locate(line["index"]).key for line in lines["clips"])
        return lines["total"], [line["index"] for line in lines["clips"]]

    assert found("/Garden/garden.MP4") == (4, [0, 1, 2, 3])
    assert found("STREET-") == (4, [4, 5, 6, 7]), "as keys have it"
    assert found(" -00002  street ") == (1, [6])
    assert found("-0000", 3, 2) == (8, [3, 4])
    assert found("street garden") == found("(") == (0, [])
    assert found(" ") == (8, list(range(8)))


SEARCH = """async () => {
  const by = id => document.getElementById(id), wait = ms => new Promise(done => setTimeout(done, ms));
  const until = async test => { for (let i = 0; i < 200 && !test(); i++) await wait(50); };
  const keys = () => [...document.querySelectorAll("#clips button")].map(button => button.firstChild.textContent);
  await until(() => document.body.dataset.ready);
  const search = async text => {
    const before = by("clips").firstChild;
    by("search").value = text;
    by("search").dispatchEvent(new Event("input"));
    await until(() => by("clips").firstChild !== before);
    return [by("range").textContent, keys()];
  };
  const hit = await search("CARPHONE 00002"), opened = () => by("title").textContent;
  document.querySelector("#clips button").click();
  await until(() => opened() === hit[1][0]);
  const open = [opened(), document.querySelectorAll("#clips [aria-current=true]").length];
  const none = await search("no such clip"), many = await search("carphone");
  return {hit, open, none, many, all: await search(""), hidden: by("pages").hidden};
}"""


@pytest.mark.parametrize("kind", ["written", "served"])
def test_search_in_a_browser(kind, request, gallery, tmp_path):
    where = request.getfixturevalue(kind)
    page = browse(tmp_path, where if kind == "served" else where.as_uri())
    try:
        seen = page.evaluate(SEARCH)
        keys = [line["key"] for line in gallery.list_clips(0, 100)["clips"]]
        total, listed = (13, 4) if kind == "served" else (3, 3)
        assert seen["hit"] == ["1 to 1 of 1", [keys[2]]] and seen["open"] == [keys[2], 1]
        assert seen["none"] == ["none", []]
        assert seen["many"] == seen["all"]
        assert seen["all"] == [f"1 to {listed} of {total}", keys[:listed]]
        assert seen["hidden"] == (kind == "written")
        assert page.errors() == []
    finally:
        page.close()


def test_all_occurrences_are_counted_and_correct(gallery, tokens_dir):
    card = read_tokenizer_card(tokens_dir)
    grids = [codes for shard in sorted(tokens_dir.glob("*.tar")) for _, codes, _ in read_tokens(shard, card)]
    for book, parts in ((0, [grid[:1] for grid in grids]), (1, [grid[1:] for grid in grids])):
        for code in range(card.codebooks[book].size):
            found = gallery.occurrences(book, code)
            assert found["count"] == sum(int((part == code).sum()) for part in parts)
            assert bool(found["places"]) == bool(found["count"])
            for place in found["places"]:
                assert grids[place["index"]][place["t"], place["y"], place["x"]] == code
                assert (place["t"] > 0) == (book == 1)


def test_a_code_outside_the_atlas_is_decoded_on_request(gallery, monkeypatch):
    shown = gallery.books[1]["codes"]
    assert gallery.occurrences(1, shown[0])["patch"] is None
    before = png_size(gallery.books[1]["strip"])
    monkeypatch.setitem(gallery.books[1], "codes", shown[1:])
    patch = gallery.occurrences(1, shown[0])["patch"]
    side = gallery.card.spatial_factor
    assert png_size(patch) == (side * 4, side) and before == (side * 4, side * len(shown))
    with Image.open(io.BytesIO(b64decode(patch.partition(",")[2]))) as one:
        with Image.open(io.BytesIO(b64decode(gallery.books[1]["strip"].partition(",")[2]))) as all_of_them:
            assert np.array_equal(np.asarray(one), np.asarray(all_of_them)[:side])


def test_clips_decoded_together_are_those_decoded_one_by_one(gallery, monkeypatch):
    alone, together = [gallery.clip(index) for index in range(5)], []
    real = batch.iter_decode_batch

    def count(tokenizer, codes, *size):
        together.append(len(codes))
        return real(tokenizer, codes, *size)

    monkeypatch.setattr(batch, "iter_decode_batch", count)
    monkeypatch.setattr("vidvq.view.gallery.default_batch", lambda on_gpu: 4)
    assert list(gallery.clips(range(5))) == alone
    assert max(together) > 1


def test_the_codes_of_a_codebook_are_decoded_in_one_call(gallery, monkeypatch):
    tokenizer, card, calls = gallery._tokenizer, gallery.card, []
    real = tokenizer.decode

    def count(grids):
        calls.append(len(grids))
        return real(grids)

    monkeypatch.setattr(tokenizer, "decode", count)
    for book in card.codebooks:
        patches = decode_patches(tokenizer, card, book, [3, 0, 5], 1)
        assert calls.pop() == 3 and not calls
        for code, patch in zip([3, 0, 5], patches, strict=True):
            assert np.array_equal(patch, decode_patches(tokenizer, card, book, [code], 1)[0])
        calls.clear()


def test_a_long_sample_is_cut_to_its_first_frames(gallery, monkeypatch):
    whole = gallery.clip(0)
    monkeypatch.setattr("vidvq.view.gallery.MAX_FRAMES", 5)
    start = gallery.clip(0)
    assert len(start["starts"]) == 5 and start["frames"] == 9 and start["grid"][0] == 2
    assert start["codes"] == whole["codes"][: len(start["codes"])] and start["original"]
    assert start["duration"] == pytest.approx(whole["starts"][5])


def test_codes_are_counted_up_to_a_limit(tokens_dir, checkpoint_dir, gallery, monkeypatch):
    assert gallery.counted == gallery.total == 13
    codes = gallery.clip(0)["codes"]
    monkeypatch.setattr("vidvq.view.gallery._COUNTED_CODES", 2 * len(codes) + 1)
    assert Gallery(tokens_dir, checkpoint_dir, None).counted == 2


def test_a_list_is_never_longer_than_a_hundred_clips():
    def list_clips(start, count, text):
        return [start, count, text]

    routes = build_routes(SimpleNamespace(list_clips=list_clips, occurrences=None))
    assert routes["/clips"](start=3, count=10**9) == [3, 100, ""] and routes["/clips"](start=0, count=7)[1] == 7


def test_few_of_large_frames_are_shown(gallery, monkeypatch):
    monkeypatch.setattr("vidvq.view.gallery._MAX_PIXELS", 6 * 32 * 40)
    start = gallery.clip(0)
    assert len(start["starts"]) == 6 and start["grid"][0] == 3
    with Image.open(io.BytesIO(b64decode(start["decoded"].partition(",")[2]))) as sheet:
        assert sheet.size == (6 * 40, 32)
    monkeypatch.setattr("vidvq.view.gallery._MAX_PIXELS", 1)
    assert len(gallery.clip(0)["starts"]) == 1
    for code in gallery.books[1]["codes"]:
        assert gallery.occurrences(1, code)["count"] and not gallery.occurrences(1, code)["places"]


@pytest.mark.parametrize(("height", "width"), [(8, 8192), (8192, 8), (8, 16384), (16, 24)])
def test_as_many_frames_are_shown_as_fit_a_sheet(gallery, height, width):
    scale = gallery.card.spatial_factor
    count = gallery._max_frames(np.zeros((99, height // scale, width // scale)))
    assert 0 < count <= 129
    jpeg_sheet(np.zeros((count, height, width, 3), dtype=np.uint8))


def test_frames_of_a_larger_decoder_have_the_size_of_the_clip(tokens_dir, clips_dir, larger_decoder):
    clip = Gallery(tokens_dir, larger_decoder, clips_dir).clip(0)
    with Image.open(io.BytesIO(b64decode(clip["decoded"].partition(",")[2]))) as sheet:
        assert sheet.size == (8 * clip["width"], 2 * clip["height"])
    assert clip["original"] and 3 < clip["psnr"] < 100


def test_a_browser_visits_all_clips_of_a_server(served, gallery, tmp_path):
    page = browse(tmp_path, served)
    try:
        seen = page.evaluate("""async () => {
          const by = id => document.getElementById(id), wait = ms => new Promise(done => setTimeout(done, ms));
          const until = async test => { for (let i = 0; i < 200 && !test(); i++) await wait(50); };
          await until(() => document.body.dataset.ready);
          const keys = [];
          for (;;) {
            const range = by("range").textContent;
            for (const button of document.querySelectorAll("#clips button")) keys.push(button.firstChild.textContent);
            if (by("later").disabled) break;
            by("later").click();
            await until(() => by("range").textContent !== range);
          }
          by("goto").value = 2; by("goto").onchange();
          const open = key => {
            const current = document.querySelector("#clips [aria-current=true]");
            return by("title").textContent === key && current && current.firstChild.textContent === key;
          };
          await until(() => open(keys[1]));
          const back = by("range").textContent;
          by("goto").value = 13; by("goto").onchange();
          await until(() => open(keys[12]));
          const box = by("decoded").getBoundingClientRect();
          by("decoded").dispatchEvent(new MouseEvent("click", {clientX: box.left + 2, clientY: box.top + 2}));
          await until(() => document.querySelectorAll("#places canvas").length);
          await wait(500);
          return {keys, back, last: by("range").textContent, token: by("token").textContent,
            about: by("about").textContent, places: document.querySelectorAll("#places button").length,
            current: document.querySelector("#clips [aria-current=true]").firstChild.textContent};
        }""")
        lines = gallery.list_clips(0, 100)["clips"]
        assert seen["keys"] == [line["key"] for line in lines]
        assert seen["back"] == "1 to 4 of 13" and seen["last"] == "13 to 13 of 13"
        assert seen["current"] == lines[12]["key"]
        code = gallery.clip(12)["codes"][0]
        assert seen["token"] == f"spatial code {code}"
        assert seen["places"] == len(gallery.occurrences(0, code)["places"])
        assert all(url.startswith(served) for url in page.requests()) and page.errors() == []
    finally:
        page.close()


def test_a_browser_shows_scrubs_plays_and_finds_a_code(written, tmp_path):
    page = browse(tmp_path, written.as_uri())
    try:
        seen = page.evaluate("""async () => {
          const by = id => document.getElementById(id), wait = ms => new Promise(done => setTimeout(done, ms));
          for (let i = 0; i < 100 && !document.body.dataset.ready; i++) await wait(50);
          const before = by("decoded").toDataURL();
          by("scrub").value = 5; by("scrub").oninput();
          const box = by("decoded").getBoundingClientRect();
          by("decoded").dispatchEvent(new MouseEvent("click", {clientX: box.left + 2, clientY: box.top + 2}));
          await wait(300);
          const seen = {moved: by("decoded").toDataURL() !== before, where: by("where").textContent,
            token: by("token").textContent, about: by("about").textContent,
            thumbs: document.querySelectorAll("#places canvas").length,
            atlas: document.querySelectorAll(".atlas button").length,
            wide: document.documentElement.scrollWidth > document.documentElement.clientWidth};
          const frames = new Set();
          by("play").click();
          for (let i = 0; i < 20; i++) { await wait(30); frames.add(by("where").textContent); }
          return {...seen, played: frames.size};
        }""")
        data = carried(written.read_text())
        clip = data["clips"][0]
        code = clip["codes"][2 * clip["grid"][1] * clip["grid"][2]]
        assert seen["moved"] and seen["where"].startswith("frame 5 of 9") and seen["where"].endswith("t=2")
        assert seen["token"] == f"temporal code {code}"
        assert f"Flat id {32 + code}" in seen["about"]
        assert seen["thumbs"] > 0 and seen["atlas"] == sum(len(book["codes"]) for book in data["books"])
        assert seen["played"] > 2 and not seen["wide"]
        assert page.requests() == [written.as_uri()] and page.errors() == []
    finally:
        page.close()


@pytest.fixture
def statistics(tmp_path, tokens_dir):
    """Statistics of a generator in which every code occurs."""
    card = read_tokenizer_card(tokens_dir)
    books = [
        BookStatistics(book.name, [*range(book.size)], [1] * book.size, [2.5] * book.size, [[3, 7]] * book.size)
        for book in card.codebooks
    ]
    found = CodeStatistics("f" * 64, card.token_fingerprint, books, [None, 3.0, 4.5], [[1.0, 2.0], [3.0, None]])
    write_code_statistics(tmp_path / "codes.json", found)
    return tmp_path / "codes.json"


def test_a_browser_shows_how_predictable_codes_are(tmp_path, tokens_dir, checkpoint_dir, statistics):
    written = tmp_path / "view.html"
    written.write_bytes(build_page(Gallery(tokens_dir, checkpoint_dir, None, statistics), 1))
    page = browse(tmp_path, written.as_uri())
    try:
        seen = page.evaluate("""async () => {
          const by = id => document.getElementById(id), wait = ms => new Promise(done => setTimeout(done, ms));
          for (let i = 0; i < 100 && !document.body.dataset.ready; i++) await wait(50);
          const button = document.querySelector(".atlas button");
          button.click();
          return {label: button.textContent, about: by("about").textContent, place: by("bits-place").textContent,
            time: by("bits-time").textContent, columns: by("bits-place").style.gridTemplateColumns};
        }""")
        assert seen["label"].endswith(" 2.5 bits") and seen["columns"].startswith("repeat(2,")
        assert "The generator needs 2.50 bits for it. Nearest in its embedding: 3, 7. " in seen["about"]
        assert (seen["place"], seen["time"]) == ("1.02.03.0\u2013", "\u20133.04.5")
        assert page.errors() == []
    finally:
        page.close()


def test_statistics_of_another_tokenizer_are_refused(tokens_dir, checkpoint_dir, statistics):
    fingerprint = read_tokenizer_card(tokens_dir).token_fingerprint
    statistics.write_text(statistics.read_text().replace(fingerprint, "0" * 64))
    with pytest.raises(UsageError, match="is of tokenizer 000000000000"):
        Gallery(tokens_dir, checkpoint_dir, None, statistics)


def test_originals_of_other_clips_are_refused_and_missing_ones_are_said(
    tmp_path, tokens_dir, clips_dir, checkpoint_dir, tiny_clips, tiny_settings, demo_videos, vidvq
):
    page = ("--checkpoint", checkpoint_dir, "--out", tmp_path / "page.html", "--first", 1)
    ran = vidvq("view", tokens_dir, "--clips", tiny_clips, *page)
    assert ran.code == 2 and f"{tiny_clips} has no originals of the clips in {tokens_dir}, such as " in ran.error
    ran = vidvq("view", tokens_dir, "--clips", tokens_dir, *page)
    assert ran.code == 2 and "was written by vidvq tokenize; set --clips to a directory that vidvq shard" in ran.error
    # Those of one video of two.
    video, tokens = demo_videos / "train/phone.mkv", tmp_path / "tokens"
    both = tmp_path / "both"
    inputs = (demo_videos / "train/carphone.mp4", video)
    assert vidvq("shard", *inputs, "--out", both, *tiny_settings, "runtime.workers=0").code == 0
    end = ("--checkpoint", checkpoint_dir, "runtime.workers=0")
    assert vidvq("tokenize", both, "--out", tokens, *end).code == 0
    ran = vidvq("view", tokens, "--clips", clips_dir, *page)
    assert ran.code == 0 and f"clips have no original in {clips_dir}, such as phone" in ran.err
    assert "have no original" not in vidvq("view", tokens, "--clips", both, *page).err
