"""Message for a GPU whose memory is full."""

from collections.abc import Iterator
from contextlib import contextmanager
from socket import gethostname

import torch

from vidvq.errors import JobStopped


@contextmanager
def stopping_when_full(what: str, remedy: str) -> Iterator[None]:
    """Stop the job with a message if the memory of the GPU is full.

    Args:
        what: what was computed.
        remedy: how it needs less memory.

    Raises:
        JobStopped: the memory is full.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise JobStopped(
            f"{what} does not fit the memory of the GPU of {gethostname()}; free what other processes use, or {remedy}"
        ) from error
