"""Columns beside clips: what may be a column, and the reader of all columns of a directory."""

import numpy as np
import pyarrow as pa
import pytest

from vidvq.errors import UsageError
from vidvq.formats.columns import ColumnSet, check_columns, column_files, parse_columns
from vidvq.formats.plan import Plan, PlanHeader
from vidvq.formats.selection import _refuse_unusable


@pytest.mark.parametrize("clips", [None, [], "x", {}, {"plan_id": "b"}])
def test_columns_of_other_clips_are_refused(tmp_path, clips):
    header = PlanHeader("map", {"clips": clips}, 0, 0, 0, "columns", "plan.parquet", "0" * 64, None)
    columns = ColumnSet("motion", tmp_path, Plan((header,), pa.table({}), {}), frozenset(), "", "")
    with pytest.raises(UsageError, match="was made from an earlier state of"):
        _refuse_unusable(columns, tmp_path, Plan((header,), pa.table({}), {}))


def test_what_is_written_is_read():
    values = {"text": "é '\n", "count": 3, "score": 0.1, "flag": True, "none": None}
    assert parse_columns(column_files(values), "x") == values


def test_scalars_of_numpy_become_plain_numbers():
    found = check_columns({"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(True), "d": np.array(2.0)})
    assert found == {"a": 0.5, "b": 3, "c": True, "d": 2.0}
    assert [type(value) for value in found.values()] == [float, int, bool, float]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "returned NoneType; a function returns a dict of columns"),
        ([1], "returned list; a function returns a dict of columns"),
        ({"a b": 1}, "column 'a b' must be a name of up to 64 letters, digits and underscores"),
        ({"a.b": 1}, "column 'a.b' must be a name"),
        ({"é": 1}, "column 'é' must be a name"),
        ({1: 1}, "column 1 must be a name"),
        ({"a" * 65: 1}, "must be a name of up to 64"),
        ({"fps": 1}, "column 'fps' has a reserved name"),
        ({"Null": 1}, "column 'Null' has a reserved name"),
        ({"a": float("nan")}, "column a is nan; a number must be finite, None stands for no value"),
        ({"a": np.float32("inf")}, "column a is inf; a number must be finite"),
        ({"a": 1 << 63}, "column a is 9223372036854775808; an integer must fit into 64 bits"),
        ({"a": "\ud800"}, "column a is text that UTF-8 cannot hold"),
        ({"a": [1]}, "column a is list; it must be text, a number, a bool or None"),
        ({"a": np.zeros(2)}, "column a is ndarray; it must be text"),
        ({"a": b"x"}, "column a is bytes; it must be text"),
        ({f"c{i}": 1 for i in range(1001)}, "returned 1001 columns; at most 1000 are allowed"),
    ],
)
def test_what_is_no_column_is_refused(values, message):
    with pytest.raises(UsageError) as error:
        check_columns(values)
    assert str(error.value).startswith(message) or message in str(error.value)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"json": b"{"},
        {"json": b"[]"},
        {"json": b'{"columns":{},"format":"vidvq.clip/1"}'},
        {"json": b'{"format":"vidvq.columns/1"}'},
        {"json": b'{"columns":{"a":[1]},"format":"vidvq.columns/1"}'},
        {"json": b'{"columns":{},"format":"vidvq.columns/1"}', "txt": b""},
    ],
)
def test_a_sample_of_another_format_is_refused(files):
    with pytest.raises(UsageError, match=r"^KEY has no readable columns: "):
        parse_columns(files, "KEY")
