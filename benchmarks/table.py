"""Tables of what benchmarks printed as JSON lines, by the field ``part`` that the script of GPU checks adds.

    python benchmarks/table.py RESULTS.jsonl > TABLE.md

Also adds that field: ``python benchmarks/table.py --part NAME < LINES >> RESULTS.jsonl`` copies the JSON lines of its
input and drops all other lines.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("results", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=False)
@click.option("--part", help="Name to add to each JSON line of the standard input.")
def main(results: Path | None, part: str | None) -> None:
    """Print the tables of RESULTS, or label JSON lines."""
    if part:
        for row in json_lines(sys.stdin):
            print(json.dumps({"part": part} | row), flush=True)
    elif results:
        print("\n".join(tables(json_lines(results.read_text().splitlines()))))


def json_lines(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the lines that are JSON objects."""
    for line in lines:
        if line.startswith("{"):
            try:
                yield json.loads(line)
            except ValueError:
                # The last line of a process that was stopped.
                continue


def tables(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a Markdown table for each part, with a column for each field that varies in it."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        parts.setdefault(str(row.pop("part", "")), []).append(row)
    for part, found in parts.items():
        columns = list(dict.fromkeys(name for row in found for name in row))
        fixed = [name for name in columns if len(found) > 1 and len({str(row.get(name)) for row in found}) == 1]
        columns = [name for name in columns if name not in fixed] or columns
        yield f"## {part}\n"
        if fixed:
            yield "; ".join(f"{name} {_cell(found[0][name])}" for name in fixed) + "\n"
        yield f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"
        yield from (f"| {' | '.join(_cell(row.get(name, '')) for name in columns)} |" for row in found)
        yield ""


def _cell(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value).replace("|", "/")


if __name__ == "__main__":
    main()
