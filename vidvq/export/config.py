"""Settings of `vidvq export`."""

from dataclasses import dataclass

from vidvq.formats.sequence import SequenceConfig


@dataclass(frozen=True)
class ExportConfig(SequenceConfig):
    """Settings of `vidvq export`.

    Attributes:
        samples: whether to write the tokenizer card and the metadata of each clip beside the ids, from which
            `vidvq generate train` restores the grids; ``megatron`` only.
    """

    samples: bool = False
