"""One key for each item of a plan over videos, whatever the hashes of their names are."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import pyarrow as pa

from vidvq.formats.arrow import compute
from vidvq.formats.keys import item_key, video_key, video_of
from vidvq.formats.rows import RowCodec
from vidvq.jobs.rows import VideoRow
from vidvq.jobs.stage import AnyVideoRow


def separate_keys(table: pa.Table, row: type[AnyVideoRow]) -> pa.Table:
    """The rows of a new plan, without a key that occurs twice.

    Where two videos have the same hash, the later one gets another. This depends on the order of the rows alone.
    """
    # The first item of each video stands for all of them.
    first = table["key"].filter(compute.equal(table["clip_index"], 0))
    if compute.count_distinct(first).as_py() == len(first):
        return table
    codec = RowCodec(row)
    return codec.to_table(assign_keys(codec.from_table(table), ()))


def assign_keys(rows: Iterable[AnyVideoRow], planned: Iterable[VideoRow]) -> Iterator[AnyVideoRow]:
    """Yield rows with the keys that their videos have in a plan, and with free keys for new videos.

    Keys that a stage makes by a rule of its own are left as they are.
    """
    videos: dict[str, str] = {}
    owners: dict[str, str] = {}
    for row in planned:
        video = videos.setdefault(row.source.identity, video_of(row.key))
        owners.setdefault(video, row.source.identity)
    for row in rows:
        identity, video = row.source.identity, video_of(row.key)
        if video != video_key(identity):
            yield row
            continue
        if identity not in videos:
            attempt = 0
            while owners.setdefault(video, identity) != identity:
                attempt += 1
                video = video_key(identity, attempt)
            videos[identity] = video
        yield replace(row, key=item_key(videos[identity], row.clip_index))
