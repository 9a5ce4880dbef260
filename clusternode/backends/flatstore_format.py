r"""The lines of `flatstore:` files: written, and read back exactly. Specified in docs/events.md.

`values`: `EVENT,value,value` as OpenSIPS event_flatstore writes it, but that nothing is lost: in
a value a backslash is `\\`, the first character of the delimiter has a backslash before it, a line
feed is `\n`, a carriage return `\r`, NUL `\0`, and null is `\N`. `json`: the notification itself.
A line that a crash tore off ends with NUL, and is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs

from clusternode.routes.events import EventView
from clusternode.routes.views import as_text

TORN = b"\0"
"""At the end of a line that was not written to its end; nowhere else in a file."""
NOTHING = "\\-"
"""The line of an event without values, where names are not written."""
ENCODING_ERRORS = "surrogatepass"
"""JSON may hold lone surrogates, and they come back too."""
_PLAIN = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\0": "\\0"}
_SPECIAL = {"n": "\n", "r": "\r", "0": "\0"}


@attrs.frozen(kw_only=True)
class LineFormat:
    """How the lines of one file look."""

    is_json: bool = False
    delimiter: str = ","
    escape_delimiter: str = ""
    """Stands for the delimiter in values, as in OpenSIPS; what it replaces is lost."""
    suppress_event_name: bool = False

    def line(self, event: EventView, notification: bytes) -> bytes:
        """Return one event as a line with its end."""
        if self.is_json:
            return notification + b"\n"
        fields = [] if self.suppress_event_name else [self._escape(event.name)]
        fields += map(self._field, event.parameters.values())
        text = self.delimiter.join(fields) if fields else NOTHING
        return f"{text}\n".encode("utf-8", ENCODING_ERRORS)

    def _field(self, value: object) -> str:
        return "\\N" if value is None else self._escape(as_text(value))

    def _escape(self, text: str) -> str:
        if self.escape_delimiter:
            text = text.replace(self.delimiter, self.escape_delimiter)
        for plain, escaped in _PLAIN.items():
            text = text.replace(plain, escaped)
        first = self.delimiter[0]
        return text.replace(first, "\\" + first)

    def read(self, line: bytes) -> Record:
        """Read one line without its end.

        Raises:
            ValueError: It is no line of this format.
        """
        if self.is_json:
            return _read_json(line)
        fields = self._split(line.decode("utf-8", ENCODING_ERRORS))
        if self.suppress_event_name:
            return Record("", tuple(fields))
        name = fields.pop(0) if fields else None
        if name is None:
            raise ValueError("a line without the name of its event")
        return Record(name, tuple(fields))

    def _split(self, text: str) -> list[str | None]:
        fields: list[str | None] = []
        if text == NOTHING:
            return fields
        field, position = "", 0
        is_null = False
        while position < len(text):
            char = text[position]
            if char == "\\":
                code = text[position + 1 : position + 2]
                if not code:
                    raise ValueError("a line that ends with a backslash")
                is_null = is_null or code == "N"
                field += _SPECIAL.get(code, "" if code == "N" else code)
                position += 2
            elif text.startswith(self.delimiter, position):
                fields.append(None if is_null else field)
                field, is_null = "", False
                position += len(self.delimiter)
            else:
                field += char
                position += 1
        fields.append(None if is_null else field)
        return fields


@attrs.frozen
class Record:
    """One event as it stands in a file."""

    name: str
    """Empty where the file has no names."""
    values: tuple[Any, ...]
    """Of a file of values: text, JSON text of what was no text, or None."""
    keys: tuple[str, ...] = ()
    """Of a json file: the names of the parameters, where they have some."""


def _read_json(line: bytes) -> Record:
    notification = json.loads(line)
    if not isinstance(notification, dict) or not isinstance(notification.get("method"), str):
        raise ValueError("a line that is no notification")  # noqa: TRY004  # of the file
    params = notification.get("params", [])
    if isinstance(params, dict):
        return Record(notification["method"], tuple(params.values()), tuple(params))
    return Record(notification["method"], tuple(params))


def read_lines(lines: Iterable[bytes], form: LineFormat) -> Iterator[Record]:
    """Read the lines of a file, in order; torn ones, and one that is still written, are not there.

    Raises:
        ValueError: A line is not of this format.
    """
    for line in lines:
        if line.endswith(b"\n") and not line.endswith(TORN + b"\n"):
            yield form.read(line[:-1])


def read_file(path: Path, form: LineFormat | None = None) -> Iterator[Record]:
    """Read a `flatstore:` file. It may be written meanwhile.

    Raises:
        OSError: It cannot be read.
        ValueError: A line is not of this format.
    """
    with path.open("rb") as file:
        yield from read_lines(file, form or LineFormat())
