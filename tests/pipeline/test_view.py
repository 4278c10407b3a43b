"""The page of `vidvq view`: what it carries, and how it behaves in a real browser."""

import http.client
import json
import shutil
import threading

import pytest
from test_report_in_browser import BROWSERS, Page

from vidvq.view import build_page
from vidvq.view.page import _render
from vidvq.view.serve import make_server


@pytest.fixture(scope="module")
def written(tmp_path_factory, tokens_dir, clips_dir, checkpoint_dir):
    path = tmp_path_factory.mktemp("view") / "view.html"
    path.write_bytes(build_page(tokens_dir, checkpoint_dir, clips_dir, 3))
    return path


def carried(text: str) -> dict:
    return json.loads(text.partition('id="data">')[2].partition("</script>")[0])


def test_a_hostile_name_stays_text(written):
    data = carried(written.read_text())
    assert len(data["clips"]) == 3 and all(clip["original"] for clip in data["clips"])
    hostile = "</script><script>alert(1)</script>"
    data["clips"][0]["source"] = hostile
    text = _render(data, 3, "f" * 64).decode()
    assert hostile not in text
    assert carried(text)["clips"][0]["source"] == hostile


def test_the_server_gives_one_page_to_this_machine_alone():
    server = make_server(b"page", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert server.server_address[0] == "127.0.0.1"
        for path, host, status in (
            ("/", "127.0.0.1:1", 200),
            ("/", "evil.example:1", 404),
            ("/etc/passwd", "localhost:1", 404),
        ):
            link = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
            link.request("GET", path, headers={"Host": host})
            assert link.getresponse().status == status
            link.close()
    finally:
        server.shutdown()
        server.server_close()


def test_a_browser_shows_scrubs_plays_and_finds_a_code(written, tmp_path):
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if not found:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    page = Page(found, tmp_path, written.as_uri())
    try:
        seen = page.ask("""async () => {
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
        assert page.requests() == [written.as_uri()] and page.complaints() == []
    finally:
        page.close()
