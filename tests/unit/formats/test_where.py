"""The language of `where`: against a brute-force evaluator, and what it says of mistakes."""

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidvq.errors import UsageError
from vidvq.formats.where import MAX_CHARACTERS, MAX_DEPTH, Untyped, Where, matches

# A tree is a tuple (kind, ...); `render` writes it, `truth` evaluates it by tables, sharing nothing with the parser.
NUMBERS = st.one_of(st.integers(-5, 5), st.sampled_from([0.5, -1.25, 2.0, 1e3]))
TEXTS = st.text("ab%_'\"`\\ é#:", max_size=4)
COLUMNS = {"n": "number", "m": "number", "s": "text", "t": "text", "flag": "bool", "deep.x": "number"}
VALUES = {"number": NUMBERS, "text": TEXTS, "bool": st.booleans()}
ROWS = st.fixed_dictionaries(
    {name: st.one_of(st.none(), VALUES[kind]) for name, kind in COLUMNS.items() if name != "deep.x"}
    | {"deep": st.one_of(st.none(), st.fixed_dictionaries({"x": NUMBERS}))}
)


@st.composite
def predicates(draw):
    name = draw(st.sampled_from(sorted(COLUMNS)))
    kind = COLUMNS[name]
    literal = st.one_of(st.none(), VALUES[kind])
    others = [other for other, its in COLUMNS.items() if its == kind]
    form = draw(st.sampled_from(["compare", "columns", "null", "in", "like", "bare"]))
    signs = ["=", "==", "!=", "<>"] if kind == "bool" else ["=", "==", "!=", "<>", "<", "<=", ">", ">="]
    positive = draw(st.booleans())
    if form == "like" and kind == "text":
        return ("like", name, draw(TEXTS), positive)
    if form == "bare" and kind == "bool":
        return ("bare", name)
    if form == "columns":
        return ("compare", draw(st.sampled_from(signs)), ("column", name), ("column", draw(st.sampled_from(others))))
    if form == "null":
        return ("null", name, positive)
    if form == "in":
        return ("in", name, draw(st.lists(literal, min_size=1, max_size=4)), positive)
    sides = [("column", name), ("literal", draw(literal))]
    return ("compare", draw(st.sampled_from(signs)), *draw(st.permutations(sides)))


TREES = st.recursive(
    predicates(),
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner),
        st.tuples(st.sampled_from(["and", "or"]), inner, inner),
    ),
    max_leaves=12,
)


def text_of(value):
    if value is None or isinstance(value, bool):
        return {None: "null", True: "TRUE", False: "false"}[value]
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'" if '"' in value else f'"{value}"'
    return repr(value)


def side_of(side):
    return side[1] if side[0] == "column" else text_of(side[1])


def render(tree):
    match tree:
        case ("not", inner):
            return f"not ({render(inner)})"
        case ("and" | "or" as word, left, right):
            return f"({render(left)}) {word.upper()} ({render(right)})"
        case ("compare", sign, left, right):
            return f"{side_of(left)}{sign} {side_of(right)}"
        case ("null", name, positive):
            return f"{name} is {'' if positive else 'not '}null"
        case ("in", name, values, positive):
            return f"{name} {'' if positive else 'not '}in ({', '.join(map(text_of, values))})"
        case ("like", name, pattern, positive):
            return f"{name} {'' if positive else 'NOT '}like {text_of(pattern)}"
        case ("bare", name):
            return f"`{name}`"


def value_of(row, name):
    return (row["deep"] or {}).get("x") if name == "deep.x" else row[name]


def compare(sign, a, b):
    if a is None or b is None:
        return None
    return {
        "=": a == b,
        "==": a == b,
        "!=": a != b,
        "<>": a != b,
        "<": not isinstance(a, bool) and a < b,
        "<=": not isinstance(a, bool) and a <= b,
        ">": not isinstance(a, bool) and a > b,
        ">=": not isinstance(a, bool) and a >= b,
    }[sign]


def like(text, pattern):
    """By all ways to split: slow, and plain."""
    if not pattern:
        return not text
    if pattern[0] == "%":
        return any(like(text[start:], pattern[1:]) for start in range(len(text) + 1))
    return bool(text) and pattern[0] in ("_", text[0]) and like(text[1:], pattern[1:])


NOT = {True: False, False: True, None: None}
# SQL's tables: of the two, the lesser for `and`, the greater for `or`, where false < null < true.
RANK = {False: 0, None: 1, True: 2}


def truth(tree, row):
    match tree:
        case ("not", inner):
            return NOT[truth(inner, row)]
        case ("and", left, right):
            return min(truth(left, row), truth(right, row), key=RANK.__getitem__)
        case ("or", left, right):
            return max(truth(left, row), truth(right, row), key=RANK.__getitem__)
        case ("compare", sign, left, right):
            sides = [value_of(row, side[1]) if side[0] == "column" else side[1] for side in (left, right)]
            return compare(sign, *sides)
        case ("null", name, positive):
            return (value_of(row, name) is None) == positive
        case ("in", name, values, positive):
            found = max((compare("=", value_of(row, name), value) for value in values), key=RANK.__getitem__)
            return found if positive else NOT[found]
        case ("like", name, pattern, positive):
            text = value_of(row, name)
            found = None if text is None else like(text, pattern)
            return found if positive else NOT[found]
        case ("bare", name):
            return value_of(row, name)


@settings(max_examples=400, deadline=None)
@given(TREES, ROWS)
def test_it_agrees_with_brute_force(tree, row):
    expression = Where(render(tree))
    assert expression.selects(row) is (truth(tree, row) is True), render(tree)
    assert Where(f"not ({render(tree)})").selects(row) is (truth(tree, row) is False)
    assert Where(f"({render(tree)}) or not ({render(tree)})").selects(row) is (truth(tree, row) is not None)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(), st.text("()',\"`=<>!.notadrikeu0123456789 ", max_size=60)))
def test_any_text_is_an_expression_or_a_usage_error(text):
    try:
        expression = Where(text)
        expression.check_columns({"a"})
        expression.selects({"a": 1})
    except UsageError as error:
        assert ("\n" not in text and str(error)[:5] == "where") or "\n" in text


@settings(max_examples=300, deadline=None)
@given(st.text("ab%_", max_size=8), st.text("ab%_", max_size=6))
def test_like_agrees_with_brute_force(text, pattern):
    assert matches(text, pattern) == like(text, pattern)


def test_and_binds_closer_than_or_and_not_closer_than_and():
    assert Where("true or true and false").selects({})
    assert not Where("(true or true) and false").selects({})
    assert Where("not false and true").selects({})
    assert not Where("not (false or true)").selects({})
    assert Where("not a = 1").selects({"a": 2})


def test_it_reads_as_the_documentation_says():
    row = {"motion": 0.5, "caption": "abc def", "carried": {"caption": "x", "deep": {"id": 7}}, "my col": 1}
    for text in (
        "motion > 0.02 and caption is not null",
        "caption like 'abc%' and not caption like 'b%'",
        "caption like '%d_f'",
        'carried.caption = "x" and carried.deep.id in (6, 7)',
        "`my col` = 1",
        "motion>=.5 AND motion<=5e-1",
        "missing is null",
        "caption != 'it''s'",
    ):
        assert Where(text).selects(row), text


def test_nan_counts_as_null():
    assert Where("a is null and not b is null").selects({"a": math.nan, "b": 1.0})
    assert not Where("a < 1 or a >= 1").selects({"a": math.nan})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "where='', character 1: it ends, wanted a column, number, text in quotes, true, false or null"),
        ("a >", "character 4: it ends, wanted a column"),
        ("a > 1 b", "character 7: got b, wanted the end, and, or or"),
        ("a > 1 and", "character 10: it ends, wanted a column"),
        ("(a > 1", "character 7: it ends, wanted )"),
        ("a < b < c", "character 7: got <, wanted the end, and, or or"),
        ("a in 1", "character 6: got 1, wanted ("),
        ("a in ()", "character 7: got ), wanted a column, number"),
        ("a in (b)", "character 7: got b, wanted a column, number"),
        ("a not 1", "character 7: got 1, wanted in or like"),
        ("a is 1", "character 6: got 1, wanted null"),
        ("a like b", "character 8: got b, wanted text in quotes"),
        ("a = 'x", 'character 5: "\'x" is not part of an expression'),
        ("a = 1; drop", "character 6: '; drop' is not part of an expression"),
        ("__import__('os')", "character 11: got (, wanted the end, and, or or"),
        ("a.b()", "character 4: got (, wanted the end"),
        ("a = 1.2.3", "is not part of an expression"),
        ("not " * (MAX_DEPTH + 1) + "a", f"nested deeper than {MAX_DEPTH} times"),
        ("(" * (MAX_DEPTH + 1) + "a" + ")" * (MAX_DEPTH + 1), f"nested deeper than {MAX_DEPTH} times"),
        ("a" * (MAX_CHARACTERS + 1), f"has {MAX_CHARACTERS + 1} characters; at most {MAX_CHARACTERS} are allowed"),
    ],
)
def test_a_syntax_error_names_its_position(text, message):
    with pytest.raises(UsageError) as error:
        Where(text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a > 1", "column a (character 1) is 'x' and 1 is 1; they cannot be compared by >"),
        ("1 = a", "1 is 1 and column a (character 5) is 'x'; they cannot be compared by ="),
        ("flag > true", "column flag (character 1) is True and True is True; they cannot be compared by >"),
        ("flag = 1", "cannot be compared by ="),
        ("many = 1", "column many (character 1) is [1] and 1 is 1; they cannot be compared by ="),
        ("n like 'a'", "column n (character 1) is 3; like takes text"),
        ("n", "column n (character 1) is 3; alone it must be true or false"),
        ("n and flag", "column n (character 1) is 3; alone it must be true or false"),
    ],
)
def test_types_do_not_mix(text, message):
    with pytest.raises(UsageError) as error:
        Where(text).selects({"a": "x", "flag": True, "many": [1], "n": 3})
    assert f"where={text!r}: {message}" in str(error.value) or message in str(error.value)


def test_untyped_text_counts_as_what_it_is_compared_with():
    row = {"n": Untyped("10"), "id": Untyped("12345678901234567"), "flag": Untyped("True"), "word": Untyped("x")}
    for text in (
        "n > 9",
        "n = 1e1",
        "n = '10'",
        "id = 12345678901234567",
        "flag",
        "flag = true",
        "word = 'x'",
        "n in (10)",
    ):
        assert Where(text).selects(row), text
    assert not Where("id = 12345678901234568").selects(row)
    assert Where("n > 1e300").selects({"n": Untyped("9" * 400)}), "no float holds it"
    for text, message in (
        ("word > 1", "column word (character 1) is 'x'; it must be a number"),
        ("word", "it must be true or false"),
        ("n < id", "are of a list without types"),
    ):
        with pytest.raises(UsageError) as error:
            Where(text).selects(row)
        assert message in str(error.value)


def test_an_unknown_column_names_its_position_and_the_nearest():
    with pytest.raises(UsageError) as error:
        Where("fps > 1 and moton > 2").check_columns({"fps", "motion"})
    assert str(error.value) == (
        "where='fps > 1 and moton > 2', character 13: there is no column moton; did you mean motion?"
    )
    with pytest.raises(UsageError, match=r"there is no column zzz; the columns are fps, motion"):
        Where("zzz = 1").check_columns({"fps", "motion"})


def test_no_pattern_takes_long():
    began = time.process_time()
    assert not matches("a" * 5000, "%a" * 200 + "b")
    assert Where(" or ".join(["a = 1"] * 1000)).selects({"a": 1})
    assert time.process_time() - began < 5
