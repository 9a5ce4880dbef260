"""How each field of each message is checked. Spec: docs/protocol.md, 4 and 10.

A *reader* takes what msgpack made of one field and returns its value, or raises `Refused`. A
message whose array is longer than its row here comes from a newer minor version: what was appended
is ignored. One that is shorter comes from an older one: defaults fill it up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import attrs

from clusternode.core.types import Address, ResultCode, Seconds, is_name
from clusternode.core.wire import limits
from clusternode.core.wire.messages import (
    RESULT_CODES,
    Ack,
    Close,
    Hello,
    List,
    ListEntry,
    Message,
    NoRoute,
    Ping,
    Pong,
    Proof,
    Record,
    Records,
    Reply,
    Request,
    Results,
    Resume,
    Routed,
    Run,
    Segment,
    Want,
    WireMessage,
)
from clusternode.errors import ConfigError, RemoteProtocolError

T = TypeVar("T")
Reader: TypeAlias = Callable[[object], T]

CODE_MIN, CODE_MAX = 100, 699  # RFC 3261 section 7.2
_SUCCESS_END = 300

_CONTROL_CHARACTER = re.compile("[\x00-\x1f\x7f-\x9f]")
_PRINTABLE_ASCII = re.compile("[\x20-\x7e]*")


class Refused(Exception):
    """A field is not what it should be; `path` grows while it passes outwards."""

    def __init__(self, found: object, expected: str, path: str = "") -> None:
        super().__init__(found, expected)
        self.found = found
        self.expected = expected
        self.path = path

    def within(self, step: str) -> Refused:
        self.path = step + self.path
        return self

    def __str__(self) -> str:
        found = self.found
        shown = f"{len(found)} bytes" if isinstance(found, bytes) else repr(found)
        if len(shown) > SHOWN_LENGTH_MAX:
            shown = f"{shown[:SHOWN_LENGTH_MAX]}…"
        return f"{self.path} = {shown}: expected {self.expected}"


SHOWN_LENGTH_MAX = 60
"""Characters of a bad value that an error repeats: enough to recognise it in a capture."""


# --- readers --------------------------------------------------------------------------------------


def integer(minimum: int, maximum: int) -> Reader[int]:
    """Make a reader of whole numbers; true and false are none."""

    def read(value: object) -> int:
        if type(value) is not int or not minimum <= value <= maximum:
            raise Refused(value, f"a whole number from {minimum} to {maximum}")
        return value

    return read


def text(length_max: int) -> Reader[str]:
    """Make a reader of texts without control characters, of at most so many bytes of UTF-8."""

    def read(value: object) -> str:
        if type(value) is not str or not is_text(value, length_max):
            raise Refused(value, f"a text of at most {length_max} bytes without control characters")
        return value

    return read


def ascii_text(length_max: int) -> Reader[str]:
    """Make a reader of texts of printable ASCII."""

    def read(value: object) -> str:
        if type(value) is not str or not is_ascii_text(value, length_max):
            raise Refused(value, f"at most {length_max} characters of printable ASCII")
        return value

    return read


def is_text(value: str, length_max: int) -> bool:
    if _CONTROL_CHARACTER.search(value):
        return False
    # Surrogates cannot come from the wire, but from our own callers.
    return len(value.encode("utf-8", "surrogatepass")) <= length_max


def is_ascii_text(value: str, length_max: int) -> bool:
    return len(value) <= length_max and _PRINTABLE_ASCII.fullmatch(value) is not None


def name(value: object) -> str:
    if type(value) is not str or not is_name(value):
        raise Refused(value, "1 to 64 characters of A-Z a-z 0-9 . _ : -")
    return value


def name_or_empty(value: object) -> str:
    return "" if value == "" else name(value)


def tag(value: object) -> str:
    if value == "":
        raise Refused(value, "a tag that is not empty")
    return _read_tag(value)


_read_tag = ascii_text(limits.TAG_LENGTH_MAX)


def address(value: object) -> str:
    """Read what others dial: with a port, so not `srv://`."""
    expected = "tcp://HOST:PORT or tls://HOST:PORT, an IPv6 address in brackets"
    if type(value) is not str or len(value) > limits.ADDRESS_LENGTH_MAX:
        raise Refused(value, expected)
    try:
        parsed = Address.parse(value)
    except ConfigError:
        raise Refused(value, expected) from None
    if parsed.port == 0:
        raise Refused(value, expected)
    return value


def boolean(value: object) -> bool:
    if type(value) is not bool:
        raise Refused(value, "true or false")
    return value


def nonce(value: object) -> bytes:
    if type(value) is not bytes or len(value) != limits.NONCE_LENGTH:
        raise Refused(value, f"{limits.NONCE_LENGTH} bytes")
    return value


def challenge(value: object) -> bytes:
    return b"" if value == b"" else nonce(value)


def mac(value: object) -> bytes:
    if type(value) is not bytes or len(value) != limits.PROOF_LENGTH:
        raise Refused(value, f"{limits.PROOF_LENGTH} bytes")
    return value


def body(value: object) -> bytes:
    if type(value) is not bytes or len(value) > limits.BODY_SIZE_LIMIT:
        raise Refused(value, f"at most {limits.BODY_SIZE_LIMIT} bytes")
    return value


def seconds(value: object) -> Seconds:
    """Read a length of time; whole numbers are accepted too."""
    if type(value) is int:
        value = float(value) if 0 <= value <= limits.SECONDS_MAX else -1.0
    if type(value) is not float or math.isnan(value) or not 0 <= value <= limits.SECONDS_MAX:
        raise Refused(value, f"a number from 0 to {limits.SECONDS_MAX:.0f}")
    return value


def result_code(value: object) -> int:
    """Read a final result; one of a newer version is read as its class (RFC 3261, 8.1.3.2).

    An unknown code that is no success is read as 500, which leaves open whether it happened.
    """
    code = _read_code(value)
    if code in RESULT_CODES:
        return code
    is_success = ResultCode.OK <= code < _SUCCESS_END
    return ResultCode.OK.value if is_success else ResultCode.FAILED.value


_read_code = integer(CODE_MIN, CODE_MAX)


def array_of(element: Reader[T], length_max: int) -> Reader[list[T]]:
    """Make a reader of lists; the path of a bad element has its index."""

    def read(value: object) -> list[T]:
        if type(value) is not tuple or len(value) > length_max:
            raise Refused(_shape(value), f"an array of at most {length_max}")
        return [_read_at(index, element, value) for index in range(len(value))]

    return read


def sorted_names(value: object) -> tuple[str, ...]:
    names = sorted(_read_names(value))
    if len(dict.fromkeys(names)) != len(names):
        raise Refused(_shape(value), "no name twice")
    return tuple(names)


def sorted_members(value: object) -> tuple[str, ...]:
    return tuple(sorted(dict.fromkeys(_read_down(value))))


def relays(value: object) -> tuple[str, ...]:
    """Read a way: at least one relay, and none twice."""
    found = _read_relays(value)
    if not found or len(dict.fromkeys(found)) != len(found):
        raise Refused(_shape(value), f"1 to {limits.RELAYS_MAX} different node ids")
    return tuple(found)


def bytes_up_to(length_max: int) -> Reader[bytes]:
    """Make a reader of bytes, at most so many."""

    def read(value: object) -> bytes:
        if type(value) is not bytes or len(value) > length_max:
            raise Refused(value, f"at most {length_max} bytes")
        return value

    return read


def sorted_tags(value: object) -> tuple[tuple[str, str], ...]:
    tags = sorted(_read_tags(value))
    if len(dict(tags)) != len(tags):
        raise Refused(_shape(value), "no key twice")
    return tuple(tags)


def _read_pair(value: object) -> tuple[str, str]:
    if type(value) is not tuple or len(value) != 2:
        raise Refused(_shape(value), "an array of key and value")
    return _read_at(0, name, value), _read_at(1, _read_tag_value, value)


def _read_at(index: int, reader: Reader[T], values: tuple[object, ...]) -> T:
    """Read one element, with its index in the path of a refusal."""
    try:
        return reader(values[index])
    except Refused as refused:
        raise refused.within(f"[{index}]") from None


_read_tag_value = text(limits.TAG_VALUE_LENGTH_MAX)
_read_names = array_of(name, limits.CHANNELS_MAX)
_read_tags = array_of(_read_pair, limits.TAGS_MAX)
_read_down = array_of(name, limits.DOWN_MAX)
_read_relays = array_of(name, limits.RELAYS_MAX)


def _shape(value: object) -> object:
    """Say what was found instead of an array without repeating all of it."""
    return f"array of {len(value)}" if isinstance(value, tuple) else value


# --- the schema -----------------------------------------------------------------------------------

FieldReaders: TypeAlias = Mapping[str, Reader[object]]  # field → its reader, in wire order

count = integer(0, limits.COUNT_MAX)
position = integer(1, limits.COUNT_MAX)
_version = integer(0, limits.COUNT_MAX)
_u16 = integer(0, limits.U16_MAX)
_digest = integer(0, limits.DIGEST_MAX)


def structure(cls: type[T], readers: FieldReaders, fields_max: int) -> Reader[T]:
    """Make a reader of arrays of fields; fails at import where `readers` misses a field."""
    untyped: Any = cls  # mypy 2.4 fails on attrs.fields of a type variable
    attributes: tuple[attrs.Attribute[Any], ...] = attrs.fields(untyped)
    rows = [(attribute.name, readers[attribute.name]) for attribute in attributes]
    needed = sum(attribute.default is attrs.NOTHING for attribute in attributes)
    if len(rows) != len(readers):  # pragma: no cover  # fails at import
        raise TypeError(f"{cls} and its readers differ")

    def read(value: object) -> T:
        if type(value) is not tuple or not needed <= len(value) <= fields_max:
            raise Refused(_shape(value), f"an array of {needed} to {fields_max} fields")
        fields: list[Any] = []
        for (field, reader), found in zip(rows, value, strict=False):
            try:
                fields.append(reader(found))
            except Refused as refused:
                raise refused.within(f".{field}") from None
        return cls(*fields)

    return read


def _read_run(value: object) -> Run:
    run = _read_run_fields(value)
    if not 0 <= run.last - run.first < limits.RUN_LENGTH_MAX:
        raise Refused(run.last, f"from first to {limits.RUN_LENGTH_MAX - 1} more", ".last")
    return run


_read_run_fields = structure(
    Run, {"first": position, "last": position, "code": result_code}, limits.FIELDS_MAX
)
_read_record = structure(
    Record,
    {
        "node_id": name,
        "incarnation": count,
        "version": _version,
        "address": address,
        "tags": sorted_tags,
        "channels": sorted_names,
        "left": boolean,
        "priority": _u16,
        "silent_for": seconds,
        "down": sorted_members,
    },
    limits.FIELDS_MAX,
)
_read_entry = structure(
    ListEntry,
    {"node_id": name, "incarnation": count, "version": _version, "silent_for": seconds},
    limits.FIELDS_MAX,
)

SCHEMAS: Mapping[type, FieldReaders] = {
    Hello: {
        "cluster": name,
        "node_id": name,
        "incarnation": count,
        "nonce": nonce,
        "protocol_min": _u16,
        "protocol_max": _u16,
        "address": address,
        "body_size_max": integer(0, limits.BODY_SIZE_LIMIT),
        "window_bytes": count,
        "agent": text(limits.AGENT_LENGTH_MAX),
        "challenge": challenge,
    },
    Resume: {"last_received": count, "first_held": position},
    Close: {"reason": _u16, "detail": text(limits.DETAIL_LENGTH_MAX), "value": count},
    Ping: {"number": count, "digest": _digest},
    Pong: {"number": count, "digest": _digest},
    Ack: {"position": count},
    Records: {"records": array_of(_read_record, limits.ENTRIES_MAX)},
    List: {"entries": array_of(_read_entry, limits.ENTRIES_MAX)},
    Want: {"node_ids": array_of(name, limits.ENTRIES_MAX)},
    Proof: {"mac": mac},
    Routed: {
        "origin": name,
        "origin_incarnation": count,
        "destination": name,
        "destination_incarnation": count,
        "relays": relays,
        "type": _u16,
        "payload": bytes_up_to(limits.ROUTED_PAYLOAD_MAX),
    },
    NoRoute: {
        "origin": name,
        "destination": name,
        "relays": relays,
        "at": name,
    },
    Segment: {
        "number": count,
        "received": count,
        "offset": count,
        "data": bytes_up_to(limits.SEGMENT_BYTES_MAX),
        "ends": boolean,
    },
    Message: {
        "channel": name,
        "content_type": ascii_text(limits.CONTENT_TYPE_LENGTH_MAX),
        "body": body,
        "message_id": count,
        "max_forwards": integer(0, limits.U8_MAX),
        "replicated": boolean,
        "source": name_or_empty,
    },
    Request: {
        "channel": name,
        "content_type": ascii_text(limits.CONTENT_TYPE_LENGTH_MAX),
        "body": body,
        "tag": tag,
        "timeout": seconds,
    },
    Reply: {
        "tag": tag,
        "content_type": ascii_text(limits.CONTENT_TYPE_LENGTH_MAX),
        "body": body,
        "code": _read_code,
    },
    Results: {"runs": array_of(_read_run, limits.ENTRIES_MAX)},
}

_STRUCTURES: Mapping[int, tuple[str, Reader[WireMessage]]] = {  # type number → name, reader
    cls.TYPE: (cls.__name__, structure(cls, readers, limits.FIELDS_MAX))  # type: ignore[attr-defined]  # every message class has a TYPE
    for cls, readers in SCHEMAS.items()
}

TYPES: frozenset[int] = frozenset(_STRUCTURES)
"""The type numbers that this version knows."""


def read_message(type_: int, fields: object) -> WireMessage:
    """Make the message of a known type from the array of its fields.

    Raises:
        RemoteProtocolError: A field is wrong; names its path, what was found and what is allowed.
    """
    title, read = _STRUCTURES[type_]
    try:
        return read(fields)
    except Refused as refused:
        raise RemoteProtocolError(str(refused.within(title))) from None
