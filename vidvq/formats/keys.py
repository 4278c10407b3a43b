"""Keys of items that are cut from videos: ``STEM-HASH-INDEX``.

The stem is the readable part of the video's name, in any script. The hash (96 bits) is that of the video's identity.
The index is that of the item among those of its video. No two videos of a plan share a hash: if two collide, the
planner takes another one for the later video (see :mod:`vidvq.jobs.unique_keys`). A plan keeps its keys as data, so
directories that were planned with another scheme stay valid.
"""

import unicodedata
from pathlib import Path

from vidvq.storage import sha256_bytes

# The scheme of new keys, which a plan records. Scheme 1 (not recorded) had 40 bits, and Latin stems alone.
SCHEME = 2
_HASH_DIGITS = 24
# A member of a tar may have 100 bytes, of which the hash, the index and the longest extension take 48.
_STEM_BYTES = 40


def video_key(identity: str, attempt: int = 0) -> str:
    """The common part of the keys of a video's items, without a dot.

    Args:
        attempt: number of hashes of this identity that other videos of the plan have already.
    """
    stem = unicodedata.normalize("NFC", Path(identity).stem.lower())
    words = "".join(char if unicodedata.category(char)[0] in "LMN" else " " for char in stem).split()
    short = "-".join(words).encode()[:_STEM_BYTES].decode(errors="ignore").strip("-") or "video"
    # No path has a null character.
    return f"{short}-{sha256_bytes((identity + attempt * chr(0)).encode())[:_HASH_DIGITS]}"


def item_key(video: str, index: int) -> str:
    """The key of one item.

    Args:
        video: common part of the keys, of :func:`video_key`.
        index: index of the item among those of its video.
    """
    return f"{video}-{index:05d}"


def video_of(key: str) -> str:
    """The common part of the keys of a video's items, from one of them; of any scheme."""
    return key.rpartition("-")[0]
