"""The location of one token sample, for random access."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidvq.errors import UsageError
from vidvq.formats.tar import BLOCK_BYTES, read_header
from vidvq.formats.token_shard import TokenInfo, TokenizerCard, parse_info, parse_tokens

_VERIFY = "run vidvq verify on its directory"


@dataclass(frozen=True)
class TokenLocation:
    """The location of one sample.

    Attributes:
        shard: file of the shard.
        key: key of the sample.
        members: extension, offset (bytes) and size (bytes) of each member.
    """

    shard: Path
    key: str
    members: tuple[tuple[str, int, int], ...]

    def read_info(self) -> TokenInfo:
        """Read the JSON of the sample only.

        Raises:
            UsageError: it is missing or damaged.
        """
        return parse_info(self._files({"json"}), f"{self.shard}: {self.key}")

    def read(self, card: TokenizerCard) -> tuple[np.ndarray, TokenInfo]:
        """Read the codes ``lt lh lw`` and the JSON.

        Raises:
            UsageError: see :func:`vidvq.formats.token_shard.parse_tokens`.
        """
        return parse_tokens(self._files(None), card, f"{self.shard}: {self.key}")

    def _files(self, wanted: set[str] | None) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        with self.shard.open("rb") as file:
            for extension, offset, size in self.members:
                if wanted is None or extension in wanted:
                    # What lies there must be the member that the record names, else a clip gets another one's key.
                    file.seek(offset - BLOCK_BYTES)
                    if read_header(file) != (f"{self.key}.{extension}", size):
                        raise UsageError(
                            f"{self.shard}: {self.key}.{extension} is not where its record says; {_VERIFY}"
                        )
                    files[extension] = file.read(size)
        return files
