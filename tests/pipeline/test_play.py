"""`vidvq generate play`: frames under actions, and its page in a real browser."""

import io
import json
import shutil
import threading
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.helpers.browser import BROWSERS, Page
from tests.helpers.generators import MODEL, make_card, write_random
from vidvq.errors import UsageError
from vidvq.formats.generator import read_generator
from vidvq.formats.token_index import index_tokens
from vidvq.formats.token_shard import read_tokenizer_card
from vidvq.generate.network.build import load_network
from vidvq.generate.requests import PlayConfig, SamplingConfig
from vidvq.generate.sampling.rollout import Rollout
from vidvq.pretrained import load_tokenizer
from vidvq.view.pictures import png_strip
from vidvq.view.play import Game, build_play_page, play_routes
from vidvq.view.serve import make_server

ACTIONS = {
    "objective": "next",
    "tasks": ("predict",),
    "model": MODEL | {"copy_radius": 1},
    "actions": "move",
    "action_mean": (0.0, 0.0),
    "action_scale": (1.0, 0.5),
    "action_choices": ((1.0, 0.0), (0.0, 0.0), (0.0, -1.0)),
}
FAST = SamplingConfig(steps=2)


@pytest.fixture(scope="module")
def steered(tmp_path_factory, tokens_dir):
    """A generator with actions and random weights."""
    card = make_card(read_tokenizer_card(tokens_dir), **ACTIONS)
    return write_random(tmp_path_factory.mktemp("play") / "steered", card)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tokens_dir):
    """A generator without actions."""
    card = make_card(read_tokenizer_card(tokens_dir), tasks=("predict",))
    return write_random(tmp_path_factory.mktemp("play") / "plain", card)


@pytest.fixture(scope="module")
def rollout(steered, tokens_dir, checkpoint_dir):
    found, (tokenizer, _) = read_generator(steered), load_tokenizer(checkpoint_dir)
    network, place = load_network(found), index_tokens(tokens_dir)[0]
    codes, info = place.read(found.card.tokenizer)

    def begin(seed="a", latents=2):
        return Rollout(network, found.card, tokenizer, codes[:latents], FAST, seed, (info.height, info.width))

    return begin


def frames_of(begun, actions):
    return np.concatenate([begun.start(), *(begun.step(action) for action in actions)])


def test_frames_depend_on_the_seed_and_all_actions_so_far(rollout):
    left, right = [(1.0, 0.0)] * 4, [(0.0, -1.0), *[(1.0, 0.0)] * 3]
    first = frames_of(rollout(), left)
    # Five frames of the start and four of each latent frame; the context of three has slid twice.
    assert first.shape == (21, 32, 40, 3) and np.array_equal(first, frames_of(rollout(), left))
    assert not np.array_equal(first, frames_of(rollout("b"), left))
    other = frames_of(rollout(), right)
    assert np.array_equal(first[:5], other[:5]) and not np.array_equal(first[5:9], other[5:9])
    assert not np.array_equal(first[5:9], frames_of(rollout(), [None])[5:9])


def test_frames_are_those_of_a_decoder_that_sees_the_whole(rollout, checkpoint_dir):
    begun = rollout()
    frames = frames_of(begun, [(1.0, 0.0)] * 3)
    tokenizer, _ = load_tokenizer(checkpoint_dir)
    whole = tokenizer.decode(begun._codes[None])
    assert np.abs(frames - ((whole[0].permute(1, 2, 3, 0) + 1) * 127.5).numpy().round().clip(0, 255)).max() <= 1


def test_tokenizers_without_streaming_play_too(rollout, monkeypatch):
    begun = rollout(latents=1)
    monkeypatch.setattr(type(begun._tokenizer), "supports_streaming", False)
    assert frames_of(begun, [None] * 3).shape == (13, 32, 40, 3)


def test_keys_are_the_most_frequent_actions_or_those_given(steered, plain, tokens_dir, checkpoint_dir):
    def game(run, **settings):
        return Game(run, tokens_dir, checkpoint_dir, PlayConfig(sampling=FAST, **settings))

    found = game(steered)
    assert found.keys == {"1": (1.0, 0.0), "2": (0.0, 0.0), "3": (0.0, -1.0)} and found.idle == (0.0, 0.0)
    named = game(steered, keys={"ArrowLeft": (-1.0, 0.0)}, starts=2)
    assert named.keys == {"ArrowLeft": (-1.0, 0.0)} and named.total == 2
    assert game(plain).keys == {} and game(plain).idle is None
    for run, settings, expected in (
        (steered, {"keys": {"a": (1.0,)}}, "keys.a has 1 numbers; an action of this generator has 2"),
        (plain, {"keys": {"a": (1.0,)}}, "was trained without actions"),
        (steered, {"given": 3}, "given=3 must be 1 . a multiple of 4"),
        (steered, {"given": 401}, "has no sample of 101 or more latent frames"),
    ):
        with pytest.raises(UsageError, match=expected):
            game(run, **settings)


def test_old_rollouts_end(steered, tokens_dir, checkpoint_dir):
    game = Game(steered, tokens_dir, checkpoint_dir, PlayConfig(sampling=FAST))
    numbers = [game.start(0)["rollout"] for _ in range(9)]
    assert len(game.step(numbers[1], -1)["frames"]) == 4
    for call, expected in (
        (lambda: game.step(numbers[0], 0), "rollout 1 has ended.*; press Start again"),
        (lambda: game.step(numbers[1], 3), "key 3 is out of range"),
        (lambda: game.start(99), "start 99 is out of range"),
    ):
        with pytest.raises(UsageError, match=expected):
            call()


def test_a_rollout_ends_before_its_memory_is_without_bound(steered, tokens_dir, checkpoint_dir, monkeypatch):
    game = Game(steered, tokens_dir, checkpoint_dir, PlayConfig(sampling=FAST, given=1))
    monkeypatch.setattr("vidvq.view.play._MAX_LATENTS", 3)
    number = game.start(0)["rollout"]
    assert [len(game.step(number, -1)["frames"]) for _ in range(2)] == [4, 4]
    with pytest.raises(UsageError, match="it has 3 latent frames"):
        game.step(number, -1)


def test_a_generator_that_cannot_play_is_refused(tmp_path, steered, tokens_dir, checkpoint_dir, vidvq):
    card = make_card(read_tokenizer_card(tokens_dir), tasks=("generate",))
    mute = write_random(tmp_path / "mute", card)
    wrong = vidvq("generate", "play", mute, "--tokens", tokens_dir)
    assert wrong.code == 2 and "was not trained to predict; train one with tasks.predict=1" in wrong.error
    wrong = vidvq("generate", "play", steered)
    assert wrong.code == 2 and "names its training tokens; set --tokens" in wrong.error
    shutil.copytree(checkpoint_dir, tmp_path / "tokenizer/checkpoints/step-00000001")
    (tmp_path / "tokenizer/config.yaml").write_text("data: {clips: [runs/clips]}")
    wrong = vidvq("generate", "play", tmp_path / "tokenizer")
    assert wrong.code == 2 and "is not a generator" in wrong.error
    wrong = vidvq("generate", "play", tmp_path / "none")
    assert wrong.code == 2 and "none does not exist" in wrong.error
    other = replace(card.tokenizer, token_fingerprint="f" * 64)
    foreign = write_random(tmp_path / "foreign", replace(card, tasks=("predict",), tokenizer=other))
    wrong = vidvq("generate", "play", foreign, "--tokens", tokens_dir)
    assert wrong.code == 2 and "the generator was trained on tokens of f" in wrong.error


@pytest.fixture
def served(request, steered, plain, tokens_dir, checkpoint_dir) -> Iterator[tuple[str, list[dict[str, int]]]]:
    """URL of a page, and the steps that it has asked for."""
    run, keys = (steered, {"ArrowLeft": (-1.0, 0.0), " ": (0.0, 1.0)}) if request.param == "steered" else (plain, None)
    game = Game(run, tokens_dir, checkpoint_dir, PlayConfig(sampling=FAST, keys=keys))
    routes, steps = play_routes(game), []

    def step(**query):
        steps.append(query)
        return routes["/step"](**query)

    server = make_server(build_play_page(game), routes | {"/step": step}, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", steps
    server.shutdown()
    server.server_close()


PLAY = """async () => {
  const by = id => document.getElementById(id), wait = ms => new Promise(done => setTimeout(done, ms));
  const until = async test => { for (let i = 0; i < 1200 && !test(); i++) await wait(50); };
  const shown = () => Number(by("where").textContent.replace("frame ", ""));
  const picture = () => by("frame").toDataURL();
  const press = (type, key) => document.dispatchEvent(new KeyboardEvent(type, {key, bubbles: true, cancelable: true}));
  await until(() => shown() === 1);
  const first = picture(), before = by("run").textContent;
  if (document.querySelector("[data-key]")) press("keydown", "ArrowLeft");
  else by("run").click();
  await until(() => shown() >= 9);
  const held = document.querySelectorAll("[aria-pressed=true]").length, playing = by("run").textContent;
  press("keyup", "ArrowLeft");
  const now = shown();
  await until(() => shown() >= now + 9);
  by("run").click();
  await until(() => by("run").textContent === "Play");
  const last = picture();
  by("again").click();
  await until(() => shown() === 1);
  const again = picture();
  by("start").value = 2;
  by("start").dispatchEvent(new Event("change"));
  await until(() => picture() !== again);
  return {first, last, before, playing, held, again, other: picture(), problem: by("problem").textContent};
}"""


@pytest.mark.parametrize("served", ["steered", "plain"], indirect=True)
def test_a_browser_plays(served, tmp_path, request, tokens_dir):
    executable = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if not executable:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    address, steps = served
    page = Page(executable, tmp_path, address)
    try:
        seen = page.evaluate(PLAY)
        steered = "steered" in request.node.name
        assert (seen["before"], seen["playing"], seen["held"]) == ("Play", "Pause", int(steered))
        assert seen["problem"] == "" and seen["first"] == seen["again"]
        assert seen["first"] != seen["last"] and seen["other"] != seen["first"]
        # The held key is the action; without it, none is.
        assert steps[0] == {"rollout": 1, "key": 0 if steered else -1} and steps[-1] == {"rollout": 1, "key": -1}
        with Image.open(io.BytesIO(b64decode(seen["first"].partition(",")[2]))) as picture:
            assert picture.size == (40, 32)
        assert all(url.startswith(address) for url in page.requests()) and page.errors() == []
    finally:
        page.close()


def test_the_frame_has_the_size_of_its_start(steered, tokens_dir, checkpoint_dir, tmp_path):
    executable = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if not executable:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")

    def start(start):
        return {"rollout": 1, "frames": [png_strip(np.zeros((16, 24 + 8 * start, 3), np.uint8))]}

    game = Game(steered, tokens_dir, checkpoint_dir, PlayConfig(sampling=FAST))
    server = make_server(build_play_page(game), {"/start": start}, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = Page(executable, tmp_path, f"http://127.0.0.1:{server.server_port}/")
    try:
        seen = page.evaluate("""async () => {
          const by = id => document.getElementById(id), wait = ms => new Promise(done => setTimeout(done, ms));
          const until = async width => { for (let i = 0; i < 200 && by("frame").width !== width; i++) await wait(20); };
          await until(24);
          const first = [by("frame").width, by("frame").height];
          by("start").value = 2;
          by("start").dispatchEvent(new Event("change"));
          await until(32);
          return [...first, by("frame").width, by("frame").height];
        }""")
        assert seen == [24, 16, 32, 16] and page.errors() == []
    finally:
        page.close()
        server.shutdown()
        server.server_close()


def test_buttons_name_the_space_key_and_the_action(steered, tokens_dir, checkpoint_dir):
    game = Game(steered, tokens_dir, checkpoint_dir, PlayConfig(keys={" ": (-1.0, 0.5)}))
    assert "<kbd>Space</kbd> -1, 0.5</button>" in build_play_page(game).decode()


def test_names_of_keys_are_escaped(steered, tokens_dir, checkpoint_dir):
    hostile = "</script><script>alert(1)</script>"
    game = Game(steered, tokens_dir, checkpoint_dir, PlayConfig(keys={hostile: (1.0, 0.0)}))
    text = build_play_page(game).decode()
    assert hostile not in text and text.count("<script") == 2
    assert json.loads(text.partition('id="data">')[2].partition("</script>")[0])["keys"][0]["key"] == hostile
