"""Which samples hold what is asked for, from their JSON alone."""

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import inf
from pathlib import Path

from vidvq.decode.config import Stretch
from vidvq.errors import UsageError
from vidvq.formats.arrow import find_rows
from vidvq.formats.plan import read_plan
from vidvq.formats.token_index import TokenLocation, suggest_nearest
from vidvq.formats.token_shard import TokenInfo

# The plan's seconds are floats; JSON is read of a neighbour more.
_SLACK_S = 0.001


@dataclass(frozen=True)
class Found:
    """A sample that has frames in a stretch, its JSON, and how many they are."""

    place: TokenLocation
    info: TokenInfo
    num_frames: int


def find_key(known: list[TokenLocation], key: str, tokens: Path) -> TokenLocation:
    """The sample with a key.

    Raises:
        UsageError: there is none.
    """
    for place in known:
        if place.key == key:
            return place
    near = suggest_nearest(key, [place.key for place in known])
    raise UsageError(f"key={key} is not in {tokens}{near}; `vidvq inspect` lists the keys of a shard")


def find_stretch(tokens: Path, known: list[TokenLocation], stretch: Stretch) -> list[Found]:
    """The samples that overlap a stretch of a video, in the order of their times.

    Raises:
        UsageError: the video is not in the tokens, nothing of it is in range, or two of the samples overlap.
    """
    wanted = _planned(tokens, known, stretch)
    infos: list[tuple[TokenLocation, TokenInfo]] = []
    sources: set[str] = set()
    for place in known:
        if wanted is None or place.key in wanted:
            info = place.read_info()
            sources.add(info.source)
            if info.source == stretch.source:
                infos.append((place, info))
    if not infos:
        near = suggest_nearest(stretch.source, sorted(sources))
        raise UsageError(f"source={stretch.source} is not in {tokens}{near}")
    infos.sort(key=lambda pair: times_of(pair[1])[0])
    found: list[Found] = []
    end = None
    for place, info in infos:
        times = times_of(info)
        count = sum(stretch.overlaps(*time) for time in times)
        if not count:
            continue
        if end is not None and times[0][0] < end:
            raise UsageError(f"{place.key} overlaps the clip before it; decode such clips one by one, --key")
        end = times[-1][0]
        found.append(Found(place, info, count))
    if not found:
        first, last = times_of(infos[0][1])[0][0], max(times_of(info)[-1][1] for _, info in infos)
        raise UsageError(
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


def _planned(tokens: Path, known: list[TokenLocation], stretch: Stretch) -> set[str] | None:
    """The keys of a stretch where the plan tells, as that of raw video does; None: every JSON is to be read."""
    folder = tokens.parent if tokens.is_file() else tokens
    table = read_plan(folder).table if (folder / "plan.json").is_file() else None
    if table is None or "begin_s" not in table.column_names:
        return None
    table = table.select(["key", "uri", "begin_s", "until_s"])
    rows = {row["key"]: row for row in find_rows(table, "uri", stretch.source).to_pylist()}
    first = next((place for place in known if place.key in rows), None)
    if first is None:
        return None
    # The plan counts from the video's first frame, a stretch on its timeline.
    zero = float(times_of(first.read_info())[0][0]) - rows[first.key]["begin_s"]
    from_s = -inf if stretch.start is None else float(stretch.start) - zero - _SLACK_S
    to_s = inf if stretch.end is None else float(stretch.end) - zero + _SLACK_S
    near = {key for key, row in rows.items() if row["until_s"] is not None and row["until_s"] > from_s}
    # Where nothing is near, all are read for the message.
    return {key for key in near if rows[key]["begin_s"] < to_s} or set(rows)


def _text(edge: Fraction | None) -> str:
    return "-" if edge is None else f"{float(edge):g}"
