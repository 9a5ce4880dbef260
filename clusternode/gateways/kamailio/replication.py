"""What Kamailio's modules htable and usrloc say to one another over DMQ, as typed values.

Bodies are JSON. What is read is untrusted and bounded; what is written has the members of 5.6 in
its order, because that version refuses any other with 400, and newer ones take them.
Specified in docs/gateway-kamailio.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import attrs

from clusternode.errors import RemoteProtocolError

HTABLE_CHANNEL: Final = "htable"
USRLOC_CHANNEL: Final = "usrloc"
JSON_CONTENT_TYPE: Final = "application/json"
NAME_LENGTH_MAX: Final = 1024
"""Of a table or key; Kamailio's own bound is the size of its buffers."""
CELLS_MAX: Final = 4096
"""Cells of one body: more do not fit into 64 KB."""
CELLS_BODY_SIZE_MAX: Final = 60_000
"""As Kamailio cuts its own dumps."""
INTEGER_MAX: Final = 2**63 - 1
CONTACTS_MAX: Final = 4096
"""Contacts of one body; Kamailio's batches have 50."""

Value: TypeAlias = str | int


@attrs.frozen
class Set:
    """A cell was set ($sht(table=>key) = value)."""

    table: str
    key: str
    value: Value
    mode: int = 1
    """1 where a script set it."""
    last_modified: int | None = None
    """Milliseconds since 1970 (6.2); None before."""


@attrs.frozen
class SetExpire:
    """A cell lives for `seconds` from now on ($shtex)."""

    table: str
    key: str
    seconds: int


@attrs.frozen
class Delete:
    """A cell was deleted ($sht(table=>key) = $null)."""

    table: str
    key: str


@attrs.frozen
class RemoveRegex:
    """All cells whose key matches a POSIX extended regular expression (sht_rm_name_re)."""

    table: str
    pattern: str


@attrs.frozen
class RemovePrefix:
    """All cells whose key begins so (sht_rm_name, operator `sw`)."""

    table: str
    prefix: str


@attrs.frozen
class SyncRequest:
    """Send me everything; `table` is one table (6.2), empty for all."""

    table: str = ""


@attrs.frozen
class Cell:
    """One cell of a dump."""

    table: str
    key: str
    value: Value
    expire: int = 0
    """Seconds since 1970; 0 for never."""
    last_modified: int | None = None


@attrs.frozen
class Cells:
    """A part of a dump, for the one who asked."""

    cells: tuple[Cell, ...]


Htable: TypeAlias = Set | SetExpire | Delete | RemoveRegex | RemovePrefix | SyncRequest | Cells


@attrs.frozen
class Contact:
    """What usrloc says of one contact: `action` is update, remove or sync."""

    action: str
    fields: Mapping[str, Value]
    """aor, ruid, c, received, path, callid, user_agent, expires, q, … as they came."""


USRLOC_ACTIONS: Final[Mapping[int, str]] = {1: "update", 2: "remove", 3: "sync"}


def parse_htable_untrusted(body: bytes) -> Htable:
    """Read a body of the channel htable.

    Raises:
        RemoteProtocolError: It is none.
    """
    fields = _object(body)
    if "cells" in fields:
        cells = fields["cells"]
        if not isinstance(cells, list) or len(cells) > CELLS_MAX:
            raise RemoteProtocolError(f"htable: cells must be a list of at most {CELLS_MAX}")
        return Cells(tuple(_cell(cell) for cell in cells))
    match _integer(fields, "action"):
        case 1:
            return SyncRequest(_text(fields, "htname") if "htname" in fields else "")
        case 2:
            return Set(
                _text(fields, "htname"),
                _text(fields, "cname"),
                _value(fields),
                _integer(fields, "mode") if "mode" in fields else 0,
                _modified(fields),
            )
        case 3:
            seconds = _integer(fields, "intval")
            return SetExpire(_text(fields, "htname"), _text(fields, "cname"), seconds)
        case 4:
            return Delete(_text(fields, "htname"), _text(fields, "cname"))
        case 5:
            return RemoveRegex(_text(fields, "htname"), _text(fields, "strval"))
        case 6:
            return RemovePrefix(_text(fields, "htname"), _text(fields, "strval"))
        case action:
            raise RemoteProtocolError(f"htable: action {action}")


def _cell(fields: object) -> Cell:
    if not isinstance(fields, dict):
        raise RemoteProtocolError("htable: a cell that is no object")
    expire = _integer(fields, "expire") if "expire" in fields else 0
    return Cell(
        _text(fields, "htname"),
        _text(fields, "cname"),
        _value(fields),
        max(expire, 0),
        _modified(fields),
    )


def _value(fields: Mapping[str, Any]) -> Value:
    if _integer(fields, "type") & 2:  # AVP_VAL_STR
        return _string(fields.get("strval"), "strval", None)
    return _integer(fields, "intval")


def _modified(fields: Mapping[str, Any]) -> int | None:
    return _integer(fields, "last_modified") if "last_modified" in fields else None


def encode_htable(message: Htable) -> bytes:
    """Write one as Kamailio 5.6 does, member by member."""
    match message:
        case SyncRequest():
            fields: dict[str, object] = {"action": 1}
        case Set(table, key, value, mode):
            fields = {"action": 2, "htname": table, "cname": key, **_typed(value), "mode": mode}
        case SetExpire(table, key, seconds):
            fields = {"action": 3, "htname": table, "cname": key, "type": 0}
            fields |= {"intval": seconds, "mode": 0}
        case Delete(table, key):
            fields = {"action": 4, "htname": table, "cname": key, "mode": 0}
        case RemoveRegex(table, pattern):
            fields = {"action": 5, "htname": table, "type": 2, "strval": pattern, "mode": 0}
        case RemovePrefix(table, prefix):
            fields = {"action": 6, "htname": table, "type": 2, "strval": prefix, "mode": 0}
        case Cells(cells):
            return b'{"cells":[%b]}' % b",".join(_encode_cell(cell) for cell in cells)
    return _dump(fields)


def _typed(value: Value) -> dict[str, object]:
    if isinstance(value, str):
        return {"type": 2, "strval": value}
    return {"type": 0, "intval": value}


def _encode_cell(cell: Cell) -> bytes:
    fields = {"htname": cell.table, "cname": cell.key, **_typed(cell.value), "expire": cell.expire}
    return _dump(fields)


def encode_dump(cells: Iterable[Cell]) -> Iterator[bytes]:
    """Write a dump in bodies that Kamailio takes; one empty body where there are no cells."""
    part: list[bytes] = []
    size = 0
    has_any = False
    for cell in cells:
        encoded = _encode_cell(cell)
        if part and (size + len(encoded) > CELLS_BODY_SIZE_MAX or len(part) >= CELLS_MAX):
            yield b'{"cells":[%b]}' % b",".join(part)
            part, size = [], 0
        part.append(encoded)
        size += len(encoded) + 1
        has_any = True
    if part or not has_any:
        yield b'{"cells":[%b]}' % b",".join(part)


def parse_usrloc_untrusted(body: bytes) -> Sequence[Contact]:
    """Read a body of the channel usrloc: one contact, or a batch of them.

    Raises:
        RemoteProtocolError: It is none.
    """
    fields = _object(body)
    batch = fields.get("multi")
    if batch is None:
        return [_contact(fields)]
    if not isinstance(batch, dict) or len(batch) > CONTACTS_MAX:
        raise RemoteProtocolError(f"usrloc: multi must be an object of at most {CONTACTS_MAX}")
    return [_contact(contact) for contact in batch.values()]


def _contact(fields: object) -> Contact:
    if not isinstance(fields, dict):
        raise RemoteProtocolError("usrloc: a contact that is no object")
    action = USRLOC_ACTIONS.get(_integer(fields, "action"))
    if action is None:
        raise RemoteProtocolError(f"usrloc: action {fields['action']}")
    values: dict[str, Value] = {}
    for name, value in fields.items():
        if name == "action":
            continue
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise RemoteProtocolError("usrloc: a field that is neither text nor number")
        _string(name, "name", NAME_LENGTH_MAX)
        values[name] = _string(value, "field", None) if isinstance(value, str) else _bound(value)
    if action != "sync" and not values.get("aor"):
        raise RemoteProtocolError("usrloc: no aor")
    return Contact(action, values)


def encode_contact(contact: Contact) -> bytes:
    """Write one contact, update or removal, with its fields in the order in which they are."""
    action = next(number for number, name in USRLOC_ACTIONS.items() if name == contact.action)
    return _dump({"action": action, **contact.fields})


# --- JSON ---------------------------------------------------------------------------------------


def _object(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body.rstrip(b"\0"))
    except (ValueError, RecursionError):
        raise RemoteProtocolError("no JSON") from None
    if not isinstance(fields, dict):
        raise RemoteProtocolError("no JSON object")
    return fields


def _dump(fields: object) -> bytes:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def _text(fields: Mapping[str, Any], name: str) -> str:
    return _string(fields.get(name), name, NAME_LENGTH_MAX)


def _string(value: object, name: str, length_max: int | None) -> str:
    if not isinstance(value, str) or (length_max is not None and len(value) > length_max):
        raise RemoteProtocolError(f"{name}: no text, or too long")
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can say
        raise RemoteProtocolError(f"{name}: no Unicode") from None
    return value


def _integer(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise RemoteProtocolError(f"{name}: no whole number")
    return _bound(value)


def _bound(value: int) -> int:
    if abs(value) > INTEGER_MAX:
        raise RemoteProtocolError("a number of more than 64 bits")
    return value
