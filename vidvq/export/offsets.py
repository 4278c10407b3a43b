"""Layout shared by litdata chunks and MDS shards: count and ``count + 1`` byte offsets (uint32), then the samples."""

from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np

from vidvq.errors import UsageError

_MAX_BYTES = 1 << 32


def write_samples(file: IO[bytes], count: int, samples: Iterable[bytes], header: bytes = b"") -> None:
    """Write samples one by one after space reserved for their offsets, then the offsets; the file stays open.

    Args:
        file: empty, seekable file.
        count: number of samples.
        header: bytes between the offsets and the samples.

    Raises:
        UsageError: the file would be larger than its format can address.
    """
    offsets = [4 * (count + 2) + len(header)]
    file.write(bytes(4 * (count + 2)) + header)
    for sample in samples:
        offsets.append(offsets[-1] + len(sample))
        if offsets[-1] >= _MAX_BYTES:
            raise UsageError(
                f"a token shard exports to more than {_MAX_BYTES} bytes, the limit of a litdata or MDS file; "
                "tokenize into smaller shards, or export --to another target"
            )
        file.write(sample)
    file.seek(0)
    # If fewer or more samples came than ``count``, the file is invalid; the job then refuses it by its clip count.
    file.write(np.array([count, *offsets], dtype="<u4").tobytes()[: 4 * (count + 2)])


def read_offsets(path: Path) -> np.ndarray:
    """Byte offsets of the samples and of the end, int64.

    Raises:
        UsageError: the offsets do not match the size of the file.
    """
    with path.open("rb") as file:
        count = int.from_bytes(file.read(4), "little")
        size = path.stat().st_size
        offsets = np.frombuffer(file.read(4 * (count + 1)) if 4 * (count + 2) <= size else b"", dtype="<u4")
    if len(offsets) != count + 1 or (np.diff(offsets.astype(np.int64)) < 0).any() or offsets[-1] != size:
        raise UsageError(f"its offsets do not match its {size} bytes")
    return offsets.astype(np.int64)
