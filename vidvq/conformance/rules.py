"""The rules of the interface :class:`vidvq.model.Tokenizer`, each as a function that tries them on a tokenizer."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vidvq.errors import UsageError
from vidvq.model import StreamState, Tokenizer, iter_decode, iter_encode
from vidvq.model.pixels import to_frames, to_video
from vidvq.model.stream_state import check_state
from vidvq.pretrained.interface_checks import check_codes, check_declaration, check_video
from vidvq.user_code import error_line

Build = Callable[[], Tokenizer]


class NotConforming(UsageError):
    """A tokenizer breaks rules of the interface. Each line of the message is a rule and what broke it."""


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        name: short name, such as ``deterministic``.
        text: the rule, in one sentence.
        attempt: tries it on a tokenizer; raises if it is broken. The second argument builds the tokenizer again.
        is_for_streams: whether it applies only to tokenizers that support streaming.
        needs_build: whether it applies only if the tokenizer can be built again.
    """

    name: str
    text: str
    attempt: Callable[[Tokenizer, Build | None], None]
    is_for_streams: bool = False
    needs_build: bool = False

    def broken_by(self, tokenizer: Tokenizer, build: Build | None = None) -> str | None:
        """Try the rule.

        Args:
            tokenizer: the tokenizer, in eval mode.
            build: builds the same tokenizer again; None to leave out the rules that need it.

        Returns:
            What broke it, with the position in the tokenizer's code for exceptions; None if it holds or does not apply.
        """
        if not self.applies(tokenizer, build):
            return None
        try:
            with torch.inference_mode():
                self.attempt(tokenizer, build)
        except UsageError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 (code of the tokenizer's author)
            return error_line(error)
        return None

    def applies(self, tokenizer: Tokenizer, build: Build | None) -> bool:
        """Whether the rule applies to a tokenizer."""
        streams = bool(getattr(tokenizer, "supports_streaming", False))
        return (streams or not self.is_for_streams) and (build is not None or not self.needs_build)


def check(tokenizer: Tokenizer, build: Build | None = None) -> None:
    """Try every rule on a tokenizer.

    Args:
        tokenizer: the tokenizer; it is put into eval mode.
        build: builds the same tokenizer again, as every worker of a job does; None to leave out that rule.

    Raises:
        NotConforming: rules are broken; the message has a line for each.
    """
    first = RULES[0].broken_by(tokenizer, build)
    if first:
        # Without it, the others fail for this reason too.
        raise NotConforming(f"{RULES[0].name}: {first}")
    tokenizer.eval()
    broken = [f"{rule.name}: {found}" for rule in RULES[1:] if (found := rule.broken_by(tokenizer, build))]
    if broken:
        raise NotConforming("\n".join(broken))


def _video(tokenizer: Tokenizer, groups: int, seed: int = 0, extra: int = 0, batch: int = 1) -> Tensor:
    """Random video ``b c t h w`` of frame 0 and whole groups, plus ``extra`` frames and pixels."""
    s = 2 * tokenizer.spatial_factor + extra
    frames = 1 + groups * tokenizer.temporal_factor + extra
    generator = torch.Generator().manual_seed(seed)
    video = torch.rand(batch, 3, frames, s, s + tokenizer.spatial_factor, generator=generator) * 2 - 1
    return video.to(tokenizer.device)


def _declaration(tokenizer: Tokenizer, build: Build | None) -> None:
    check_declaration(tokenizer)


def _shapes(tokenizer: Tokenizer, build: Build | None) -> None:
    for groups, extra in ((0, 0), (2, 0), (1, 1)):
        video = _video(tokenizer, groups, extra=extra)
        t, h, w = video.shape[2:]
        check_codes(tokenizer, tokenizer.encode(video), (1, *tokenizer.latent_shape(t, h, w)))


def _video_shapes(tokenizer: Tokenizer, build: Build | None) -> None:
    for groups, extra in ((0, 0), (2, 0), (1, 1)):
        video = _video(tokenizer, groups, extra=extra)
        t, h, w = video.shape[2:]
        codes = tokenizer.encode(video)
        cropped, whole = (tokenizer.crop_size(codes.shape[1:], *kept) for kept in ((t, (h, w)), (None, None)))
        check_video(tokenizer.decode(codes, num_frames=t, size=(h, w)), (1, 3, *cropped))
        check_video(tokenizer.decode(codes), (1, 3, *whole))


def _random_codes(tokenizer: Tokenizer, build: Build | None) -> None:
    books = tokenizer.codebooks
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(books[0].size, (1, 1, 2, 3), generator=generator)
    later = torch.randint(books[-1].size, (1, 2, 2, 3), generator=generator)
    codes = torch.cat([first, later], dim=1).to(tokenizer.device)
    check_video(tokenizer.decode(codes), (1, 3, *tokenizer.crop_size(codes.shape[1:], None, None)))


def _deterministic(tokenizer: Tokenizer, build: Build | None) -> None:
    video, other = _video(tokenizer, 2), _video(tokenizer, 1, seed=1)
    before = video.clone()
    codes = tokenizer.encode(video)
    frames = tokenizer.decode(codes)
    # Another video in between must leave nothing behind.
    tokenizer.decode(tokenizer.encode(other))
    _require(torch.equal(video, before), "encode changes its input")
    _require(torch.equal(tokenizer.encode(video), codes), "a second encode of the same video gives other codes")
    _require(torch.equal(tokenizer.decode(codes), frames), "a second decode of the same codes gives another video")


def _batches(tokenizer: Tokenizer, build: Build | None) -> None:
    video = torch.cat([_video(tokenizer, 1), _video(tokenizer, 1, seed=1)])
    codes = tokenizer.encode(video)
    check_codes(tokenizer, codes, (2, *tokenizer.latent_shape(*video.shape[2:])))
    _require(torch.equal(tokenizer.encode(video[1:]), codes[1:]), "codes differ with the batch that a video is in")


def _refusals(tokenizer: Tokenizer, build: Build | None) -> None:
    codes = torch.zeros(1, 2, 2, 2, dtype=torch.long, device=tokenizer.device)
    codes[:, 1] = tokenizer.codebooks[-1].size
    _require_refusal(lambda: tokenizer.decode(codes), "decode of a code that is out of range")
    _require_refusal(lambda: tokenizer.decode(codes * 0, num_frames=999), "decode of too many frames")
    video = _video(tokenizer, 1)
    _require_refusal(lambda: tokenizer.encode(video * 3), "encode of pixels outside of [-1, 1]")
    _require_refusal(lambda: tokenizer.encode(video[0]), "encode of video without a batch axis")


def _chunks(tokenizer: Tokenizer, build: Build | None) -> None:
    r = tokenizer.temporal_factor
    video = _video(tokenizer, 3)
    frames = to_frames(video)
    expected = tokenizer.encode(to_video(frames).to(tokenizer.device))[0]
    for lengths in ([1 + 3 * r], [1, r, r, r], [1 + r, 2 * r], [1, 3 * r]):
        chunks = torch.as_tensor(frames).split(lengths)
        codes = torch.cat(list(iter_encode(tokenizer, chunks)))
        _require(torch.equal(codes, expected), f"chunks of {lengths} frames give other codes than encode")


def _decoded_chunks(tokenizer: Tokenizer, build: Build | None) -> None:
    video = _video(tokenizer, 3, extra=1)
    codes = tokenizer.encode(video)
    t, h, w = video.shape[2:]
    whole = to_frames(tokenizer.decode(codes, t, (h, w)))
    parts = list(iter_decode(tokenizer, codes[0], t, (h, w)))
    _require(sum(map(len, parts)) == t, f"decoding in steps gives {sum(map(len, parts))} frames, not {t}")
    joined = torch.cat([torch.as_tensor(part) for part in parts])
    _require(torch.equal(joined, torch.as_tensor(whole)), "decoding in steps gives other frames than decode")


def _states(tokenizer: Tokenizer, build: Build | None) -> None:
    r = tokenizer.temporal_factor
    video = torch.cat([_video(tokenizer, 2), _video(tokenizer, 2, seed=1)])
    _, state = tokenizer.encode_step(video[:, :, :1])
    check_state(state)
    codes, _ = tokenizer.encode_step(video[:, :, 1 : 1 + r], state)
    again, _ = tokenizer.encode_step(video[:, :, 1 : 1 + r], state)
    _require(torch.equal(codes, again), "encode_step changes the state that it is given")
    _, other = tokenizer.encode_step(video[:1, :, :1] * 0.5)
    stacked = StreamState.stack([other, state.select(1)])
    mixed, _ = tokenizer.encode_step(video[:, :, 1 : 1 + r], stacked)
    _require(torch.equal(mixed[1:], codes[1:]), "the codes of a stream depend on the other streams of the batch")
    empty = StreamState.stack([None, state.select(1)])
    padded, _ = tokenizer.encode_step(video[:, :, 1 : 1 + r], empty)
    _require(torch.equal(padded[1:], codes[1:]), "the codes of a stream depend on empty slots of the batch")


def _wrong_states(tokenizer: Tokenizer, build: Build | None) -> None:
    r = tokenizer.temporal_factor
    video = _video(tokenizer, 1)
    _, state = tokenizer.encode_step(video[:, :, :1])
    codes = tokenizer.encode(video)
    _require_refusal(lambda: tokenizer.decode_step(codes[:, 1:], state), "decode_step with a state of encode_step")
    wider = torch.cat([video, video], dim=4)[:, :, 1 : 1 + r]
    _require_refusal(lambda: tokenizer.encode_step(wider, state), "encode_step with a state of another frame size")


def _rebuilt(tokenizer: Tokenizer, build: Build | None) -> None:
    assert build
    other, video = build(), _video(tokenizer, 1)
    other.eval().to(tokenizer.device)
    codes = tokenizer.encode(video)
    _require(torch.equal(other.encode(video), codes), "a second instance gives other codes: its weights are random")
    _require(torch.equal(other.decode(codes), tokenizer.decode(codes)), "a second instance gives another video")
    stored = io.BytesIO()
    torch.save(tokenizer.state_dict(), stored)
    stored.seek(0)
    other.load_state_dict(torch.load(stored, weights_only=True))
    _require(torch.equal(other.encode(video), codes), "codes differ after state_dict and load_state_dict")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise UsageError(otherwise)


def _require_refusal(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except ValueError:
        return
    except Exception as error:
        raise UsageError(f"{what} raises {error_line(error)}; it must raise a ValueError") from error
    raise UsageError(f"{what} raises nothing; it must raise a ValueError")


RULES = (
    Rule("declaration", "The class, its factors, codebooks and device are declared.", _declaration),
    Rule("codes", "encode takes any frame count and size, and returns int64 codes of latent_shape.", _shapes),
    Rule("video", "decode returns the frames and size asked for, in [-1, 1].", _video_shapes),
    Rule("all-codes", "decode takes every code of the codebooks.", _random_codes),
    Rule("deterministic", "Equal input gives equal output, and calls leave nothing behind.", _deterministic),
    Rule("batches", "The codes of a video do not depend on its batch.", _batches),
    Rule("refusals", "Wrong input raises a ValueError.", _refusals),
    Rule("chunks", "encode_step gives the codes of encode, however a video is cut.", _chunks, is_for_streams=True),
    Rule("decoded-chunks", "decode_step gives the frames of decode.", _decoded_chunks, is_for_streams=True),
    Rule("states", "States are values: select and stack keep the codes of every stream.", _states, is_for_streams=True),
    Rule("wrong-states", "A state of other streams is refused.", _wrong_states, is_for_streams=True),
    Rule("rebuilt", "Every worker's instance gives the same codes.", _rebuilt, needs_build=True),
)
