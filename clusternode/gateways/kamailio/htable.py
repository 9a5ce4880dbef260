"""Our copy of the shared tables of Kamailio's module htable: pure, in unix time.

Which tables are kept, and for how long their cells live, is said by the configuration, as each
Kamailio has it in its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import attrs

from clusternode.gateways.kamailio.regex import BadPattern, Regex
from clusternode.gateways.kamailio.replication import (
    Cell,
    Cells,
    Delete,
    Htable,
    RemovePrefix,
    RemoveRegex,
    Set,
    SetExpire,
    SyncRequest,
    Value,
)

CELLS_MAX: Final = 100_000
"""Of one table; further new keys are refused and counted."""
PATTERN_STEPS_MAX: Final = 2_000_000
"""Work that one removal by expression may take: about a second."""


class Refused(ValueError):
    """A change that would break a bound."""


@attrs.define
class _Kept:
    value: Value
    expires_at: float
    """Unix time; 0 for never."""
    last_modified: int | None = None


@attrs.define
class Tables:
    """Every table that is kept. `apply` takes what the bus says and what we say alike."""

    autoexpire: Mapping[str, int]  # table → seconds that a cell lives, 0 for ever
    cells_max: int = CELLS_MAX
    _tables: dict[str, dict[str, _Kept]] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._tables = {name: {} for name in self.autoexpire}

    def __contains__(self, table: str) -> bool:
        return table in self._tables

    def apply(self, message: Htable, unix_now: float) -> None:
        """Carry a change out; one of a table that is not kept does nothing.

        Raises:
            Refused: It would break a bound.
        """
        match message:
            case SyncRequest():
                pass
            case Cells(cells):
                for cell in cells:
                    self._apply_cell(cell, unix_now)
            case Set(table, key, value, _, last_modified):
                lifetime = self.autoexpire.get(table, 0)
                expires_at = unix_now + lifetime if lifetime else 0
                self._put(table, key, _Kept(value, expires_at, last_modified))
            case SetExpire(table, key, seconds):
                kept = self._table(table).get(key)
                if kept is not None:
                    kept.expires_at = unix_now + seconds if seconds > 0 else 0
            case Delete(table, key):
                self._table(table).pop(key, None)
            case RemovePrefix(table, prefix):
                cells_of = self._table(table)
                for key in [key for key in cells_of if key.startswith(prefix)]:
                    del cells_of[key]
            case RemoveRegex(table, pattern):
                self._remove_matching(table, pattern)

    def _apply_cell(self, cell: Cell, unix_now: float) -> None:
        if not cell.expire or cell.expire > unix_now:
            kept = _Kept(cell.value, float(cell.expire), cell.last_modified)
            self._put(cell.table, cell.key, kept)

    def _put(self, table: str, key: str, kept: _Kept) -> None:
        if table not in self._tables:
            return
        cells = self._tables[table]
        old = cells.get(key)
        if old is None and len(cells) >= self.cells_max:
            raise Refused(f"table {table}: more than {self.cells_max} cells")
        if old is not None and old.last_modified is not None and kept.last_modified is not None:
            if kept.last_modified < old.last_modified:  # an older one is late (6.2)
                return
        cells[key] = kept

    def _remove_matching(self, table: str, pattern: str) -> None:
        cells = self._table(table)
        try:
            regex = Regex(pattern)
        except BadPattern as error:
            raise Refused(f"pattern: {error}") from None
        doomed = []
        for key in cells:
            if regex.search(key):
                doomed.append(key)
            if regex.steps > PATTERN_STEPS_MAX:
                raise Refused("pattern: too much work")
        for key in doomed:
            del cells[key]

    def _table(self, table: str) -> dict[str, _Kept]:
        return self._tables.get(table, {})

    def get(self, table: str, key: str, unix_now: float) -> Value | None:
        kept = self._table(table).get(key)
        if kept is None or 0 < kept.expires_at <= unix_now:
            return None
        return kept.value

    def cells(self, unix_now: float, table: str = "") -> Iterator[Cell]:
        """Yield what is alive, of one table or of all."""
        for name, cells in self._tables.items():
            if table in ("", name):
                for key, kept in cells.items():
                    if not 0 < kept.expires_at <= unix_now:
                        expire = int(kept.expires_at)
                        yield Cell(name, key, kept.value, expire, kept.last_modified)

    def purge(self, unix_now: float) -> None:
        """Drop what has expired."""
        for cells in self._tables.values():
            for key in [key for key, kept in cells.items() if 0 < kept.expires_at <= unix_now]:
                del cells[key]
