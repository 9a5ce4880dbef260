"""Fields of OpenSIPS's BIN packets ⇄ values: integers and strings, one after the other.

Integers have 32 bits, strings a length of 16 bits before them. OpenSIPS writes them in the order of
its machine; here they are little-endian always, as on x86 and ARM. Written down in
docs/gateway-opensips.md.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, TypeVar

from clusternode.errors import BodyTooLarge, LocalProtocolError, RemoteProtocolError

T = TypeVar("T")

INT_MIN: Final = -(2**31)
INT_MAX: Final = 2**31 - 1
UINT_MAX: Final = 2**32 - 1
STRING_SIZE_MAX: Final = 65_535
"""What the length of 16 bits can say."""
NAME_LENGTH_MAX: Final = 1024
"""Bytes of a name that is kept: capability, url, tag … OpenSIPS's own are below 100."""

_INT = struct.Struct("<i")
_UINT = struct.Struct("<I")
_LENGTH = struct.Struct("<H")


class FieldReader:
    """Takes field after field from a part of a frame; each is bounded by what is left of it."""

    __slots__ = ("_data", "_end", "_offset", "_what")

    def __init__(self, data: bytes, what: str, offset: int = 0, end: int | None = None) -> None:
        self._data = data
        self._what = what
        self._offset = offset
        self._end = len(data) if end is None else end

    def integer(self, name: str, minimum: int = INT_MIN, maximum: int = INT_MAX) -> int:
        """Take a signed integer within bounds.

        Raises:
            RemoteProtocolError: It is missing or outside.
        """
        (value,) = _INT.unpack_from(self._data, self._advance(_INT.size, name))
        if not minimum <= value <= maximum:
            raise self.error(name, f"is {value}, expected {minimum} to {maximum}")
        return int(value)

    def unsigned(self, name: str) -> int:
        """Take an integer that OpenSIPS counts without a sign: flags, and times until 2106."""
        (value,) = _UINT.unpack_from(self._data, self._advance(_UINT.size, name))
        return int(value)

    def flag(self, name: str) -> bool:
        return self.integer(name, 0, 1) == 1

    def blob(self, name: str, size_max: int = STRING_SIZE_MAX) -> bytes:
        """Take a string as bytes.

        Raises:
            RemoteProtocolError: It is missing, cut off or too long.
        """
        (size,) = _LENGTH.unpack_from(self._data, self._advance(_LENGTH.size, name))
        if size > size_max:
            raise self.error(name, f"has {size} bytes, at most {size_max}")
        return self.take(size, name)

    def text(self, name: str, size_max: int = NAME_LENGTH_MAX) -> str:
        """Take a string as text: UTF-8, other bytes as surrogate escapes."""
        return self.blob(name, size_max).decode("utf-8", "surrogateescape")

    def items(self, name: str, count_max: int, read: Callable[[], T]) -> tuple[T, ...]:
        """Take a count, and so many times what `read` takes."""
        count = self.integer(name, 0, count_max)
        return tuple([read() for _ in range(count)])

    def take(self, size: int, name: str) -> bytes:
        """Take so many raw bytes."""
        start = self._advance(size, name)
        return self._data[start : start + size]

    @property
    def is_at_end(self) -> bool:
        return self._offset == self._end

    def expect_end(self) -> None:
        """Refuse bytes that no field has claimed.

        Raises:
            RemoteProtocolError: There are some.
        """
        if not self.is_at_end:
            raise self.error("end", f"has {self._end - self._offset} bytes after it")

    def error(self, name: str, problem: str) -> RemoteProtocolError:
        return RemoteProtocolError(f"{self._what}: {name} at byte {self._offset} {problem}")

    def _advance(self, size: int, name: str) -> int:
        start = self._offset
        if size > self._end - start:
            raise self.error(name, f"needs {size} bytes, {self._end - start} are left")
        self._offset = start + size
        return start


class FieldWriter:
    """Puts field after field into bytes."""

    __slots__ = ("data",)

    def __init__(self) -> None:
        self.data = bytearray()

    def integers(self, *values: int) -> None:
        """Put signed integers.

        Raises:
            LocalProtocolError: One has more than 32 bits.
        """
        for value in values:
            if not INT_MIN <= value <= INT_MAX:
                raise LocalProtocolError(f"integer {value} has more than 32 bits")
            self.data += _INT.pack(value)

    def unsigned(self, value: int) -> None:
        """Put an integer without a sign.

        Raises:
            LocalProtocolError: It is negative or has more than 32 bits.
        """
        if not 0 <= value <= UINT_MAX:
            raise LocalProtocolError(f"integer {value} is not one of 32 bits without a sign")
        self.data += _UINT.pack(value)

    def time(self, value: int) -> None:
        """Put Unix seconds; those after 2106 begin again at 0, as OpenSIPS's do."""
        self.unsigned(value & UINT_MAX)

    def blob(self, value: bytes) -> None:
        """Put a string.

        Raises:
            BodyTooLarge: It has more than 65535 bytes.
        """
        if len(value) > STRING_SIZE_MAX:
            raise BodyTooLarge(f"string of {len(value)} bytes, at most {STRING_SIZE_MAX}")
        self.data += _LENGTH.pack(len(value))
        self.data += value

    def packed(self, layout: struct.Struct, value: int) -> None:
        """Put a number as a string of its bytes: OpenSIPS has no integers of 64 bits.

        Raises:
            LocalProtocolError: It has too many bits.
        """
        try:
            self.blob(layout.pack(value))
        except struct.error:
            raise LocalProtocolError(f"{value} does not fit into {layout.size} bytes") from None

    def texts(self, *values: str) -> None:
        """Put strings.

        Raises:
            BodyTooLarge: One has more than 65535 bytes.
            LocalProtocolError: One is no text that came from bytes.
        """
        for value in values:
            try:
                self.blob(value.encode("utf-8", "surrogateescape"))
            except UnicodeEncodeError:
                raise LocalProtocolError("a text with a lone surrogate") from None


def printable(text: str) -> str:
    """Return a text that came from a packet for an event: bytes that are no UTF-8 become U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
