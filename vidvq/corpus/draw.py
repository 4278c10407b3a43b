"""A sample of a corpus, and what it says of the whole."""

import random
from collections.abc import Iterable

from vidvq.corpus.inputs import Source
from vidvq.log import progress


def draw(sources: Iterable[Source], size: int) -> tuple[int, list[Source]]:
    """How many there are, and a uniform sample of them (reservoir sampling, Vitter's algorithm R), always the same."""
    dice = random.Random(0)
    sample: list[Source] = []
    count = 0
    with progress("list", None, "videos") as bar:
        for source in sources:
            count += 1
            bar.advance()
            if len(sample) < size:
                sample.append(source)
            elif (place := dice.randrange(count)) < size:
                sample[place] = source
    return count, sample


def tell_time(seconds: float, workers: int) -> str:
    """How long a job takes, in words."""
    hours, rest = divmod(round(seconds), 3600)
    return f"  takes about {hours}:{rest // 60:02d}:{rest % 60:02d} with {workers} workers"
