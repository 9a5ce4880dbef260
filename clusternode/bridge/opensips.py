"""Cells and registrations in the words of OpenSIPS's cachedb_local and usrloc, and back. Pure.

The words are the JSON forms of `clusternode.gateways.opensips.typed`, which are what the channels
of these capabilities carry.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from clusternode.bridge.changes import CellChange, Change, ContactChange
from clusternode.bridge.marks import number_of
from clusternode.errors import RemoteProtocolError
from clusternode.gateways.opensips.messages import CACHE, CONTACTS
from clusternode.gateways.opensips.replication import (
    CacheInsert,
    CacheRemove,
    Contact,
    ContactDelete,
    ContactInsert,
    ContactUpdate,
)
from clusternode.gateways.opensips.typed import (
    cache_form,
    location_form,
    read_cache_form_untrusted,
    read_location_form_untrusted,
)

CHANNELS: Final[Mapping[str, str]] = {"table": CACHE, "contacts": CONTACTS}
CONTACT_LABEL_BITS: Final = 14
AOR_LABEL_BITS: Final = 20
"""Of a contact id: usrloc has the label of the contact in its lowest bits, above it the AoR's.

There is room for 32 bits, but each node goes on counting from the largest label that it has seen.
"""


def read_untrusted(kind: str, name: str, body: bytes) -> list[Change]:
    """Return the changes that a form tells of one collection, or of one domain.

    An AoR that comes or goes tells none: its contacts are told one by one.

    Raises:
        RemoteProtocolError: It is no form, or its value is no text.
    """
    if kind == "contacts":
        return _read_location(body, name)
    change = read_cache_form_untrusted(body)
    if change.collection != name:
        return []
    if isinstance(change, CacheRemove):
        return [CellChange("delete", name, change.key)]
    try:
        value = change.value.decode()
    except UnicodeDecodeError:
        raise RemoteProtocolError("value: no text") from None
    return [CellChange("set", name, change.key, value, change.ttl)]


def _read_location(body: bytes, domain: str) -> list[Change]:
    match read_location_form_untrusted(body):
        case ContactInsert(contact) | ContactUpdate(contact) if contact.domain == domain:
            return [
                ContactChange(
                    action="update",
                    aor=contact.aor,
                    contact=contact.contact,
                    domain=domain,
                    expires=contact.expires,
                    call_id=contact.callid,
                    cseq=contact.cseq,
                    q=contact.q,
                    received=contact.received,
                    path=contact.path,
                    user_agent=contact.user_agent,
                    instance=contact.instance,
                    methods=contact.methods,
                    last_modified=contact.last_modified,
                )
            ]
        case ContactDelete() as gone if gone.domain == domain:
            return [
                ContactChange(
                    action="remove",
                    aor=gone.aor,
                    contact=gone.contact,
                    domain=domain,
                    call_id=gone.callid,
                    cseq=gone.cseq,
                )
            ]
        case _:
            return []


def write(change: Change, unix_now: float) -> bytes:
    """Return the form of a change.

    Raises:
        RemoteProtocolError: OpenSIPS has no word for it.
    """
    if isinstance(change, ContactChange):
        return json.dumps(location_form(_location(change, unix_now))).encode()
    match change.action:
        case "set":
            value = str(change.value).encode()
            cell = CacheInsert(change.table, change.key, value, change.ttl or 0)
            return json.dumps(cache_form(cell)).encode()
        case "delete":
            return json.dumps(cache_form(CacheRemove(change.table, change.key))).encode()
        case _:
            raise RemoteProtocolError(f"cachedb_local cannot {change.action}")


def _location(change: ContactChange, unix_now: float) -> ContactInsert | ContactDelete:
    """Return an insert, which a node that knows the contact takes as an update.

    And not an update: with that a node that does not know the contact takes our id as it is.
    """
    if change.action == "remove":
        return ContactDelete(change.domain, change.aor, change.contact, change.call_id, change.cseq)
    return ContactInsert(
        Contact(
            change.domain,
            change.aor,
            change.contact,
            contact_id=contact_id_of(change),
            callid=change.call_id,
            user_agent=change.user_agent,
            path=change.path,
            received=change.received,
            instance=change.instance,
            expires=change.expires,
            q=change.q,
            cseq=change.cseq,
            methods=change.methods,
            last_modified=change.last_modified or int(unix_now),
        )
    )


def contact_id_of(change: ContactChange) -> int:
    """Return the id of a contact, which its registrar would have given; the same every time.

    The bits above, a hash of the AoR, each node fills in itself.
    """
    aor = number_of(f"{change.domain}\0{change.aor}", AOR_LABEL_BITS)
    return aor << CONTACT_LABEL_BITS | number_of(change.contact, CONTACT_LABEL_BITS)
