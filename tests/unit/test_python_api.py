"""Wrong calls of the Python API are refused in one line, and plain variants of right ones are accepted."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vidvq import config, load_pretrained, save_pretrained
from vidvq.arguments import as_integer, as_list, check_type
from vidvq.data import TokenLoader, pack_samples
from vidvq.data.tokens import make_sample
from vidvq.decode import DecodeConfig, frames, run_decode
from vidvq.errors import StoreError, UsageError
from vidvq.evaluate import EvaluateConfig, run_evaluate, run_evaluate_tokenizers
from vidvq.export import ExportConfig, Layout, grid_to_sequence, is_export, run_export, sequence_to_grid, verify_export
from vidvq.formats.checkpoint import resolve_checkpoint
from vidvq.formats.clip_shard import read_clips
from vidvq.formats.columns import read_table
from vidvq.formats.plan import read_plan
from vidvq.formats.sequence import SequenceConfig
from vidvq.formats.token_index import index_tokens
from vidvq.formats.token_shard import read_tokenizer_card, read_tokens
from vidvq.generate.evaluation.evaluate import run_generate_evaluate
from vidvq.generate.training.loop import run_generate_train
from vidvq.model import (
    StepShape,
    StreamState,
    Tokenizer,
    TokenizerConfig,
    VideoTokenizer,
    iter_decode,
    iter_decode_batch,
    iter_encode,
)
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.pretrained import find_tokenizer, load_tokenizer
from vidvq.shard import ShardConfig, run_shard
from vidvq.tokenize import TokenizeConfig, run_tokenize
from vidvq.train import TrainConfig, run_train

SMALL = StackConfig((8, 8), (1, 1))
# Height and width of two latents.
SIZE = (16, 16)


@pytest.fixture(scope="module")
def tokenizer() -> VideoTokenizer:
    torch.manual_seed(0)
    return VideoTokenizer(TokenizerConfig(encoder=SMALL, decoder=DecoderConfig(SMALL.channels, SMALL.blocks))).eval()


@pytest.fixture(scope="module")
def looking_ahead() -> VideoTokenizer:
    torch.manual_seed(0)
    decoder = DecoderConfig(SMALL.channels, SMALL.blocks, lookahead=1)
    return VideoTokenizer(TokenizerConfig(encoder=SMALL, decoder=decoder)).eval()


class Whole(Tokenizer):
    """A tokenizer without streaming, of one code."""

    temporal_factor, spatial_factor = 4, 8

    @property
    def device(self):
        return torch.device("cpu")

    def encode(self, video):
        return torch.zeros(len(video), *self.latent_shape(*video.shape[2:]), dtype=torch.long)


@pytest.fixture
def video() -> torch.Tensor:
    return torch.rand(1, 3, 5, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def codes(tokenizer, video) -> torch.Tensor:
    return tokenizer.encode(video)


def refuse(message: str):
    return pytest.raises(UsageError, match=message)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 16}, "size=16 must be two integers, height and width in pixels"),
        ({"size": (16,)}, r"size=\(16,\) must be two integers"),
        ({"size": (16, 16, 3)}, "must be two integers"),
        ({"size": ()}, "must be two integers"),
        ({"size": 0}, "must be two integers"),
        ({"size": (16.0, 16.0)}, r"size=\(16.0, 16.0\) must be two integers"),
        ({"size": "16"}, "size='16' must be two integers"),
        ({"size": np.zeros(3)}, "must be two integers"),
        ({"num_frames": "5"}, "num_frames='5' must be an integer"),
        ({"num_frames": 5.0}, "num_frames=5.0 must be an integer"),
        ({"num_frames": True}, "num_frames=True must be an integer"),
        ({"num_frames": np.array([5])}, r"num_frames=array\(\[5\]\) must be an integer"),
        ({"num_frames": 17}, "do not become a grid"),
    ],
)
def test_a_crop_of_another_type_is_refused(tokenizer, codes, given, message):
    with refuse(message):
        tokenizer.decode(codes, **given)
    with refuse(message):
        list(iter_decode(tokenizer, codes[0], **({"num_frames": 5, "size": SIZE} | given)))


@pytest.mark.parametrize("size", [list(SIZE), np.array(SIZE), torch.tensor(SIZE), torch.Size(SIZE)], ids=type)
def test_a_crop_may_be_any_two_integers(tokenizer, codes, size):
    found = tokenizer.decode(codes, num_frames=np.int64(5), size=size)
    assert torch.equal(found, tokenizer.decode(codes, 5, SIZE))


def test_sparse_tensors_are_refused(tokenizer, video, codes):
    message = "is a tensor of layout torch.sparse_coo; it must be dense"
    for call in (tokenizer.encode, tokenizer.encode_tiled, tokenizer.encode_step, tokenizer, tokenizer.pad):
        with refuse(f"video {message}"):
            call(video.to_sparse())
    for call in (tokenizer.decode, tokenizer.latents, tokenizer.decode_step):
        with refuse(f"codes {message}"):
            call(codes.to_sparse())
    with refuse(f"codes {message}"):
        list(iter_decode(tokenizer, codes[0].to_sparse(), 5, SIZE))
    with refuse(f"video {message}"):
        list(iter_encode(tokenizer, [torch.ones(5, *SIZE, 3, dtype=torch.uint8).to_sparse()]))


def test_video_of_another_type_is_refused(tokenizer, video):
    with refuse("video is torch.float8_e4m3fn; it must be float of 16 to 64 bits"):
        tokenizer.encode(video.to(torch.float8_e4m3fn))
    with refuse(r"video has values from nan to nan; they must be in \[-1, 1\] \(uint8 frames: x / 127.5 - 1\)"):
        tokenizer.encode(video * np.nan)
    for call in (tokenizer, tokenizer.pad):
        with refuse("video is a NoneType; it must be a tensor or a NumPy array"):
            call(None)
    with refuse("it must be b c t h w"):
        tokenizer.pad(video[0])


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_training_takes_every_float_type(tokenizer, video, kind):
    given = video.to(kind)
    assert torch.equal(tokenizer(given).codes, tokenizer(given.float()).codes)
    assert torch.equal(tokenizer(video.numpy()).codes, tokenizer(video).codes)


@pytest.mark.parametrize("state", [3, (), "state", torch.zeros(1), False], ids=repr)
def test_what_is_no_state_is_refused(tokenizer, looking_ahead, video, codes, state):
    message = f"the state is a {type(state).__name__}; it must be a vidvq.model.StreamState, the second result"
    for call in (
        lambda: tokenizer.encode_step(video[:, :, 1:], state),
        lambda: tokenizer.encode_step(video[:, :, 1:], tokenizer.encode_step(video[:, :, :1]) and state),
        lambda: tokenizer.decode_step(codes[:, 1:], state),
        lambda: tokenizer.decode_rest(state),
        lambda: looking_ahead.decode_rest(state),
        lambda: Whole().decode_rest(state),
        lambda: StreamState.stack([state]),
    ):
        with refuse(message):
            call()


def test_a_state_is_passed_alone(tokenizer, video):
    both = tokenizer.encode_step(video[:, :, :1])
    with refuse("the state is a tuple"):
        tokenizer.encode_step(video[:, :, 1:], both)
    with refuse("the state is a NoneType"):
        tokenizer.decode_rest(None)
    with refuse("index='0' must be an integer"):
        both[1].select("0")


def test_a_state_on_another_device_is_refused(video):
    tokenizer = VideoTokenizer(TokenizerConfig(encoder=SMALL, decoder=DecoderConfig(SMALL.channels, SMALL.blocks)))
    with torch.no_grad():
        for name, weight in tokenizer.named_parameters():
            # A new residual block is the identity and has no past.
            if name.endswith("mix.weight"):
                weight.normal_(std=0.1)
    _, state = tokenizer.eval().encode_step(video[:, :, :1])
    elsewhere = replace(state, past=tuple(tensor.to("meta") for tensor in state.past))
    with refuse("the state is on meta, the tokenizer on cpu; move one"):
        tokenizer.encode_step(video[:, :, 1:], elsewhere)


@pytest.mark.parametrize("value", [3, None, (1, 1), "1x1"])
@pytest.mark.parametrize("name", ["step_shape", "decode_shape"])
def test_a_step_shape_of_another_type_is_refused(tokenizer, name, value):
    with refuse(re.escape(f"{name}={value!r} must be a vidvq.model.StepShape, such as StepShape(streams=8)")):
        setattr(tokenizer, name, value)
    assert getattr(tokenizer, name) == StepShape()


@pytest.mark.parametrize("value", [1.5, 2.0, "2", None, True, float("nan")])
@pytest.mark.parametrize("name", ["streams", "groups", "max_pixels"])
def test_the_sides_of_a_step_shape_are_integers(name, value):
    with refuse(re.escape(f"{name}={value!r} must be an integer")):
        StepShape(**{name: value})


def test_arguments_of_a_tokenizer_are_checked(tokenizer):
    with refuse("height=1.5 must be an integer"):
        tokenizer.latent_shape(17, 1.5, 16)
    with refuse("num_frames='a' must be an integer"):
        tokenizer.bits_per_pixel("a", 16, 16)
    with refuse("kind='x' must be one of encode, decode"):
        tokenizer.shape_for(16, 16, "x")
    for dtype in ("bf16", torch.float64, None):
        with refuse("must be torch.bfloat16 or torch.float16"):
            tokenizer.use_half(dtype)
    codes = tokenizer.encode(torch.zeros(1, 3, 5, 16, 16))
    tokenizer.use_half(torch.float32)
    assert tokenizer.encode(torch.zeros(1, 3, 5, 16, 16)).equal(codes)
    with refuse("config is a dict; it must be a TokenizerConfig"):
        VideoTokenizer({})
    with refuse("tensors is a NoneType; it must be a dict"):
        tokenizer.load_inference_state_dict(None)
    with refuse("tensor .* is an int; it must be a Tensor"):
        tokenizer.load_inference_state_dict(dict.fromkeys(tokenizer.inference_state_dict(), 0))
    with refuse("latents is a NoneType; it must be a Tensor"):
        tokenizer.decode_latents(None)
    with refuse(r"latents have shape \(1, 3, 1, 2, 2\); it must be b 16 g h w"):
        tokenizer.decode_latents(torch.zeros(1, 3, 1, 2, 2))


def test_tokenizers_are_found_by_name():
    assert find_tokenizer("bundled") == resolve_checkpoint("bundled")
    for load in (find_tokenizer, load_tokenizer):
        with refuse("^nope does not exist"):
            load("nope")
        with refuse("a path is a NoneType"):
            load(None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device records graphs")
def test_capture_needs_a_gpu(video, monkeypatch):
    tokenizer = VideoTokenizer(TokenizerConfig(encoder=SMALL, decoder=DecoderConfig(SMALL.channels, SMALL.blocks)))
    monkeypatch.setattr(torch, "compile", lambda call, **_: call)
    tokenizer.eval().compile_steps(capture=True)
    with refuse("capture=True records CUDA graphs, but torch finds no CUDA device"):
        tokenizer.encode(video)


def bytes_of(frames: int, side: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (frames, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("make", [None, Whole], ids=["streaming", "whole"])
@pytest.mark.parametrize("first", [1, 3, 5])
def test_frames_of_a_stream_have_one_size(tokenizer, make, first):
    with refuse("a chunk has frames of 32x32, those before it 16x16; the frames of a stream must have one size"):
        list(iter_encode(make() if make else tokenizer, [bytes_of(first), bytes_of(8, 32)]))


@pytest.mark.parametrize("make", [None, Whole], ids=["streaming", "whole"])
@pytest.mark.parametrize("chunk", [None, "a", 3, [[1]], bytes_of(2)[0], bytes_of(2)[None]], ids=type)
def test_chunks_are_arrays_of_frames(tokenizer, make, chunk):
    with refuse("chunks must be tensors or NumPy arrays, t h w 3"):
        list(iter_encode(make() if make else tokenizer, [chunk]))


@pytest.mark.parametrize("make", [None, Whole], ids=["streaming", "whole"])
def test_a_stream_may_be_empty(tokenizer, make):
    assert list(iter_encode(make() if make else tokenizer, [bytes_of(1)[:0]])) == []


def test_a_stream_needs_a_tokenizer_and_chunks(tokenizer, codes):
    with refuse("tokenizer is a str; it must be a Tokenizer"):
        list(iter_encode("bundled", [bytes_of(1)]))
    with refuse("tokenizer is a Tensor; it must be a Tokenizer"):
        list(iter_decode(codes[0], tokenizer, 5, SIZE))
    with refuse("chunks is a NoneType; it must be an Iterable"):
        list(iter_encode(tokenizer, None))


def test_codes_to_decode_in_steps_are_one_grid(tokenizer, codes):
    grid = codes[0].numpy()
    for wrong in (codes, grid[0], None, grid.tolist()):
        with refuse("they must be tensors or NumPy arrays of one shape, lt lh lw for each video"):
            list(iter_decode(tokenizer, wrong, 5, SIZE))
    for several in ([grid, grid[:1]], [grid, grid[:, :1]], []):
        with refuse("must be tensors or NumPy arrays of one shape"):
            list(iter_decode_batch(tokenizer, several, 5, SIZE))


@pytest.mark.parametrize("name", ["tokenizer", "looking_ahead"])
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_results_do_not_depend_on_the_default_type(request, name, default, video):
    tokenizer = request.getfixturevalue(name)

    def results():
        codes = tokenizer.encode(video)
        first, state = tokenizer.decode_step(codes[:, :1])
        rest = tokenizer.decode_rest(tokenizer.decode_step(codes[:, 1:], state)[1])
        yield from (codes, tokenizer.decode(codes), tokenizer.latents(codes), first, rest, tokenizer(video)[0])
        yield tokenizer.encode(video.numpy())
        yield Tokenizer.decode_rest(tokenizer, state)

    expected = list(results())
    torch.set_default_dtype(default)
    try:
        found = list(results())
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(expected, found, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "a path is a NoneType; give it as text, as a URL or as a pathlib.Path"),
        (3, "a path is a int"),
        ("", "is not a checkpoint"),
        ("nope", "nope does not exist"),
        ("gs://bucket/x", r"needs a library that is not installed .*gcsfs|cannot be reached"),
    ],
)
def test_what_is_no_tokenizer_is_explained(name, message):
    with pytest.raises((UsageError, StoreError), match=message):
        load_pretrained(name)


def test_an_unreachable_object_store_is_explained(monkeypatch):
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    with pytest.raises(StoreError, match="the object store cannot be reached: "):
        load_pretrained("s3://nope/x")


def test_options_of_a_download_are_for_the_hub_alone(checkpoint_dir):
    with refuse("is not downloaded from the hub, so that device has no effect; leave it out"):
        load_pretrained(checkpoint_dir, device="cuda")
    with refuse("those of huggingface_hub.snapshot_download: got an unexpected keyword argument 'device'"):
        load_pretrained("owner/name", device="cuda")


def test_a_tokenizer_is_saved_in_a_local_folder(tokenizer, tmp_path):
    with refuse("tokenizer is a str; it must be a VideoTokenizer"):
        save_pretrained("bundled", tmp_path)
    with refuse("a path is a NoneType"):
        save_pretrained(tokenizer, None)
    (tmp_path / "file").touch()
    for folder in ("s3://bucket/x", tmp_path / "file"):
        with refuse("is not a local folder"):
            save_pretrained(tokenizer, folder)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": "a"}, "seed='a' must be an integer"),
        ({"seed": None}, "seed=None must be an integer"),
        ({"seed": 0.5}, "seed=0.5 must be an integer"),
        ({"seed": -1}, "seed=-1 must be 0 or more"),
        ({"rank": "0"}, "rank='0' must be an integer"),
        ({"ranks": 1.0}, "ranks=1.0 must be an integer"),
        ({"ranks": 3}, "^batch_size=2 must be a multiple of ranks=3"),
        ({"tokens": [3]}, r"tokens=\[3\]: must be"),
        ({"tokens": {"a": float("inf")}}, "tokens=.*: must be"),
    ],
)
def test_arguments_of_a_loader_are_checked(tokens_dir, given, message):
    with refuse(message):
        TokenLoader(**({"tokens": tokens_dir, "batch_size": 2} | given))


def test_a_loader_takes_paths(tokens_dir):
    expected = next(iter(TokenLoader(str(tokens_dir), 2)))
    for tokens in ([tokens_dir], (tokens_dir,), {tokens_dir: 1.0}, {str(tokens_dir): 1}):
        found = next(iter(TokenLoader(tokens, 2)))
        assert found.keys == expected.keys and torch.equal(found.codes, expected.codes)


@pytest.mark.parametrize("state", [None, 3, [], {"batch": True, "seed": 0, "batch_size": 2}], ids=repr)
def test_a_state_of_a_loader_is_its_state_dict(tokens_dir, state):
    with refuse(r"the state has batch=(None|True); give the state_dict\(\) of a loader"):
        TokenLoader(tokens_dir, 2).load_state_dict(state)


@pytest.fixture(scope="module")
def card(tokens_dir):
    return read_tokenizer_card(tokens_dir)


def test_packing_checks_its_arguments(tokens_dir, card):
    key, codes, _ = next(iter(read_tokens(tokens_dir / "tokens-000000.tar", card)))
    sample = make_sample(key, codes, np.arange(len(codes)), card)
    for samples in (sample, [codes], None):
        with refuse("it must be a list of TokenSample"):
            pack_samples(samples, 100)
    for length in ("x", None, 1e4):
        with refuse(f"length={length!r} must be an integer"):
            pack_samples([sample], length)


def test_readers_take_texts(tokens_dir, clips_dir, card):
    assert read_tokenizer_card(str(tokens_dir)) == card
    for read, shard in (
        (lambda path: read_tokens(path, card), tokens_dir / "tokens-000000.tar"),
        (read_clips, clips_dir / "clips-000000.tar"),
    ):
        assert [each[0] for each in read(str(shard))] == [each[0] for each in read(shard)]
    assert read_plan(str(clips_dir)).plan_id == read_plan(clips_dir).plan_id
    assert index_tokens(str(tokens_dir)) == index_tokens(tokens_dir)
    assert read_table(str(clips_dir)).rows == {}
    assert not is_export(str(tokens_dir))


def test_readers_name_what_is_missing(tokens_dir, card, tmp_path):
    for read, kind in ((lambda path: read_tokens(path, card), "token"), (read_clips, "clip")):
        for path in ("nope.tar", Path("nope.tar")):
            with refuse(f"^nope.tar does not exist; give a {kind} shard"):
                list(read(path))
        with refuse(f"is a folder; give a {kind} shard"):
            list(read(tmp_path))
    for read in (read_tokenizer_card, read_plan, index_tokens):
        for path in ("nope", Path("nope")):
            with refuse("^nope does not exist; give a directory that vidvq"):
                read(path)
    for path in ("nope", Path("nope")):
        with refuse("^nope is not a directory; give one that vidvq shard wrote"):
            read_table(path)
        with refuse("^nope has no export.json; give a directory that vidvq export wrote"):
            verify_export(path)
    for read in (read_tokenizer_card, read_plan, read_table, index_tokens, verify_export, is_export):
        with refuse("a path is a NoneType"):
            read(None)
    with refuse("card is a str; it must be a TokenizerCard"):
        list(read_tokens(tokens_dir / "tokens-000000.tar", str(tokens_dir)))


def test_the_columns_to_read_are_a_list(clips_dir):
    with refuse("wanted='motion' must be a list of names"):
        read_table(clips_dir, "motion")


def test_an_interval_is_of_a_source(tokens_dir, checkpoint_dir):
    with refuse("start=1 is a time in a source; give source= instead of key='a'"):
        list(frames(tokens_dir, checkpoint_dir, key="a", start=1))
    for edge in ("1", (0, 1), float("nan")):
        with refuse(re.escape(f"end={edge!r} must be a number of seconds, or None")):
            list(frames(tokens_dir, checkpoint_dir, source="a", end=edge))
    with refuse("key=3 is not in"):
        list(frames(tokens_dir, checkpoint_dir, key=3))
    with refuse("a path is a VideoTokenizer"):
        list(frames(tokens_dir, load_pretrained(checkpoint_dir), key="a"))


def test_frames_take_texts_and_bundled(tokens_dir, checkpoint_dir, card):
    key, _, info = next(iter(read_tokens(tokens_dir / "tokens-000000.tar", card)))
    assert len(list(frames(str(tokens_dir), f"file://{checkpoint_dir}", key=key))) == info.num_frames
    with refuse("was made by tokenizer"):
        list(frames(str(tokens_dir), "bundled", key=key))


def test_sequences_check_their_arguments(tokens_dir, card):
    layout = Layout(card, SequenceConfig())
    _, codes, _ = next(iter(read_tokens(tokens_dir / "tokens-000000.tar", card)))
    for wrong in (None, "x", codes[0], codes[None], codes.astype(float)):
        with refuse("it must be integers, lt lh lw"):
            grid_to_sequence(wrong, layout)
    with refuse("it must not be empty"):
        grid_to_sequence(codes[:0], layout)
    with refuse("codes: code -1 at t=0 h=0 w=0 is out of range"):
        grid_to_sequence(codes.astype(int) * 0 - 1, layout)
    with refuse("layout is a TokenizerCard; it must be a Layout"):
        grid_to_sequence(codes, card)
    ids = grid_to_sequence(codes, layout)
    for wrong in (None, ids + 0.5, ids[None]):
        with refuse("it must be integers, n"):
            sequence_to_grid(wrong, codes.shape, layout)
    for grid in (None, 3, codes.shape[:2]):
        with refuse("must be three integers, lt lh lw"):
            sequence_to_grid(ids, grid, layout)
    with refuse("grid=0 must be 1 or more"):
        sequence_to_grid(ids, (0, 1, 1), layout)
    for given in (torch.from_numpy(codes.astype(np.int64)), codes.tolist()):
        assert np.array_equal(grid_to_sequence(given, layout), ids)
    assert np.array_equal(sequence_to_grid(ids.tolist(), list(codes.shape), layout), codes)
    with refuse("order='foo' must be one of raster, temporal"):
        SequenceConfig(order="foo")
    with refuse("config is a str; it must be a SequenceConfig"):
        Layout(card, "raster")


def test_settings_of_another_call_are_refused(tokens_dir, clips_dir, checkpoint_dir, tmp_path):
    out = tmp_path / "out"
    for call, kind in (
        (lambda wrong: run_shard(["a.mp4"], out, wrong), "ShardConfig"),
        (lambda wrong: run_tokenize([clips_dir], checkpoint_dir, out, wrong), "TokenizeConfig"),
        (run_train, "TrainConfig"),
        (run_generate_train, "GenerateTrainConfig"),
        (lambda wrong: run_decode(tokens_dir, checkpoint_dir, out, wrong), "DecodeConfig"),
        (lambda wrong: run_export(tokens_dir, "bin", out, wrong), "ExportConfig"),
        (lambda wrong: run_evaluate(clips_dir, out, tokens_dir, config=wrong), "EvaluateConfig"),
        (lambda wrong: run_evaluate_tokenizers(clips_dir, [checkpoint_dir], config=wrong), "EvaluateConfig"),
        (lambda wrong: run_generate_evaluate(out, tokens_dir, wrong, None, checkpoint_dir, None), "EvaluateConfig"),
    ):
        with refuse(f"config is a str; it must be an? {kind}$"):
            call("settings")


def test_settings_built_by_hand_are_validated(tokens_dir, clips_dir, checkpoint_dir, tmp_path):
    out = tmp_path / "out"
    train = config.load(TrainConfig, config.find_config("nano"), [f"data.clips={clips_dir}", f"out={out}"])
    for call, message in (
        (lambda: run_shard(["a.mp4"], out, ShardConfig(clip=None)), "clip=None: must be a mapping of settings"),
        (
            lambda: run_tokenize([clips_dir], checkpoint_dir, out, TokenizeConfig(precision="half")),
            "precision='half': must be fp32, tf32 or bf16, or null",
        ),
        (lambda: run_decode(tokens_dir, checkpoint_dir, out, DecodeConfig(crf=99)), "crf=99: must be an integer"),
        (lambda: run_decode(tokens_dir, checkpoint_dir, out, DecodeConfig(fps=np.nan)), "fps=nan must be a finite"),
        (lambda: run_export(tokens_dir, "bin", out, ExportConfig(samples="x")), "samples='x': must be"),
        (
            lambda: run_evaluate_tokenizers(clips_dir, [checkpoint_dir], config=EvaluateConfig(worst=0)),
            "worst=0: must be",
        ),
        (lambda: run_train(replace(train, steps=-1)), "steps=-1: must be"),
    ):
        with refuse(f"^config has 1 wrong field: {message}"):
            call()
    assert not out.exists()


def test_inputs_are_lists(clips_dir, checkpoint_dir, tmp_path):
    shard, tokenize = ShardConfig(), TokenizeConfig()
    for given in (str(clips_dir), clips_dir, None, [3]):
        with refuse("inputs=.* must be a list of paths and URLs, also for a single one"):
            run_shard(given, tmp_path, shard)
        with refuse("sources=.* must be a list of paths and URLs, also for a single one"):
            run_tokenize(given, checkpoint_dir, tmp_path, tokenize)
    for given in (str(checkpoint_dir), checkpoint_dir, [], None):
        with refuse("must be a list of one or more checkpoints"):
            run_evaluate_tokenizers(clips_dir, given)


def test_stages_take_texts(tokens_dir, checkpoint_dir, clips_dir, tmp_path):
    with refuse("^nope does not exist; give a checkpoint"):
        run_tokenize([str(clips_dir)], "nope", str(tmp_path / "tokens"), TokenizeConfig())
    with refuse("input nope.mp4 does not exist"):
        run_shard([Path("nope.mp4")], str(tmp_path / "clips"), ShardConfig())
    with refuse("^nope does not exist; give a directory"):
        run_decode("nope", str(checkpoint_dir), str(tmp_path / "decoded"), DecodeConfig())
    assert run_export(str(tokens_dir), "bin", str(tmp_path / "bin"), ExportConfig()).parts
    assert verify_export(str(tmp_path / "bin"))[0] == []
    with refuse("has no frames; run vidvq decode"):
        run_evaluate(str(clips_dir), str(tmp_path), str(tokens_dir))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["video.short_side"], "'video.short_side' is not a setting; give key.sub=value, such as video.short_side="),
        (["=3"], "'=3' is not a setting; give key.sub=value, such as key.sub=VALUE"),
        (["video.short_side=8"], r"video.short_side=8 is not a known field; did you mean clip.short_side\?"),
        (["video.short_side="], r"video.short_side=None is not a known field; did you mean clip.short_side\?"),
        ("clip.num_frames=9", "overrides='clip.num_frames=9' must be a list of key.sub=value, also for a single one"),
        (None, "overrides=None must be a list"),
        ([3], r"overrides=\[3\] must be a list"),
    ],
)
def test_wrong_overrides_are_explained(overrides, message):
    with refuse(message):
        config.load(ShardConfig, None, overrides)


def test_settings_are_loaded_from_a_text(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("clip: {num_frames: 9}\n")
    assert config.load(ShardConfig, str(path), []) == config.load(ShardConfig, path, [])
    with refuse("config nope.yaml cannot be read"):
        config.load(ShardConfig, "nope.yaml", [])
    with refuse("data is missing; set it"):
        config.load(TrainConfig, None, [])
    with refuse("must be the class of the settings"):
        config.load(int, None, [])


def test_checks_return_what_is_right():
    assert as_integer("n", np.uint8(3), 3) == 3 and as_integer("n", torch.tensor(-1)) == -1
    assert as_list("names", (Path("a"), "b"), "paths") == ["a", "b"]
    assert check_type("n", 3, int) is None
