"""The list of reasons has those that the code gives."""

import re
from pathlib import Path

import vidvq
from vidvq.jobs.reasons import FAILURES

_RAISED = re.compile(r'VideoError\(\s*f?"([a-z_]+)["(]')


def test_every_reason_has_a_remedy():
    page = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    table = page.partition("## Failed items")[2].partition("## ")[0]
    assert [reason for reason in sorted(FAILURES) if f"`{reason}`" not in table] == []


def test_every_reason_of_the_code_is_listed():
    sources = "\n".join(path.read_text() for path in Path(vidvq.__file__).parent.rglob("*.py"))
    raised = set(_RAISED.findall(sources))
    # Those of filtered items are raised as well.
    assert {"decode_error", "fetch_failed"} <= raised - {"too_small", "too_short"} <= FAILURES
