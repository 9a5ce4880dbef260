"""What both SIP worlds know, in words of neither: cells of shared tables, and registrations. Pure.

What is kept and what is lost on each way is the table "Translations" of
docs/one-bus-from-three.md; the functions that read and write each world's own are in
`clusternode.bridge.kamailio` and `clusternode.bridge.opensips`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias, cast

import attrs

from clusternode.errors import RemoteProtocolError

INTEGER_MAX: Final = 2**63 - 1
TEXT_LENGTH_MAX: Final = 65_536

CellAction: TypeAlias = Literal["set", "delete", "expire", "delete_prefix", "delete_regex"]
CELL_ACTIONS: Final = ("set", "delete", "expire", "delete_prefix", "delete_regex")
CONTACT_ACTIONS: Final = ("update", "remove")


@attrs.frozen
class CellChange:
    """A cell of a shared table was set or deleted, or is to live so long from now on."""

    action: CellAction
    table: str
    key: str
    """The key; the prefix or expression of `delete_prefix` and `delete_regex`."""
    value: str | int | None = None
    ttl: int | None = None
    """Seconds; 0: for ever; None: what the table says."""


@attrs.frozen(kw_only=True)
class ContactChange:
    """A user was registered, or is no longer.

    The fields of a contact that Kamailio's and OpenSIPS's usrloc both have.
    """

    action: Literal["update", "remove"]
    aor: str
    """The user as the location table has it, with or without domain."""
    contact: str
    """The URI where he is."""
    domain: str = "location"
    """The location table."""
    expires: int = 0
    """Unix time; 0: for ever."""
    call_id: str = ""
    cseq: int = 0
    q: int = -1
    """Thousandths; -1: none."""
    received: str = ""
    path: str = ""
    user_agent: str = ""
    instance: str = ""
    """+sip.instance."""
    methods: int = -1
    """Bits of the methods that it allows; -1: all."""
    last_modified: int = 0
    """Unix time; 0: not known."""


Change: TypeAlias = CellChange | ContactChange

_CONTACT_TEXTS: Final = (*("domain", "call_id", "received", "path", "user_agent", "instance"),)
_CONTACT_NUMBERS: Final = ("expires", "cseq", "q", "methods", "last_modified")


def to_json(change: Change) -> dict[str, Any]:
    """Return a change as a JSON object; what is not said is left out."""
    found = attrs.asdict(change, filter=lambda _, value: value is not None)
    if isinstance(change, ContactChange):
        return {"contact": found.pop("contact"), **found}
    return found


def encode(change: Change) -> bytes:
    return json.dumps(to_json(change), ensure_ascii=False).encode("utf-8", "replace")


def parse_untrusted(kind: str, body: bytes) -> Change:
    """Read what `encode` wrote, or somebody else in its form; `kind` is table or contacts.

    Raises:
        RemoteProtocolError: It is none.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise RemoteProtocolError("no JSON") from None
    if not isinstance(found, dict):
        raise RemoteProtocolError("no JSON object")
    return _cell(found) if kind == "table" else _contact(found)


def _cell(found: Mapping[str, Any]) -> CellChange:
    action = found.get("action")
    if action not in CELL_ACTIONS:
        raise RemoteProtocolError(f"action: one of {', '.join(CELL_ACTIONS)}")
    value: str | int | None = None
    if found.get("value") is not None:
        is_text = isinstance(found["value"], str)
        value = _text(found, "value") if is_text else _integer(found, "value")
    if action == "set" and value is None:
        raise RemoteProtocolError("set: no value")
    ttl = None if found.get("ttl") is None else max(_integer(found, "ttl"), 0)
    table = _text(found, "table") if "table" in found else ""
    return CellChange(cast("CellAction", action), table, _text(found, "key"), value, ttl)


def _contact(found: Mapping[str, Any]) -> ContactChange:
    action = found.get("action")
    if action not in CONTACT_ACTIONS:
        raise RemoteProtocolError(f"action: one of {', '.join(CONTACT_ACTIONS)}")
    more: dict[str, Any] = {
        **{name: _text(found, name) for name in _CONTACT_TEXTS if name in found},
        **{name: _integer(found, name) for name in _CONTACT_NUMBERS if name in found},
    }
    return ContactChange(
        action=cast("Literal['update', 'remove']", action),
        aor=_text(found, "aor"),
        contact=_text(found, "contact"),
        **more,
    )


def _text(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name)
    if not isinstance(value, str) or len(value) > TEXT_LENGTH_MAX:
        raise RemoteProtocolError(f"{name}: no text, or too long")
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can say
        raise RemoteProtocolError(f"{name}: no Unicode") from None
    return value


def _integer(found: Mapping[str, Any], name: str) -> int:
    value = found.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > INTEGER_MAX:
        raise RemoteProtocolError(f"{name}: no whole number of 64 bits")
    return value
