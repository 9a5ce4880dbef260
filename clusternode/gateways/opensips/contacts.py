"""The location table of OpenSIPS's usrloc: each change is an event, and a copy is kept; pure.

The copy is bounded, and is there so that we can be a donor: a node without a whole copy never says
that it has one. Rules: OpenSIPS `usrloc/ul_cluster.c`, full-sharing mode.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import attrs

from clusternode.core.events import LimitReached
from clusternode.core.sip_events import LocationReplicated
from clusternode.core.types import Instant
from clusternode.errors import BodyTooLarge, Overloaded, RemoteProtocolError
from clusternode.gateways.opensips.cache import PURGE_INTERVAL, PURGE_PAUSE, PURGE_STEP
from clusternode.gateways.opensips.capabilities import Capabilities
from clusternode.gateways.opensips.codec import FRAME_SIZE_MAX
from clusternode.gateways.opensips.messages import CONTACTS, ModulePacket
from clusternode.gateways.opensips.parts import Surroundings
from clusternode.gateways.opensips.replication import (
    CONTACTS_VERSION,
    MATCH_PARAMETERS,
    AorDelete,
    AorInsert,
    Contact,
    ContactDelete,
    ContactInsert,
    ContactUpdate,
    Location,
    Match,
    location_chunk,
    location_packet,
    read_location_chunk_untrusted,
    read_location_untrusted,
)
from clusternode.gateways.opensips.sync import CHUNK_OVERHEAD, SYNC_OVERHEAD, State
from clusternode.gateways.opensips.typed import Form, action_of, location_form

CONTACTS_MAX: Final = 100_000
AORS_MAX: Final = 100_000
CONTACTS_OF_AOR_MAX: Final = 64
"""Contacts of one address of record; finding one of them looks at all."""
BYTES_MAX: Final = 128 * 2**20
"""Of all texts together."""
CHANGE_SIZE_MAX: Final = FRAME_SIZE_MAX - SYNC_OVERHEAD - len(CONTACTS) - CHUNK_OVERHEAD - 4
"""Of a change as it is sent, so that it also fits into a sync packet."""
_CONTACT_LABEL_MASK: Final = (1 << 14) - 1

COUNTERS: Final[tuple[str, ...]] = ("location_packets_refused", "contacts_refused")

_PARAMETER = re.compile(r";([^;=?>]*)(?:=([^;?>]*))?")


@attrs.define
class _Aor:
    insert: AorInsert
    contacts: list[Contact] = attrs.Factory(list)


class Contacts:
    """Our copy; `Capabilities` brings what others change, and takes what we change."""

    def __init__(
        self,
        around: Surroundings,
        capabilities: Capabilities,
        *,
        contacts_max: int = CONTACTS_MAX,
        aors_max: int = AORS_MAX,
        bytes_max: int = BYTES_MAX,
    ) -> None:
        self.is_complete = True
        self._around = around
        self._capabilities = capabilities
        self._aors: dict[tuple[str, str], _Aor] = {}  # (domain, aor) → what it has
        self._contacts_max = contacts_max
        self._aors_max = aors_max
        self._bytes_max = bytes_max
        self._count = 0
        self._size = 0
        self._purge_at: Instant | None = None
        self._unseen: list[tuple[str, str]] = []  # (domain, aor), to be looked at
        capabilities.register(self)

    # --- as data of a capability --------------------------------------------------------------

    @property
    def name(self) -> str:
        return CONTACTS

    @property
    def version(self) -> int:
        return CONTACTS_VERSION

    def restart(self) -> None:
        self.is_complete = True

    def apply(self, packet: ModulePacket) -> None:
        """Take one change, and raise its event if it is another node's."""
        try:
            change = read_location_untrusted(packet)
        except RemoteProtocolError:
            self._around.count("location_packets_refused")
            return
        self._take(change)
        if packet.trailer.source != self._around.node_id:
            self._raise(packet.trailer.source, action_of(change), location_form(change))

    def apply_chunk_untrusted(self, chunk: bytes, version: int, source: int) -> None:
        """Take one chunk; a contact is an event `sync`.

        Raises:
            RemoteProtocolError: It cannot be read.
        """
        change = read_location_chunk_untrusted(chunk, version)
        self._take(change)
        if isinstance(change, ContactInsert):
            self._raise(source, "sync", location_form(change))

    def chunks(self) -> Iterator[bytes]:
        """Yield each address of record and after it its contacts."""
        for key in [*self._aors]:
            aor = self._aors.get(key)
            if aor is None:
                continue
            yield location_chunk(aor.insert)
            for contact in [*aor.contacts]:
                if self._is_alive(contact):
                    yield location_chunk(ContactInsert(contact))

    # --- for scripts and the bridge -----------------------------------------------------------

    @property
    def is_synced(self) -> bool:
        return self._capabilities.sync_state(CONTACTS) is State.SYNCED

    def aors(self, domain: str = "location") -> list[str]:
        return [aor for name, aor in self._aors if name == domain]

    def contacts(self, aor: str, domain: str = "location") -> tuple[Contact, ...]:
        """Return what is registered for an address of record and has not expired."""
        kept = self._aors.get((domain, aor))
        return () if kept is None else tuple(filter(self._is_alive, kept.contacts))

    def publish(self, change: Location) -> int:
        """Carry a change out here and tell the others.

        Returns:
            To how many nodes it is on its way.

        Raises:
            BodyTooLarge: It does not fit into one packet.
            Overloaded: There is no room for it here.
            LocalProtocolError: A text or number cannot be written.
        """
        packet = location_packet(self._around.trailer(self._around.node_id), change)
        if len(packet.body) > CHANGE_SIZE_MAX:
            raise BodyTooLarge(f"change of {len(packet.body)} bytes, at most {CHANGE_SIZE_MAX}")
        if not self._take(change):
            raise Overloaded(f"location: {self._count} contacts of {self._size} bytes are kept")
        self._capabilities.changed_here(packet)
        return self._capabilities.send(CONTACTS, packet.type, packet.version, packet.body)

    # --- time ---------------------------------------------------------------------------------

    def tick(self) -> None:
        """Drop what has expired, and addresses of record that lose their last contact so.

        A part at a time, like `Cache.tick`.
        """
        if self._purge_at is None or self._around.now < self._purge_at:
            return
        self._unseen = self._unseen or [*self._aors]
        for key in self._unseen[-PURGE_STEP:]:
            aor = self._aors.get(key)
            expired = [] if aor is None else [c for c in aor.contacts if not self._is_alive(c)]
            for contact in expired:
                self._drop(self._aors[key], contact)
            if expired and not self._aors[key].contacts:
                self._drop_aor(key)
        del self._unseen[-PURGE_STEP:]
        pause = PURGE_PAUSE if self._unseen else PURGE_INTERVAL
        self._purge_at = self._around.now + pause if self._count else None

    def next_deadline(self) -> Instant | None:
        return self._purge_at

    # --- inside -------------------------------------------------------------------------------

    def _is_alive(self, contact: Contact) -> bool:
        return contact.expires == 0 or contact.expires > self._around.unix_now

    def _take(self, change: Location) -> bool:
        """Carry a change out; False when there is no room for it."""
        match change:
            case AorInsert():
                return self._add_aor(change) is not None
            case AorDelete(domain, aor):
                self._drop_aor((domain, aor))
            case ContactDelete(domain, aor, uri, callid, cseq, rule):
                kept = self._aors.get((domain, aor))
                found = None if kept is None else find(kept.contacts, uri, callid, rule)
                if kept is not None and found is not None and not _is_older(cseq, callid, found):
                    self._drop(kept, found)
            case ContactInsert(contact, rule) | ContactUpdate(contact, rule):
                return self._put(contact, rule)
        return True

    def _add_aor(self, insert: AorInsert) -> _Aor | None:
        key = (insert.domain, insert.aor)
        kept = self._aors.get(key)
        if kept is not None:
            return kept
        size = _size_of_aor(insert)
        if len(self._aors) >= self._aors_max or self._size + size > self._bytes_max:
            self._refuse()
            return None
        self._size += size
        return self._aors.setdefault(key, _Aor(insert))

    def _put(self, contact: Contact, rule: Match) -> bool:
        insert = AorInsert(
            contact.domain,
            contact.aor,
            contact.aor_label,
            (contact.contact_id + 1) & _CONTACT_LABEL_MASK,
        )
        aor = self._add_aor(insert)
        if aor is None:
            return False
        old = find(aor.contacts, contact.contact, contact.callid, rule)
        if old is not None:
            if _is_older(contact.cseq, contact.callid, old):
                return True
            self._drop(aor, old)
        size = _size_of(contact)
        if (
            self._count >= self._contacts_max
            or len(aor.contacts) >= CONTACTS_OF_AOR_MAX
            or self._size + size > self._bytes_max
        ):
            self._refuse()
            return False
        aor.contacts.append(contact)
        self._count += 1
        self._size += size
        if self._purge_at is None:
            self._purge_at = self._around.now + PURGE_INTERVAL
        return True

    def _drop(self, aor: _Aor, contact: Contact) -> None:
        aor.contacts.remove(contact)
        self._count -= 1
        self._size -= _size_of(contact)

    def _drop_aor(self, key: tuple[str, str]) -> None:
        aor = self._aors.pop(key, None)
        if aor is not None:
            self._count -= len(aor.contacts)
            self._size -= _size_of_aor(aor.insert) + sum(map(_size_of, aor.contacts))

    def _refuse(self) -> None:
        """Count it, and stop being a donor."""
        self._around.count("contacts_refused")
        if self.is_complete:
            self.is_complete = False
            detail = f"{self._count} contacts of {self._size} bytes"
            name = self._around.cluster_name
            self._around.raise_event(LimitReached(name, "contacts", "", detail))
            self._capabilities.incomplete(CONTACTS)

    def _raise(self, source: int, action: str, form: Form) -> None:
        name = self._around.cluster_name
        del form["action"]
        event = LocationReplicated(name, str(source), action, form["aor"], form)
        self._around.raise_event(event)


def find(contacts: list[Contact], uri: str, callid: str, rule: Match) -> Contact | None:
    """Return the contact that a change means, by its match rule."""
    for contact in contacts:
        if rule.mode == MATCH_PARAMETERS:
            if _has_equal(rule.parameters, _parameters(contact.contact), _parameters(uri)):
                return contact
        elif contact.contact == uri and (rule.mode != 1 or contact.callid == callid):
            return contact
    return None


def _has_equal(names: tuple[str, ...], ours: dict[str, str], theirs: dict[str, str]) -> bool:
    """Tell whether two URIs have all of these parameters, with the same values."""
    lowered = [name.lower() for name in names]
    return bool(lowered) and all(
        name in ours and ours[name] == theirs.get(name) for name in lowered
    )


def _parameters(uri: str) -> dict[str, str]:
    return {found[1].lower(): found[2] or "" for found in _PARAMETER.finditer(uri)}


def _is_older(cseq: int, callid: str, kept: Contact) -> bool:
    """Tell whether a change comes late: the same call, and a smaller CSeq."""
    return callid == kept.callid and cseq < kept.cseq


def _size_of(contact: Contact) -> int:
    texts = (
        contact.contact,
        contact.callid,
        contact.user_agent,
        contact.path,
        contact.attr,
        contact.received,
        contact.instance,
        contact.sock,
        contact.attributes,
    )
    return sum(map(len, texts))


def _size_of_aor(insert: AorInsert) -> int:
    return len(insert.domain) + len(insert.aor) + len(insert.attributes)
