"""Reads TOML tables of a scenario; what is wrong is said with file, key and what was expected."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from clusternode.core.types import Address, ChannelName, NodeId, is_name
from clusternode.errors import ConfigError, ScenarioError

REQUIRED = object()
"""The default of a key that has none."""
NODES_EXPECTED = 'nodes: "n3", "n1..n5", "*", or a list of these'
NODES_MAX = 5000
"""A world of more takes hours; a larger number is a slip of the pen."""
_RANGE = re.compile(r"n(\d{1,5})\.\.n(\d{1,5})")


def suggest(name: str, known: Iterable[str]) -> str:
    """Say which name may have been meant, or which there are."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(names)}"


@attrs.define
class Table:
    """One table of a scenario: takes keys one by one, and refuses those that nobody took."""

    where: str
    """File and place, for messages: `split.toml: step 3`."""
    values: Mapping[str, Any]
    node_ids: Sequence[NodeId] = ()
    """The nodes of the scenario."""
    taken: dict[str, None] = attrs.Factory(dict)

    def error(self, key: str, problem: str) -> ScenarioError:
        return ScenarioError(f"{self.where}: {key}: {problem}")

    def has(self, key: str) -> bool:
        return key in self.values

    def take(self, key: str, kind: type | tuple[type, ...], expected: str, default: object) -> Any:  # noqa: ANN401  # what TOML holds
        """Return the value of a key, which is of `kind`, or the default."""
        self.taken[key] = None
        if key not in self.values:
            if default is REQUIRED:
                raise self.error(key, f"is missing; expected {expected}")
            return default
        value = self.values[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(key, f"{value!r}: expected {expected}")
        return value

    def text(self, key: str, default: object = "") -> str:
        return str(self.take(key, str, "a text", default))

    def flag(self, key: str, *, default: bool = False) -> bool:
        return bool(self.take(key, bool, "true or false", default))

    def number(self, key: str, default: object = 0.0, *, at_least: float = 0.0) -> float:
        expected = f"a number of at least {at_least:g}"
        value = float(self.take(key, (int, float), expected, default))
        if not at_least <= value < math.inf:
            raise self.error(key, f"{value!r}: expected {expected}")
        return value

    def whole(self, key: str, default: object = 0, *, at_least: int = 0) -> int:
        expected = f"a whole number of at least {at_least}"
        value = int(self.take(key, int, expected, default))
        if value < at_least:
            raise self.error(key, f"{value!r}: expected {expected}")
        return value

    def share(self, key: str, default: float = 0.0) -> float:
        value = self.number(key, default)
        if value > 1:
            raise self.error(key, f"{value!r}: expected a share from 0 to 1")
        return value

    def span(self, key: str, default: tuple[float, float]) -> tuple[float, float]:
        """Return a range: one number stands for both ends."""
        expected = "a number, or two: [least, most]"
        value = self.take(key, (int, float, list), expected, list(default))
        ends = value if isinstance(value, list) else [value, value]
        is_good = len(ends) == 2 and all(isinstance(end, int | float) for end in ends)
        if not is_good or not 0 <= ends[0] <= ends[1] < math.inf:
            raise self.error(key, f"{value!r}: expected {expected}")
        return float(ends[0]), float(ends[1])

    def table(self, key: str) -> Table:
        values = self.take(key, dict, "a table", {})
        return Table(f"{self.where}: {key}", values, self.node_ids)

    def tables(self, key: str) -> list[Table]:
        values = self.take(key, list, f"tables: [[{key}]]", [])
        for value in values:
            if not isinstance(value, dict):
                raise self.error(key, f"{value!r}: expected tables: [[{key}]]")
        return [
            Table(f"{self.where}: {key} {number}", value, self.node_ids)
            for number, value in enumerate(values, 1)
        ]

    def names(self, key: str, known: Iterable[str], default: object = REQUIRED) -> list[str]:
        """Return one or several of the known names."""
        known = list(known)
        value = self.take(key, (str, list), "a name, or several", default)
        names = [value] if isinstance(value, str) else value
        for name in names:
            if name not in known:
                raise self.error(key, f"unknown name {name!r}; {suggest(str(name), known)}")
        return list(names)

    def channel(self, key: str, default: str) -> ChannelName:
        return self.name_of_channel(self.text(key, default), key)

    def name_of_channel(self, name: str, key: str = "") -> ChannelName:
        """Return what is written as a value, or as a key itself, if it may name a channel."""
        if not is_name(name):
            problem = f"{name!r}: expected a name of [A-Za-z0-9._:-]{{1,64}}"
            raise self.error(key or name, problem)
        return ChannelName(name)

    def nodes(self, key: str, default: object = REQUIRED) -> list[NodeId]:
        """Return the nodes that a pattern, or several, names."""
        value = self.take(key, (str, list), NODES_EXPECTED, default)
        return self.expand(key, value)

    def expand(self, key: str, value: object) -> list[NodeId]:
        """Expand `n3`, `n1..n5`, `*`, or a list of these, to node ids in their order."""
        found: dict[NodeId, None] = {}
        for pattern in value if isinstance(value, list) else [value]:
            if not isinstance(pattern, str):
                raise self.error(key, f"{pattern!r}: expected {NODES_EXPECTED}")
            found.update(dict.fromkeys(self._expand_one(key, pattern)))
        return list(found)

    def _expand_one(self, key: str, pattern: str) -> list[NodeId]:
        if pattern == "*":
            return list(self.node_ids)
        match = _RANGE.fullmatch(pattern)
        if match is not None:
            first, last = int(match[1]), int(match[2])
            names = [NodeId(f"n{n}") for n in range(first, min(last, NODES_MAX) + 1)]
        else:
            names = [NodeId(pattern)]
        known = frozenset(self.node_ids)
        missing = [name for name in names if name not in known]
        if missing or not names:
            problem = f"{pattern!r}: no such node; there are {len(self.node_ids)}"
            raise self.error(key, problem)
        return names

    def groups(self, key: str) -> list[list[NodeId]]:
        """Return two groups of nodes or more: `[["n1..n5"], ["n6..n9"]]`."""
        expected = 'two groups of nodes: [["n1..n5"], ["n6..n9"]]'
        value = self.take(key, list, expected, REQUIRED)
        if len(value) < 2:
            raise self.error(key, f"{value!r}: expected {expected}")
        return [self.expand(key, group) for group in value]

    def address(self, key: str, text: object, addresses: Mapping[NodeId, Address]) -> Address:
        """Return the address of a node, or an address that is written out."""
        if not isinstance(text, str):
            raise self.error(key, f"{text!r}: expected a node or an address")
        node_id = NodeId(text)
        if node_id in addresses:
            return addresses[node_id]
        try:
            return Address.parse(text)
        except ConfigError as error:
            raise self.error(key, f"{text!r}: expected a node, or {error}") from None

    def finish(self) -> None:
        """Refuse every key that nobody took."""
        for key in self.values:
            if key not in self.taken:
                raise self.error(key, f"unknown key; {suggest(key, self.taken)}")
