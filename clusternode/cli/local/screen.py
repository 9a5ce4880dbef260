"""A story told on a terminal: lines that scroll, and below them a table that is kept up to date."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from clusternode.cli.output import printable, table_lines

STATUS_COLOURS = {
    "active": "32",
    "not_active": "33",
    "disabled": "31",
    "removed": "31",
    "left": "36",
}
"""SGR parameters (ECMA-48, 8.3.117)."""


class Screen:
    """Prints lines, and on a terminal a table below the last one."""

    def __init__(
        self,
        table: Callable[[], tuple[Sequence[str], Sequence[Sequence[str]]]],
        output: TextIO = sys.stdout,
    ) -> None:
        self._table = table
        self._output = output
        self._is_live = output.isatty()
        self._shown = 0  # lines of the table that stand below the cursor's last line

    def heading(self, text: str) -> None:
        self.line("")
        self.line(self._coloured(text, "1"))

    def line(self, text: str) -> None:
        """Print a line above the table."""
        self._erase()
        self._output.write(text + "\n")
        self.draw()

    def status(self, text: str) -> str:
        return self._coloured(text, STATUS_COLOURS.get(text, "0"))

    def draw(self) -> None:
        """Bring the table up to date."""
        if not self._is_live:
            self._output.flush()
            return
        self._erase()
        headings, rows = self._table()
        if rows:
            lines = ["", *table_lines(headings, rows, None)]
            for status, colour in STATUS_COLOURS.items():
                painted = self._coloured(status, colour)
                # "active" stands inside "not_active": only whole cells are painted.
                lines = [f" {line} ".replace(f" {status} ", f" {painted} ") for line in lines]
            self._output.write("\n".join(lines) + "\n")
            self._shown = len(lines)
        self._output.flush()

    def close(self) -> None:
        """Leave the last table standing."""
        self._shown = 0
        self._output.flush()

    def _erase(self) -> None:
        if self._shown:
            self._output.write(f"\x1b[{self._shown}A\x1b[J")
            self._shown = 0

    def _coloured(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._is_live else printable(text)
