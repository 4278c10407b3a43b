"""The language of ``where``: an expression over the columns of a row, with the rules of SQL for null.

    or:          and {"or" and}
    and:         not {"and" not}
    not:         "not" not | predicate
    predicate:   operand [comparison operand | ["not"] "in" "(" literal {"," literal} ")" | ["not"] "like" text
                 | "is" ["not"] "null"] | "(" or ")"
    comparison:  "=" | "==" | "!=" | "<>" | "<" | "<=" | ">" | ">="
    operand:     column | literal
    literal:     number | 'text' | "text" | true | false | null

A column is a name, with dots for fields of fields (``carried.caption``), or anything in backquotes. Keywords are not
case-sensitive; column names and text are. A comparison with null is null, and so is its negation; a row is selected if
the expression is true. In ``like``, ``%`` stands for any text and ``_`` for one character. Text, numbers and bools
compare among themselves alone. Nothing is ever evaluated as Python.
"""

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from operator import eq, ge, gt, le, lt, ne
from typing import Any, NoReturn, TypeAlias, cast

from vidvq.errors import UsageError

Truth: TypeAlias = bool | None
Row: TypeAlias = Mapping[str, Any]
MAX_CHARACTERS = 10_000
MAX_DEPTH = 50
KEYWORDS = frozenset({"and", "or", "not", "in", "is", "like", "null", "true", "false"})
_TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    | (?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)
    | (?P<quoted>`[^`]+`)
    | (?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
    | (?P<sign><=|>=|<>|!=|==|=|<|>|\(|\)|,)
    | (?P<end>\Z)
    )""",
    re.VERBOSE | re.ASCII,
)
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {"=": eq, "!=": ne, "<": lt, "<=": le, ">": gt, ">=": ge}
_SAME = {"==": "=", "<>": "!="}


class Untyped(str):
    """Text of a file without types, such as csv: it counts as a number or bool where it is compared with one."""


class Where:
    """An expression, parsed.

    Args:
        text: the expression.

    Attributes:
        text: the expression.
        columns: name of each column in it -> its position in the text (from 1).

    Raises:
        UsageError: it is not an expression; names the position.
    """

    def __init__(self, text: str, setting: str = "where") -> None:
        self.text, self._setting = text, setting
        if len(text) > MAX_CHARACTERS:
            raise UsageError(f"{setting} has {len(text)} characters; at most {MAX_CHARACTERS} are allowed")
        parser = _Parser(text, setting)
        self._condition = parser.parse()
        self.columns: dict[str, int] = parser.columns

    def selects(self, row: Row) -> bool:
        """Whether the expression is true for a row; a column that the row lacks is null.

        Args:
            row: column name -> text, number, bool or None; a column of another type can only be compared with null.

        Raises:
            UsageError: values of different types are compared.
        """
        try:
            return self._condition(row) is True
        except _TypeClash as clash:
            raise UsageError(f"{self._setting}={self.text!r}: {clash}") from clash

    def check_columns(self, known: Collection[str]) -> None:
        """Refuse an unknown column.

        Raises:
            UsageError: names it, its position and the nearest name there is.
        """
        for name, position in self.columns.items():
            if name not in known:
                near = difflib.get_close_matches(name, sorted(known), 1, 0.5)
                there = f"did you mean {near[0]}?" if near else f"the columns are {', '.join(sorted(known)) or 'none'}"
                raise UsageError(
                    f"{self._setting}={self.text!r}, character {position}: there is no column {name}; {there}"
                )


def look_up(row: Row, name: str) -> Any:
    """The value of a column: by its whole name, else through its dots; None if there is none."""
    if name in row:
        return row[name]
    head, dot, rest = name.partition(".")
    inner = row.get(head) if dot else None
    return look_up(cast(Row, inner), rest) if isinstance(inner, Mapping) else None


class _TypeClash(Exception):
    """Values that cannot be compared."""


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    position: int


# Conditions are closures over their parts, built by the parser: nothing is left to interpret for each row.
_Condition: TypeAlias = Callable[[Row], Truth]


@dataclass(frozen=True)
class _Operand:
    """A column (``value`` is unused), or a literal (``name`` is "")."""

    name: str
    value: Any
    position: int

    def of(self, row: Row) -> Any:
        """Its value in a row; null for NaN, which SQL does not have."""
        if not self.name:
            return self.value
        value = look_up(row, self.name)
        return None if isinstance(value, float) and math.isnan(value) else value

    def __str__(self) -> str:
        return f"column {self.name} (character {self.position})" if self.name else f"{self.value!r}"


class _Parser:
    def __init__(self, text: str, setting: str) -> None:
        self._text, self._setting = text, setting
        self.columns: dict[str, int] = {}
        self._tokens = list(self._scan())
        self._at = 0
        self._depth = 0

    def parse(self) -> _Condition:
        condition = self._or()
        if self._token.kind != "end":
            self._refuse("the end, and, or or")
        return condition

    def _scan(self) -> Iterator[_Token]:
        at = 0
        while True:
            match = _TOKEN.match(self._text, at)
            if not match:
                start = len(self._text) - len(self._text[at:].lstrip())
                found = self._text[start : start + 20]
                raise UsageError(f"{self._where(start + 1)}: {found!r} is not part of an expression")
            kind = match.lastgroup or ""
            text = match[kind]
            if kind == "name" and text.lower() in KEYWORDS:
                kind, text = "keyword", text.lower()
            yield _Token(kind, text, match.start(match.lastgroup or 0) + 1)
            if kind == "end":
                return
            at = match.end()

    @property
    def _token(self) -> _Token:
        return self._tokens[self._at]

    def _next(self) -> _Token:
        self._at += 1
        return self._tokens[self._at - 1]

    def _take(self, *texts: str) -> bool:
        """Pass the next token if it is one of some keywords or signs."""
        if self._token.kind in {"keyword", "sign"} and self._token.text in texts:
            self._at += 1
            return True
        return False

    def _expect(self, text: str) -> None:
        if not self._take(text):
            self._refuse(text)

    def _refuse(self, wanted: str) -> NoReturn:
        token = self._token
        got = "it ends" if token.kind == "end" else f"got {token.text}"
        raise UsageError(f"{self._where(token.position)}: {got}, wanted {wanted}")

    def _where(self, position: int) -> str:
        return f"{self._setting}={self._text!r}, character {position}"

    def _or(self) -> _Condition:
        parts = [self._and()]
        while self._take("or"):
            parts.append(self._and())
        return parts[0] if len(parts) == 1 else lambda row: _any(parts, row)

    def _and(self) -> _Condition:
        parts = [self._not()]
        while self._take("and"):
            parts.append(self._not())
        return parts[0] if len(parts) == 1 else lambda row: _all(parts, row)

    def _not(self) -> _Condition:
        if not self._take("not"):
            return self._predicate()
        inner = self._nested(self._not)
        return lambda row: _negate(inner(row))

    def _predicate(self) -> _Condition:
        if self._take("("):
            inner = self._nested(self._or)
            self._expect(")")
            return inner
        left = self._operand()
        if self._token.kind == "sign" and (sign := _SAME.get(self._token.text, self._token.text)) in _COMPARISONS:
            self._at += 1
            right = self._operand()
            return lambda row: _compare(sign, left, right, row)
        if self._take("is"):
            wanted = not self._take("not")
            self._expect("null")
            return lambda row: (left.of(row) is None) is wanted
        positive = not self._take("not")
        if self._take("in"):
            return _signed(positive, self._in(left))
        if self._take("like"):
            return _signed(positive, self._like(left))
        if not positive:
            self._refuse("in or like")
        return lambda row: _truth(left, row)

    def _in(self, left: _Operand) -> _Condition:
        self._expect("(")
        parts = [self._equals(left, self._literal())]
        while self._take(","):
            parts.append(self._equals(left, self._literal()))
        self._expect(")")
        return lambda row: _any(parts, row)

    def _equals(self, left: _Operand, right: _Operand) -> _Condition:
        return lambda row: _compare("=", left, right, row)

    def _like(self, left: _Operand) -> _Condition:
        if self._token.kind != "text":
            self._refuse("text in quotes")
        pattern = self._literal()
        return lambda row: _like(left, pattern.value, row)

    def _nested(self, rule: Callable[[], _Condition]) -> _Condition:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UsageError(f"{self._where(self._token.position)}: nested deeper than {MAX_DEPTH} times")
        condition = rule()
        self._depth -= 1
        return condition

    def _operand(self) -> _Operand:
        if self._token.kind in {"name", "quoted"}:
            token = self._next()
            name = token.text.strip("`")
            self.columns.setdefault(name, token.position)
            return _Operand(name, None, token.position)
        return self._literal()

    def _literal(self) -> _Operand:
        token = self._token
        if token.kind == "number":
            value: Any = float(token.text) if re.search(r"[.eE]", token.text) else _integer(token.text)
        elif token.kind == "text":
            quote = token.text[0]
            value = token.text[1:-1].replace(quote * 2, quote)
        elif token.kind == "keyword" and token.text in {"true", "false", "null"}:
            value = {"true": True, "false": False, "null": None}[token.text]
        else:
            self._refuse("a column, number, text in quotes, true, false or null")
        self._at += 1
        return _Operand("", value, token.position)


def _integer(text: str) -> int | float:
    # Python refuses to read integers of thousands of digits.
    return int(text) if len(text) < 1000 else float(text)


def _signed(positive: bool, condition: _Condition) -> _Condition:
    return condition if positive else lambda row: _negate(condition(row))


def _negate(truth: Truth) -> Truth:
    return None if truth is None else not truth


def _all(parts: list[_Condition], row: Row) -> Truth:
    found = [part(row) for part in parts]
    return False if False in found else None if None in found else True


def _any(parts: list[_Condition], row: Row) -> Truth:
    found = [part(row) for part in parts]
    return True if True in found else None if None in found else False


def _compare(sign: str, left: _Operand, right: _Operand, row: Row) -> Truth:
    a, b = left.of(row), right.of(row)
    if a is None or b is None:
        return None
    ordered = sign not in {"=", "!="}
    if isinstance(a, Untyped) and isinstance(b, Untyped) and ordered:
        raise _TypeClash(f"{left} and {right} are of a list without types; compare columns in jsonl or parquet")
    a, b = _as_type_of(b, a, left), _as_type_of(a, b, right)
    if a is None or b is None:
        return None
    kind = _kind(a)
    if not kind or kind != _kind(b) or (kind == "bool" and ordered):
        raise _TypeClash(f"{left} is {_describe(a)} and {right} is {_describe(b)}; they cannot be compared by {sign}")
    return _COMPARISONS[sign](a, b)


def _truth(operand: _Operand, row: Row) -> Truth:
    value = _as_type_of(True, operand.of(row), operand)
    if value is None or isinstance(value, bool):
        return value
    raise _TypeClash(f"{operand} is {_describe(value)}; alone it must be true or false")


def _like(operand: _Operand, pattern: str, row: Row) -> Truth:
    value = operand.of(row)
    if value is None:
        return None
    if not isinstance(value, str):
        raise _TypeClash(f"{operand} is {_describe(value)}; like takes text")
    return matches(value, pattern)


def matches(text: str, pattern: str) -> bool:
    """Whether text matches a pattern of ``%`` and ``_``; in time proportional to the product of their lengths."""
    at = start = ahead = 0
    wildcard = -1
    while at < len(text):
        if ahead < len(pattern) and pattern[ahead] == "%":
            wildcard, start = ahead, at
            ahead += 1
        elif ahead < len(pattern) and pattern[ahead] in ("_", text[at]):
            ahead, at = ahead + 1, at + 1
        elif wildcard >= 0:
            # The last % takes one character more.
            start += 1
            ahead, at = wildcard + 1, start
        else:
            return False
    return not pattern[ahead:].strip("%")


def _as_type_of(other: Any, value: Any, operand: _Operand) -> Any:
    """Untyped text as the type of what it is compared with."""
    if not isinstance(value, Untyped) or isinstance(other, str):
        return value
    try:
        if isinstance(other, bool):
            return {"true": True, "false": False, "1": True, "0": False}[value.strip().lower()]
        number = _integer(value) if value.strip().lstrip("+-").isdigit() else float(value)
    except (KeyError, ValueError):
        wanted = "true or false" if isinstance(other, bool) else "a number"
        raise _TypeClash(f"{operand} is {_describe(value)}; it must be {wanted} to be compared with one") from None
    # Not math.isnan, which converts an integer to a float.
    return None if number != number else number


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    return "text" if isinstance(value, str) else ""


def _describe(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
