"""The location of one token sample, for random access."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidvq.errors import UsageError
from vidvq.formats.tar import BLOCK_BYTES, parse_header
from vidvq.formats.token_shard import TokenInfo, TokenizerCard, parse_info, parse_tokens
from vidvq.storage import read_range

_VERIFY = "run vidvq verify on its directory"


@dataclass(frozen=True, slots=True)
class TokenLocation:
    """The location of one sample.

    Attributes:
        shard: file of the shard.
        key: key of the sample.
        offset: offset of the sample's first tar header in the shard (bytes).
        members: extension, offset from ``offset`` (bytes) and size (bytes) of each member, in order. Samples with equal
            members share the tuple.
    """

    shard: Path
    key: str
    offset: int
    members: tuple[tuple[str, int, int], ...]

    def read_info(self) -> TokenInfo:
        """Read the JSON of the sample only.

        Raises:
            UsageError: it is missing or damaged.
        """
        members = tuple(member for member in self.members if member[0] == "json")
        return parse_info(self._files(members), f"{self.shard}: {self.key}")

    def read(self, card: TokenizerCard) -> tuple[np.ndarray, TokenInfo]:
        """Read the codes ``lt lh lw`` and the JSON.

        Raises:
            UsageError: see :func:`vidvq.formats.token_shard.parse_tokens`.
        """
        return parse_tokens(self._files(self.members), card, f"{self.shard}: {self.key}")

    def _files(self, members: tuple[tuple[str, int, int], ...]) -> dict[str, bytes]:
        """Read members with one request."""
        if not members:
            return {}
        first, end = members[0][1] - BLOCK_BYTES, members[-1][1] + members[-1][2]
        data = read_range(self.shard, self.offset + first, end - first)
        files: dict[str, bytes] = {}
        for extension, offset, size in members:
            start = offset - first
            # What lies there must be the member that the record names, else a clip gets another one's key.
            if parse_header(data[start - BLOCK_BYTES : start]) != (f"{self.key}.{extension}", size):
                raise UsageError(f"{self.shard}: {self.key}.{extension} is not where its record says; {_VERIFY}")
            files[extension] = data[start : start + size]
        return files
