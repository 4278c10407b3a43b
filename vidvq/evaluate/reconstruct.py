"""Sources of codes and reconstructions: decoded files, or a tokenizer in this process."""

from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from vidvq.config import is_mapping
from vidvq.errors import UsageError
from vidvq.formats.clip_shard import ClipInfo
from vidvq.formats.commit import read_commits
from vidvq.formats.decoded import DECODE_SETTINGS
from vidvq.formats.plan import Plan, read_plan
from vidvq.formats.token_shard import TokenizerCard, read_tokenizer_card, read_tokens
from vidvq.storage import read_json


class Reconstructor(Protocol):
    """Gives codes and reconstructions of clips.

    Attributes:
        name: name in tables.
    """

    name: str
    card: TokenizerCard

    def has(self, key: str) -> bool:
        """Whether there is a reconstruction of a clip."""
        ...

    def reconstruct(self, key: str, original: np.ndarray, info: ClipInfo) -> tuple[np.ndarray, np.ndarray]:
        """Return the codes ``lt lh lw`` and the reconstructed frames ``t h w c`` uint8 of a clip.

        Raises:
            UsageError: they do not belong to the clip.
        """
        ...


class DecodedFiles:
    """Frames that `vidvq decode ... format=png` wrote, and the tokens that they were decoded from.

    Raises:
        UsageError: the frames are in files of another format, or were decoded from tokens of another tokenizer.
    """

    def __init__(self, decoded: Path, tokens: Path) -> None:
        self.name = ""
        self.card = read_tokenizer_card(tokens)
        # Frames of another decoder have no record.
        record = read_json(decoded / DECODE_SETTINGS) if (decoded / DECODE_SETTINGS).is_file() else None
        if is_mapping(record) and (kind := record.get("format", "png")) != "png":
            raise UsageError(f"{decoded} has {kind} files; decode the tokens with format=png, which is lossless")
        if is_mapping(record) and record.get("token_fingerprint") != self.card.token_fingerprint:
            raise UsageError(
                f"{decoded} was decoded from tokens of another tokenizer than {tokens}; give the tokens that it was "
                "decoded from"
            )
        self._decoded = decoded
        self._grids = {key: codes for shard in list_shards(tokens) for key, codes, _ in read_tokens(shard, self.card)}

    @property
    def keys(self) -> set[str]:
        """Keys of the clips with tokens."""
        return set(self._grids)

    def has(self, key: str) -> bool:
        """Whether there are tokens of a clip."""
        return key in self._grids

    def reconstruct(self, key: str, original: np.ndarray, info: ClipInfo) -> tuple[np.ndarray, np.ndarray]:
        """Read the frames of a clip; see :class:`Reconstructor`."""
        frames = read_frames(self._decoded / key)
        if original.shape != frames.shape:
            raise UsageError(
                f"{self._decoded / key} has frames of shape {frames.shape}, but clip {key} has {original.shape}; "
                "decode the tokens of these clips"
            )
        return self._grids[key], frames


class InProcess:
    """A tokenizer that encodes and decodes as `vidvq tokenize` and `vidvq decode` do.

    On a CPU, codes and frames are those of these commands with their default settings. On a GPU, the networks run in
    fp32.

    Args:
        checkpoint: checkpoint, training run, or other tokenizer that these commands take.
        name: name in tables.

    Attributes:
        scale: factor by which clips are reduced before encoding; set to that of the decoder. A decoder that enlarges
            less is followed by a bicubic enlargement.

    Raises:
        UsageError: there is no tokenizer, or it is damaged.
    """

    def __init__(self, checkpoint: Path, name: str) -> None:
        import torch

        from vidvq.model.step_shape import GPU_STREAM
        from vidvq.pretrained import find_tokenizer, load_tokenizer
        from vidvq.pretrained.device import find_fp32_device

        # One thread, as in the commands: threads split sums.
        torch.set_num_threads(1)
        self.name = name
        self._tokenizer, self.card = load_tokenizer(find_tokenizer(checkpoint))
        device = find_fp32_device()
        self._tokenizer.to(device)
        if device == "cuda":
            self._tokenizer.step_shape = self._tokenizer.decode_shape = GPU_STREAM
        self.scale = self._tokenizer.upscale

    def share_scale(self, scale: int) -> None:
        """Reduce clips by the factor of another tokenizer, to compare both."""
        self.scale = scale
        if scale != self._tokenizer.upscale:
            self.name += f" + bicubic x{scale // self._tokenizer.upscale}"

    def has(self, key: str) -> bool:
        """True: every clip can be reconstructed."""
        return True

    def reconstruct(self, key: str, original: np.ndarray, info: ClipInfo) -> tuple[np.ndarray, np.ndarray]:
        """Encode and decode a clip; see :class:`Reconstructor`."""
        import torch

        from vidvq.model import iter_decode, iter_encode
        from vidvq.model.enlarge import enlarge_frames, shrink_frames

        given = shrink_frames(original, self.scale)
        try:
            codes = torch.cat(list(iter_encode(self._tokenizer, [given]))).cpu().numpy()
            frames = np.concatenate(list(iter_decode(self._tokenizer, codes, len(given), given.shape[1:3])))
        except UsageError as error:
            raise UsageError(f"clip {key}: {error}") from error
        frames = enlarge_frames(frames, self.scale // self._tokenizer.upscale)
        return codes, frames[:, : original.shape[1], : original.shape[2]]


def list_shards(folder: Path, plan: Plan | None = None) -> list[Path]:
    """Paths of the existing shards of a directory, whose plan is read unless it is given."""
    return [path for name in (plan or read_plan(folder)).shard_names() if (path := folder / name).is_file()]


def missing_shards(folder: Path) -> str:
    """Describe how many shards of a directory are missing: not finished, or lost; "" if none are."""
    names = list(read_plan(folder).shard_names())
    pairs = zip(names, read_commits(folder, names), strict=True)
    # A shard without a file is one whose items all failed.
    lost = [name for name, commit in pairs if (not commit or commit.sha256) and not (folder / name).is_file()]
    return f"{len(lost)} of {len(names)} shards of {folder} are missing ({lost[0]}, ...)" if lost else ""


def read_frames(folder: Path) -> np.ndarray:
    """Read the frames ``t h w c`` uint8 of a clip that was decoded with ``format=png``.

    Raises:
        UsageError: there are none, or they are damaged or of several sizes.
    """
    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise UsageError(f"{folder} has no frames; run vidvq decode with format=png first")
    frames: list[np.ndarray] = []
    for path in paths:
        try:
            with Image.open(path) as image:
                frames.append(np.asarray(image.convert("RGB")))
        except OSError as error:
            # Those of Pillow have no errno.
            if error.errno is not None:
                raise
            raise UsageError(f"{path} is not a readable picture; decode the tokens again") from error
    if len({frame.shape for frame in frames}) > 1:
        raise UsageError(f"{folder} has frames of several sizes; decode the tokens again")
    return np.stack(frames)
