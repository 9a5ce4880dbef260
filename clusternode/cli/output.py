"""What commands print: tables for people that fit the terminal, JSON for programs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence

COLUMN_WIDTH_MIN = 6
"""No column is cut to less than that."""
GAP = "  "
SECONDS_PER_MINUTE = 60
SECONDS_PER_HOUR = 3600
SECONDS_PER_DAY = 86400


def print_json(value: object) -> None:
    """Print one line of JSON and flush it: somebody may read line by line."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in table_lines(headings, rows, width):
        print(line)


def table_lines(
    headings: Sequence[str], rows: Sequence[Sequence[object]], width: int | None
) -> list[str]:
    """Return a table of at most `width` columns; the widest cells are cut where it does not fit."""
    cells = [list(headings), *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    if width is not None:
        spare = width - len(GAP) * (len(widths) - 1)
        while sum(widths) > spare and max(widths) > COLUMN_WIDTH_MIN:
            widths[widths.index(max(widths))] -= 1
    return [
        GAP.join(_fit(cell, size) for cell, size in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def _fit(cell: str, width: int) -> str:
    return cell.ljust(width) if len(cell) <= width else cell[: width - 1] + "…"


def printable(text: str) -> str:
    """Return text without characters that could steer a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def body_text(text: str) -> str:
    """Return a body for people: lines and tabs stay, control characters do not."""
    return "\n".join(
        "\t".join(printable(part) for part in line.split("\t")) for line in text.split("\n")
    )


def duration(seconds: float | None) -> str:
    """Write a duration with two digits or one unit; `-` for None."""
    if seconds is None:
        return "-"
    if seconds < SECONDS_PER_MINUTE:
        return f"{seconds:.1f} s"
    if seconds < SECONDS_PER_HOUR:
        return f"{seconds / SECONDS_PER_MINUTE:.0f} min"
    if seconds < SECONDS_PER_DAY:
        return f"{seconds / SECONDS_PER_HOUR:.1f} h"
    return f"{seconds / SECONDS_PER_DAY:.1f} d"


def milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def complain(text: str) -> None:
    """Write to standard error."""
    print(f"clusternode: {printable(text)}", file=sys.stderr, flush=True)


def note(text: str) -> None:
    """Tell something beside the result, without mixing it into it."""
    print(printable(text), file=sys.stderr, flush=True)
