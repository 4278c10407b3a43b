"""Tokens back to frames: exactly as many as came in, at their times."""

import shutil
from pathlib import Path

import numpy as np
import torch

from vidvq.decode.config import DecodeConfig
from vidvq.formats.commit import read_commit
from vidvq.formats.plan import read_plan
from vidvq.formats.token_shard import TokenInfo, read_tokenizer_card, read_tokens
from vidvq.log import progress
from vidvq.model import Tokenizer
from vidvq.model.checkpoint import load_tokenizer
from vidvq.model.pixels import to_frames
from vidvq.storage import attempt_path, sync_folder, write_atomic
from vidvq.video.encode import encode_mp4, encode_png


def run_decode(tokens: Path, checkpoint: Path, out: Path, config: DecodeConfig) -> int:
    """Decode token shards to files under ``out``.

    Args:
        tokens: a directory that ``vidvq tokenize`` wrote, or one shard in it.
        checkpoint: a checkpoint, or a training run, with the token fingerprint the tokens were made with.
        out: ``KEY.mp4`` or ``KEY/000000.png`` go here; a clip's files appear whole or not at all.
        config: how.

    Returns:
        How many clips were decoded.

    Raises:
        ValueError: another tokenizer's tokens, a damaged shard, a code out of range, or an unknown key.
    """
    folder = tokens.parent if tokens.is_file() else tokens
    written = read_tokenizer_card(folder)
    tokenizer, card = load_tokenizer(checkpoint)
    if card.token_fingerprint != written.token_fingerprint:
        raise ValueError(
            f"{folder} was made by tokenizer {written.token_fingerprint[:12]}, {checkpoint} is tokenizer "
            f"{card.token_fingerprint[:12]}; decode with a checkpoint of the first"
        )
    shards = [tokens] if tokens.is_file() else _committed(folder)
    tokenizer.to("cuda" if torch.cuda.is_available() else "cpu")
    decoded = 0
    with progress("decode", _count(folder, shards), "clips") as bar:
        for shard in shards:
            for key, codes, info in read_tokens(shard, written):
                if config.key in (None, key):
                    _write(out, key, decode_codes(tokenizer, codes, info), info, config)
                    decoded += 1
                bar.advance()
    if config.key and not decoded:
        raise ValueError(f"key={config.key} is not in {tokens}; `vidvq inspect` lists the keys of a shard")
    return decoded


@torch.inference_mode()
def decode_codes(tokenizer: Tokenizer, codes: np.ndarray, info: TokenInfo) -> np.ndarray:
    """Decode one grid of codes ``lt lh lw``; returns ``t h w c`` uint8, as many frames and pixels as came in."""
    grid = torch.from_numpy(codes.astype(np.int64))[None].to(tokenizer.device)
    return to_frames(tokenizer.decode(grid, num_frames=info.num_frames, size=(info.height, info.width)))


def _committed(folder: Path) -> list[Path]:
    shards = [folder / name for name, _ in read_plan(folder).shards()]
    for shard in shards:
        if read_commit(folder, shard.name) is None:
            raise ValueError(f"{folder}: {shard.name} is not committed; finish vidvq tokenize first")
    return [shard for shard in shards if shard.is_file()]


def _count(folder: Path, shards: list[Path]) -> int:
    commits = (read_commit(folder, shard.name) for shard in shards)
    return sum(commit.ok for commit in commits if commit)


def _write(out: Path, key: str, frames: np.ndarray, info: TokenInfo, config: DecodeConfig) -> None:
    if config.format == "mp4":
        write_atomic(out / f"{key}.mp4", encode_mp4(frames, info.pts, info.seconds_per_tick, config.crf, info.duration))
        return
    attempt = attempt_path(out / key)
    try:
        for index, frame in enumerate(frames):
            write_atomic(attempt / f"{index:06d}.png", encode_png(frame))
        if (out / key).exists():
            shutil.rmtree(out / key)
        attempt.replace(out / key)
    finally:
        shutil.rmtree(attempt, ignore_errors=True)
    sync_folder(out)
