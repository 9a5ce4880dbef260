"""Cells and registrations in the words of Kamailio's htable and usrloc, and back. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from clusternode.bridge.changes import CellChange, Change, ContactChange
from clusternode.bridge.marks import digest
from clusternode.errors import RemoteProtocolError
from clusternode.gateways.kamailio.replication import (
    HTABLE_CHANNEL,
    USRLOC_CHANNEL,
    Cells,
    Contact,
    Delete,
    RemovePrefix,
    RemoveRegex,
    Set,
    SetExpire,
    SyncRequest,
    Value,
    encode_contact,
    encode_htable,
    parse_htable_untrusted,
    parse_usrloc_untrusted,
)

CHANNELS: Final[Mapping[str, str]] = {"table": HTABLE_CHANNEL, "contacts": USRLOC_CHANNEL}
RUID_LENGTH: Final = 16
RECORD_IDS_MAX: Final = 10_000
"""Contacts whose record ids are remembered for one rule; of others it is derived."""
ALL_METHODS: Final = 0xFFFFFFFF
"""What usrloc says of a contact without Allow: every bit of its 32."""


def read_untrusted(kind: str, name: str, body: bytes, unix_now: float) -> list[Change]:
    """Return the changes that a body of the channel htable or usrloc tells of one table.

    A question (sync) tells none. `name` is the shared table; usrloc replicates one domain only.

    Raises:
        RemoteProtocolError: It is no such body.
    """
    if kind == "contacts":
        found = [_read_contact(contact, name) for contact in parse_usrloc_untrusted(body)]
        return [change for change in found if change is not None]
    match parse_htable_untrusted(body):
        case Set(table, key, value) if table == name:
            return [CellChange("set", table, key, value)]
        case SetExpire(table, key, seconds) if table == name:
            return [CellChange("expire", table, key, None, max(seconds, 0))]
        case Delete(table, key) if table == name:
            return [CellChange("delete", table, key)]
        case RemovePrefix(table, prefix) if table == name:
            return [CellChange("delete_prefix", table, prefix)]
        case RemoveRegex(table, pattern) if table == name:
            return [CellChange("delete_regex", table, pattern)]
        case Cells(cells):
            return [
                CellChange("set", cell.table, cell.key, cell.value, _left(cell.expire, unix_now))
                for cell in cells
                if cell.table == name and (not cell.expire or cell.expire > unix_now)
            ]
        case SyncRequest():
            return []
        case _:  # of another table
            return []


def _left(expire: int, unix_now: float) -> int:
    return max(round(expire - unix_now), 1) if expire else 0


def _read_contact(contact: Contact, domain: str) -> ContactChange | None:
    if contact.action == "sync":
        return None
    fields = contact.fields
    methods = _number(fields, "methods", ALL_METHODS)
    return ContactChange(
        action="remove" if contact.action == "remove" else "update",
        aor=_text(fields, "aor"),
        contact=_text(fields, "c"),
        domain=domain,
        expires=max(_number(fields, "expires", 0), 0),
        call_id=_text(fields, "callid"),
        cseq=_number(fields, "cseq", 0),
        q=_number(fields, "q", -1),
        received=_text(fields, "received"),
        path=_text(fields, "path"),
        user_agent=_text(fields, "user_agent"),
        instance=_text(fields, "instance"),
        methods=-1 if methods == ALL_METHODS else methods,
        last_modified=_number(fields, "last_modified", 0),
    )


def _text(fields: Mapping[str, Value], name: str) -> str:
    return str(fields.get(name, ""))


def _number(fields: Mapping[str, Value], name: str, default: int) -> int:
    value = fields.get(name, default)
    if isinstance(value, str):
        raise RemoteProtocolError(f"usrloc: {name}: no whole number")
    return value


def write(change: Change, unix_now: float, record_id: str = "") -> Sequence[bytes]:
    """Return the bodies of the channel htable or usrloc that say a change.

    `record_id` is that of a contact that a Kamailio has registered; empty: it is derived.
    """
    if isinstance(change, ContactChange):
        return [encode_contact(_contact(change, unix_now, record_id or ruid_of(change)))]
    table, key = change.table, change.key
    match change.action:
        case "set":
            assert change.value is not None, "a set has a value"
            bodies = [encode_htable(Set(table, key, change.value))]
            if change.ttl is not None:
                bodies.append(encode_htable(SetExpire(table, key, change.ttl)))
            return bodies
        case "expire":
            return [encode_htable(SetExpire(table, key, change.ttl or 0))]
        case "delete":
            return [encode_htable(Delete(table, key))]
        case "delete_prefix":
            return [encode_htable(RemovePrefix(table, key))]
        case "delete_regex":
            return [encode_htable(RemoveRegex(table, key))]


@attrs.define
class RecordIds:
    """The record ids that Kamailios gave to contacts: a contact is found by nothing else there."""

    size_max: int = RECORD_IDS_MAX
    _ids: OrderedDict[tuple[str, str], str] = attrs.Factory(OrderedDict)  # (AoR, contact) → ruid

    def learn_untrusted(self, body: bytes) -> None:
        """Take note of the contacts that a body of the channel usrloc tells.

        Raises:
            RemoteProtocolError: It is no such body.
        """
        for contact in parse_usrloc_untrusted(body):
            key = (_text(contact.fields, "aor"), _text(contact.fields, "c"))
            if contact.action == "remove":
                self._ids.pop(key, None)
            elif contact.action == "update":
                self._ids[key] = _text(contact.fields, "ruid")
                self._ids.move_to_end(key)
                if len(self._ids) > self.size_max:
                    self._ids.popitem(last=False)

    def of(self, change: Change) -> str:
        """Return the record id of a contact, empty where none is known."""
        if isinstance(change, CellChange):
            return ""
        return self._ids.get((change.aor, change.contact), "")


def ruid_of(change: ContactChange) -> str:
    """Return the record id of a contact that no Kamailio has registered.

    The same for an update and its removal, so that Kamailio finds what it is to remove.
    """
    identity = "\0".join((change.domain, change.aor, change.contact))
    return "cn-" + digest(identity, RUID_LENGTH)


def _contact(change: ContactChange, unix_now: float, record_id: str) -> Contact:
    methods = ALL_METHODS if change.methods < 0 else change.methods & ALL_METHODS
    return Contact(
        change.action,
        {
            "aor": change.aor,
            "ruid": record_id,
            "c": change.contact,
            "received": change.received,
            "path": change.path,
            "callid": change.call_id,
            "user_agent": change.user_agent,
            "instance": change.instance,
            "expires": change.expires,
            "cseq": change.cseq,
            "flags": 0,
            "cflags": 0,
            "q": change.q,
            "last_modified": change.last_modified or int(unix_now),
            "methods": methods,
            "reg_id": 0,
            "server_id": 0,
        },
    )
