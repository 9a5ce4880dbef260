"""A section whose keys a plug-in declares: its raw table, with the place of each value.

`config` knows nothing of the plug-in; the plug-in knows nothing of files and variables.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from clusternode.config.kinds import Kind, Text, WrongValue, parse_text
from clusternode.errors import ConfigError

Fail = Callable[[tuple[str, ...], object, str], ConfigError]
"""Takes the path of a key, the value and what was expected."""


def _fail(path: tuple[str, ...], value: object, expected: str) -> ConfigError:
    return ConfigError(".".join(path), value, expected)


@attrs.frozen
class RawTable:
    """One table as it was read, the directory of its file, and how to say what is wrong."""

    path: tuple[str, ...]
    values: Mapping[str, Any] = attrs.field(factory=dict, repr=False)
    directory: Path = attrs.field(factory=Path)
    error: Fail = attrs.field(default=_fail, repr=False, eq=False)

    def names(self) -> tuple[str, ...]:
        return tuple(self.values)

    def has(self, name: str) -> bool:
        return name in self.values

    def fail(self, name: str, value: object, expected: str) -> ConfigError:
        """Return the error for one key, or for the table itself where `name` is empty."""
        return self.error((*self.path, name) if name else self.path, value, expected)

    def value(self, name: str, kind: Kind) -> object:
        """Return the value of a key that is there.

        Raises:
            ConfigError: It is not of that kind.
        """
        try:
            return kind.read(self.values[name])
        except WrongValue as error:
            raise self.fail(name, self.values[name], str(error) or kind.expected) from None

    def table(self, name: str) -> RawTable:
        """Return the table below a key.

        Raises:
            ConfigError: It is none.
        """
        value = self.values[name]
        if isinstance(value, Text):
            value = parse_text(value)
        if not isinstance(value, dict):
            raise self.fail(name, value, "a table")
        return RawTable((*self.path, name), value, self.directory, self.error)

    def refuse_unknown(self, known: Iterable[str]) -> None:
        """Raise for a key that is none of these, with the nearest that is."""
        listed: Sequence[str] = sorted(set(known))
        for name in self.values:
            if name not in listed:
                close = difflib.get_close_matches(name, listed, 1)
                expected = f"perhaps {close[0]}" if close else "one of " + ", ".join(listed)
                raise self.fail(name, self.values[name], f"a known key, {expected}")

    def tables(self, name: str) -> list[RawTable]:
        """Return the entries of an array of tables, `[[NAME]]`; none where it is not there.

        Raises:
            ConfigError: It is none.
        """
        value = self.values.get(name, [])
        listed = parse_text(value) if isinstance(value, Text) else value
        if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
            raise self.fail(name, listed, f"tables: [[{name}]]")
        return [
            RawTable((*self.path, name, str(number)), entry, self.directory, self.error)
            for number, entry in enumerate(listed, 1)
        ]
