"""Strict parsing of JSON files: types, ranges, lengths and names.

Values are not converted: ``"3"``, ``3.0`` and ``true`` are not integers. Unknown fields are refused.
"""

from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import AfterValidator, Field, ValidationError

from vidvq.config import is_mapping, strict_adapter
from vidvq.errors import UsageError
from vidvq.storage import DIGEST_KEY, canonical_json, check_digest, check_name

T = TypeVar("T")

MAX_LABEL = 256
MAX_TEXT = 1 << 20
_MAX_INT = 1 << 53
_SHOWN_PROBLEMS = 3
_SHOWN_CHARACTERS = 80


def _file_name(name: str) -> str:
    return check_name(name)


# Number of things, or bytes.
Count: TypeAlias = Annotated[int, Field(ge=0, le=_MAX_INT)]
Ticks: TypeAlias = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
Pixels: TypeAlias = Annotated[int, Field(ge=1, le=1 << 20)]
# Name of a file in the same directory.
FileName: TypeAlias = Annotated[str, AfterValidator(_file_name)]
Digest: TypeAlias = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
# Short names: of a reason, a stage, a codebook, a statistic.
Label: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_LABEL)]
# Length of a tick (seconds). Bounded before it is parsed: Fraction computes 1e999999999.
TimeBase: TypeAlias = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,18}(/[1-9][0-9]{0,18})?$")]
# Sentences, URIs and similar text.
Text: TypeAlias = Annotated[str, Field(max_length=MAX_TEXT)]


def parse(kind: type[T], data: Any, format: str, where: str, remedy: str = "restore it from a copy") -> T:
    """Build a dataclass from JSON of a format.

    Args:
        kind: the dataclass; its fields have the types of this module.
        format: required value of ``format``.

    Raises:
        UsageError: one line that names the first wrong fields; or a field differs from what the digest covers.
    """
    if not is_mapping(data) or data.get("format") != format:
        found = str(data.get("format"))[:_SHOWN_CHARACTERS] if is_mapping(data) else type(data).__name__
        raise UsageError(f"{where} is not of format {format} (got {found}); {remedy}")
    fields = {name: value for name, value in data.items() if name not in {"format", DIGEST_KEY}}
    try:
        # pydantic takes lists as tuples in JSON alone.
        parsed = strict_adapter(kind).validate_json(canonical_json(fields), strict=True)
    except ValidationError as error:
        problems = [_problem(detail) for detail in error.errors(include_url=False)]
        more = f"; and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise UsageError(f"{where}: {'; '.join(problems[:_SHOWN_PROBLEMS])}{more}; {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not readable ({_short(str(error))}); {remedy}") from error
    check_digest(data, where, remedy)
    return parsed


def _problem(detail: Any) -> str:
    name = ".".join(str(part) for part in detail["loc"])
    if detail["type"] in {"missing", "missing_argument"}:
        return f"{name} is missing"
    if detail["type"] == "unexpected_keyword_argument":
        return f"{_short(name)} is not a known field"
    if detail["type"] == "value_error":
        return f"{name}: {detail['ctx']['error']}"
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return f"{_short(name)}={_short(repr(detail['input']))}: {message}" if name else message


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
