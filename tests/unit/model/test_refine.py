"""Decoders with lookahead, with overlapping blocks and with a blending stage."""

import numpy as np
import pytest
import torch

from vidvq.errors import UsageError
from vidvq.model import StreamState, TokenizerConfig, VideoTokenizer, iter_decode
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.layers import TemporalCache
from vidvq.model.pixels import to_frames
from vidvq.model.quantize import DifferentialConfig, FSQConfig, QuantizerConfig, VQConfig
from vidvq.model.refine import Lookahead
from vidvq.model.step_shape import StepShape
from vidvq.model.streaming import decode_start

CODES = torch.from_numpy(np.random.default_rng(0).integers(0, 32, (2, 7, 3, 5)))


def make(
    lookahead: int,
    tile: int = 1024,
    blend: int = 6,
    linear: int = 2,
    trained: bool = True,
    denoise: int = 0,
    overlap: bool = True,
) -> VideoTokenizer:
    torch.manual_seed(0)
    stages = StackConfig((16, 24), (1, 1))
    books = QuantizerConfig(4, VQConfig(size=32), VQConfig(size=32), DifferentialConfig())
    decoder = DecoderConfig(*vars(stages).values(), lookahead=lookahead, denoise=denoise, overlap=overlap, blend=blend)
    config = TokenizerConfig(encoder=stages, decoder=decoder, quantizer=books, linear=linear, tile=tile)
    tokenizer = VideoTokenizer(config).eval()
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            if trained and not parameter.any():
                parameter.normal_(std=0.1)
    return tokenizer


@pytest.mark.parametrize("tile", [1024, 16], ids=["whole", "tiled"])
@pytest.mark.parametrize("shape", [StepShape(), StepShape(1, 3), StepShape(2, 2)], ids=str)
@pytest.mark.parametrize(("lookahead", "denoise"), [(1, 0), (3, 2)])
def test_streams_are_decoded_like_whole_videos(lookahead, denoise, shape, tile):
    tokenizer = make(lookahead, tile, denoise=denoise)
    tokenizer.decode_shape = shape
    whole = tokenizer.decode(CODES, 23, (20, 36))
    assert torch.equal(tokenizer.decode(CODES[:1], 23, (20, 36)), whole[:1])
    parts = list(iter_decode(tokenizer, CODES[0], 23, (20, 36)))
    assert np.array_equal(np.concatenate(parts), to_frames(whole[:1]))
    for sizes in ([1, 1, 1, 1, 1, 1, 1], [1, 4, 2], [1, 6]):
        state, frames = None, []
        for part in CODES.split(sizes, dim=1):
            video, state = tokenizer.decode_step(part, state)
            frames.append(video)
        assert state is not None
        held = sum(video.shape[2] for video in frames)
        frames.append(tokenizer.decode_rest(state))
        assert held < 25 and torch.equal(torch.cat(frames, dim=2)[:, :, :23, :20, :36], whole)


def test_a_state_holds_no_more_memory_than_its_frames_and_waiting_latents():
    tokenizer = make(2)
    tokenizer.decode_shape = StepShape(1, 3)
    _, state = tokenizer.decode_step(CODES[:1])
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in state.past)


@pytest.mark.parametrize("num_frames", [1, 8, 13, 23])
def test_first_frames_are_those_of_the_whole_video(num_frames):
    tokenizer = make(2)
    whole = [np.concatenate(list(iter_decode(tokenizer, codes, 23, (20, 36)))) for codes in CODES]
    start = decode_start(tokenizer, list(CODES), num_frames, (20, 36))
    assert all(np.array_equal(one, other[:num_frames]) for one, other in zip(start, whole, strict=True))


@pytest.mark.parametrize("lookahead", [1, 2])
def test_a_group_depends_on_as_many_later_groups(lookahead):
    tokenizer = make(lookahead)
    before = tokenizer.decode(CODES)
    changed = CODES.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 32
    differs = (tokenizer.decode(changed) != before).flatten(3).any(dim=-1).any(dim=1).any(dim=0)
    first = 1 + 4 * (4 - lookahead - 1)
    assert not differs[:first].any() and differs[first:].all()


def test_the_end_of_a_stream_can_be_shown_early():
    tokenizer = make(2)
    _, state = tokenizer.decode_step(CODES[:, :1])
    _, state = tokenizer.decode_step(CODES[:, 1:4], state)
    early = tokenizer.decode_rest(state)
    assert torch.equal(early, tokenizer.decode_rest(state))
    assert torch.equal(early, tokenizer.decode(CODES[:, :4])[:, :, -8:])
    rest, state = tokenizer.decode_step(CODES[:, 4:], state)
    assert torch.equal(torch.cat([rest, tokenizer.decode_rest(state)], dim=2), tokenizer.decode(CODES)[:, :, 5:])


def test_latents_of_projected_codes_do_not_depend_on_the_batch_and_the_steps():
    torch.manual_seed(0)
    stages, book = StackConfig((8,), (0,)), FSQConfig(levels=(5,) * 6)
    decoder, books = DecoderConfig((8,), (0,), lookahead=3), QuantizerConfig(5, book, book)
    tokenizer = VideoTokenizer(TokenizerConfig(encoder=stages, decoder=decoder, quantizer=books)).eval()
    codes = torch.randint(book.size, (3, 9, 7, 11))
    _, whole = tokenizer.decode_step(codes[:, 1:], tokenizer.decode_step(codes[:, :1])[1])
    state = None
    for step in codes[:1].split(1, dim=1):
        _, state = tokenizer.decode_step(step, state)
    assert state is not None
    # Products of these shapes are rounded differently, which the waiting latents show before the frames do.
    assert all(torch.equal(*pair) for pair in zip(whole.select(0).past, state.past, strict=True))


def test_streams_that_hold_different_numbers_of_groups_cannot_be_stacked():
    tokenizer = make(2)
    _, one = tokenizer.decode_step(CODES[:1, :1])
    _, two = tokenizer.decode_step(CODES[:1, 1:2], one)
    assert StreamState.stack([two, two]) is not None
    with pytest.raises(UsageError, match="cannot be stacked"):
        StreamState.stack([one, two])


def test_streams_at_their_start_are_not_stacked_with_later_ones():
    torch.manual_seed(0)
    stages = StackConfig((8,), (0,))
    # Without residual blocks nothing is cached.
    decoder, books = DecoderConfig((8,), (0,), lookahead=2), QuantizerConfig(4, VQConfig(size=32), VQConfig(size=32))
    tokenizer = VideoTokenizer(TokenizerConfig(encoder=stages, decoder=decoder, quantizer=books)).eval()
    _, one = tokenizer.decode_step(CODES[:1, :1])
    _, two = tokenizer.decode_step(CODES[:1, 1:2], one)
    _, three = tokenizer.decode_step(CODES[:1, 2:3], two)
    with pytest.raises(UsageError, match="cannot be stacked"):
        StreamState.stack([two, three])


def test_without_lookahead_nothing_is_held():
    tokenizer = make(0)
    _, state = tokenizer.decode_step(CODES[:, :1])
    assert tokenizer.decode_rest(state).shape == (2, 3, 0, 24, 40)


@pytest.mark.parametrize("denoise", [0, 2])
def test_tiles_are_joined_without_seams(denoise):
    wide = CODES[:1, :4].repeat(1, 1, 1, 4)
    whole, tiled = (make(2, tile, denoise=denoise).decode(wide) for tile in (1024, 16))
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)


def test_overlap_and_blending_start_as_the_identity():
    plain, parts = make(0, blend=0, overlap=False, trained=False), make(0, trained=False)
    parts.load_inference_state_dict(parts.inference_state_dict() | plain.inference_state_dict())
    assert torch.equal(parts.decode(CODES), plain.decode(CODES))


def test_a_block_is_corrected_by_the_latents_around_it():
    plain, overlapping = make(0, overlap=False), make(0)
    overlap = overlapping.decoder.overlap
    assert overlap is not None
    latents = torch.randn(1, 4, 1, 3, 5)
    with torch.no_grad():
        # What the left neighbour has in its first channel is added to all pixels.
        overlap.weight.zero_()
        overlap.bias.zero_()
        overlap.weight[:, 0, 1, 0] = 1.0
        missing = overlapping.load_state_dict(plain.state_dict(), strict=False).missing_keys
        assert all(name.startswith("decoder.overlap.") for name in missing)
        plain.decoder.blend = overlapping.decoder.blend = None
        found = overlapping.decoder(latents, TemporalCache()) - plain.decoder(latents, TemporalCache())
    shifted = torch.nn.functional.pad(latents[0, 0, 0, :, :-1], (1, 0))
    expected = shifted.repeat_interleave(8, 0).repeat_interleave(8, 1)
    torch.testing.assert_close(found, expected.expand_as(found), atol=1e-5, rtol=0)


def test_training_decodes_like_inference():
    tokenizer = make(2)
    video = torch.rand(1, 3, 9, 24, 40) * 2 - 1
    result = tokenizer(video)
    torch.testing.assert_close(result.reconstruction.clamp(-1, 1), tokenizer.decode(result.codes), atol=1e-5, rtol=0)


def test_gates_pass_the_changes_to_later_groups():
    lookahead = Lookahead(2, 4)
    latents = torch.randn(1, 5, 3, 2, 4)
    with torch.no_grad():
        lookahead.gates.bias.fill_(-100.0)
        assert torch.equal(lookahead(latents), latents[:, :3])
        lookahead.gates.bias.fill_(100.0)
        torch.testing.assert_close(lookahead(latents), latents[:, 2:])


def test_denoising_starts_as_the_identity():
    latents = torch.randn(1, 5, 3, 2, 4)
    gates, denoiser = Lookahead(2, 4), Lookahead(2, 4, depth=3)
    denoiser.load_state_dict(denoiser.state_dict() | gates.state_dict())
    assert torch.equal(denoiser(latents), gates(latents))


def test_settings_that_are_not_used_are_not_stored():
    assert make(0, blend=0, overlap=False).config.to_dict()["decoder"].keys() == {"channels", "blocks"}
    config = make(2).config
    assert TokenizerConfig.from_dict(config.to_dict()) == config
    with pytest.raises(UsageError, match="lookahead=-1 must be 0 or more"):
        make(-1, blend=0)
    with pytest.raises(UsageError, match="denoise=2 needs lookahead=1 or more"):
        make(0, denoise=2)
