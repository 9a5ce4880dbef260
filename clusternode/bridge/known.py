"""The cells that went over a link, for a target that cannot say "expire" or "all that begin so"."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import attrs

from clusternode.bridge.changes import CellChange
from clusternode.gateways.kamailio.htable import PATTERN_STEPS_MAX
from clusternode.gateways.kamailio.regex import BadPattern, Regex

KNOWN_MAX: Final = 10_000
"""Cells remembered for one link; of the oldest beyond, only what names their key is relayed."""


@attrs.define
class KnownCells:
    """Key → value and lifetime of the cells that were set, the oldest first."""

    size_max: int = KNOWN_MAX
    _values: OrderedDict[str, str | int] = attrs.Factory(OrderedDict)

    def spell_out(self, change: CellChange) -> list[CellChange]:
        """Return a change as sets and deletes of cells; none where no cell is known for it."""
        match change.action:
            case "set":
                assert change.value is not None, "a set has a value"
                self._values[change.key] = change.value
                self._values.move_to_end(change.key)
                if len(self._values) > self.size_max:
                    self._values.popitem(last=False)
                return [change]
            case "delete":
                self._values.pop(change.key, None)
                return [change]
            case "expire":
                value = self._values.get(change.key)
                if value is None:
                    return []
                return [attrs.evolve(change, action="set", value=value)]
            case "delete_prefix":
                return self._delete(change, lambda key: key.startswith(change.key))
            case "delete_regex":
                try:
                    regex = Regex(change.key)
                except BadPattern:
                    return []
                return self._delete(
                    change, lambda key: regex.steps < PATTERN_STEPS_MAX and regex.search(key)
                )

    def _delete(self, change: CellChange, is_meant: Callable[[str], bool]) -> list[CellChange]:
        keys = [key for key in self._values if is_meant(key)]
        for key in keys:
            del self._values[key]
        return [CellChange("delete", change.table, key) for key in keys]
