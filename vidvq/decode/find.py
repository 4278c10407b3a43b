"""Which samples hold what is asked for, from their JSON alone."""

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from vidvq.decode.config import Stretch
from vidvq.formats.plan import read_plan
from vidvq.formats.token_index import TokenPlace, nearest
from vidvq.formats.token_shard import TokenInfo


@dataclass(frozen=True)
class Found:
    """A sample that has frames in a stretch, its JSON, and how many they are."""

    place: TokenPlace
    info: TokenInfo
    num_frames: int


def find_key(known: list[TokenPlace], key: str, tokens: Path) -> TokenPlace:
    """The sample with a key.

    Raises:
        ValueError: there is none.
    """
    for place in known:
        if place.key == key:
            return place
    near = nearest(key, [place.key for place in known])
    raise ValueError(f"key={key} is not in {tokens}{near}; `vidvq inspect` lists the keys of a shard")


def find_stretch(tokens: Path, known: list[TokenPlace], stretch: Stretch) -> list[Found]:
    """The samples that overlap a stretch of a video, in the order of their times.

    Raises:
        ValueError: the video is not in the tokens, nothing of it is in range, or two of the samples overlap.
    """
    of_source = _of_source(tokens, stretch.source)
    infos: list[tuple[TokenPlace, TokenInfo]] = []
    sources: set[str] = set()
    for place in known:
        if of_source is None or place.key in of_source:
            info = place.read_info()
            sources.add(info.source)
            if info.source == stretch.source:
                infos.append((place, info))
    if not infos:
        near = nearest(stretch.source, sorted(sources or _sources(tokens)))
        raise ValueError(f"source={stretch.source} is not in {tokens}{near}")
    infos.sort(key=lambda pair: times_of(pair[1])[0])
    found: list[Found] = []
    end = None
    for place, info in infos:
        times = times_of(info)
        count = sum(stretch.overlaps(*time) for time in times)
        if not count:
            continue
        if end is not None and times[0][0] < end:
            raise ValueError(f"{place.key} overlaps the clip before it; decode such clips one by one, --key")
        end = times[-1][0]
        found.append(Found(place, info, count))
    if not found:
        first, last = times_of(infos[0][1])[0][0], max(times_of(info)[-1][1] for _, info in infos)
        raise ValueError(
            f"from={_text(stretch.start)} to={_text(stretch.end)} holds no frame of {stretch.source}; its tokens are "
            f"from {float(first):g} to {float(last):g} seconds"
        )
    return found


def times_of(info: TokenInfo) -> list[tuple[Fraction, Fraction]]:
    """When each frame starts and ends, seconds on the source's timeline."""
    tick = info.seconds_per_tick
    end = info.pts[0] + info.duration
    last = max(end, info.pts[-1] + 1)
    return [(start * tick, after * tick) for start, after in pairwise((*info.pts, last))]


def _of_source(tokens: Path, source: str) -> set[str] | None:
    """The keys of a video where the plan names it: no JSON of other videos is then read."""
    rows = _rows(tokens)
    return {row["key"] for row in rows if row["source"] == source} if rows else None


def _sources(tokens: Path) -> set[str]:
    return {row["source"] for row in _rows(tokens)}


def _rows(tokens: Path) -> list[dict[str, str]]:
    folder = tokens.parent if tokens.is_file() else tokens
    if not (folder / "plan.json").is_file():
        return []
    return [row for _, rows in read_plan(folder).shards() for row in rows if row.get("source")]


def _text(edge: Fraction | None) -> str:
    return "-" if edge is None else f"{float(edge):g}"
