"""What two modules of a simulated OpenSIPS replicate: cachedb_local and usrloc."""

from __future__ import annotations

import math
from typing import Final

import attrs

from clusternode.core.types import Instant
from clusternode.simulation.opensips.transport import Machine
from clusternode.simulation.opensips.wire import Reader, Refused, fields

CACHE: Final = "cachedb-local-repl"
CACHE_INSERT, CACHE_REMOVE = 1, 2
CACHE_VERSION: Final = 1

CONTACTS: Final = "usrloc-contact-repl"
AOR_INSERT, AOR_DELETE, CONTACT_INSERT, CONTACT_UPDATE, CONTACT_DELETE = 1, 2, 3, 4, 5
CONTACTS_VERSION: Final = 5
DOMAIN: Final = b"location"
MATCH_BY_CALL_ID: Final = 1


@attrs.frozen
class CacheEntry:
    """A value of the cache."""

    value: bytes
    expires: Instant | None

    def is_valid(self, now: Instant) -> bool:
        return self.expires is None or self.expires > now


class Cache:
    """cachedb_local with some replicated collections; those of others are not taken."""

    name = CACHE
    data_version = CACHE_VERSION

    def __init__(self, machine: Machine, collections: tuple[str, ...]) -> None:
        self._machine = machine
        self._collections: dict[bytes, dict[bytes, CacheEntry]] = {
            collection.encode(): {} for collection in collections
        }

    def contents(self, collection: str) -> dict[bytes, bytes]:
        """Return key → value of what has not expired."""
        now = self._machine.now
        entries = self._collections[collection.encode()]
        return {key: entry.value for key, entry in entries.items() if entry.is_valid(now)}

    def store(self, collection: bytes, key: bytes, value: bytes, ttl: int) -> None:
        entries = self._collections.get(collection)
        if entries is not None:
            entries[key] = CacheEntry(value, self._machine.now + ttl if ttl > 0 else None)

    def remove(self, collection: bytes, key: bytes) -> None:
        self._collections.get(collection, {}).pop(key, None)

    def packet(self, kind: int, reader: Reader) -> None:
        if kind == CACHE_INSERT:
            self.chunk(reader)
        elif kind == CACHE_REMOVE:
            self.remove(reader.string(), reader.string())

    def chunk(self, reader: Reader) -> None:
        self.store(reader.string(), reader.string(), reader.string(), reader.integer())

    def chunks(self) -> list[bytes]:
        now = self._machine.now
        return [
            fields(collection, key, entry.value, _rest_of_life(entry, now))
            for collection, entries in self._collections.items()
            for key, entry in entries.items()
            if entry.is_valid(now)
        ]


def _rest_of_life(entry: CacheEntry, now: Instant) -> int:
    return 0 if entry.expires is None else math.ceil(entry.expires - now)


@attrs.define
class Record:
    """An address of record: what its AOR_INSERT said, and its contacts by their address."""

    body: bytes
    contacts: dict[bytes, bytes] = attrs.Factory(dict)  # contact → the fields of its CT_INSERT


class Contacts:
    """usrloc with full sharing. Fields that the cluster does not look at are kept as they came."""

    name = CONTACTS
    data_version = CONTACTS_VERSION

    def __init__(self) -> None:
        self._records: dict[tuple[bytes, bytes], Record] = {}  # (domain, AoR) → record

    def contacts_of(self, aor: str) -> list[bytes]:
        """Return the contact addresses of an AoR."""
        record = self._records.get((DOMAIN, aor.encode()))
        return list(record.contacts) if record else []

    def packet(self, kind: int, reader: Reader) -> None:
        if kind == CONTACT_UPDATE:
            self._store(_as_insert(reader.rest()), is_contact=True)
            return
        if kind in (CONTACT_INSERT, AOR_INSERT):
            self._store(reader.rest(), is_contact=kind != AOR_INSERT)
            return
        key = (reader.string(), reader.string())
        if kind == AOR_DELETE:
            self._records.pop(key, None)
        elif kind == CONTACT_DELETE and key in self._records:
            self._records[key].contacts.pop(reader.string(), None)

    def chunk(self, reader: Reader) -> None:
        is_contact = bool(reader.integer())
        self._store(reader.rest(), is_contact=is_contact)

    def _store(self, body: bytes, *, is_contact: bool) -> None:
        reader = Reader(body)
        key = (reader.string(), reader.string())
        if is_contact:
            contact = reader.string()
            _check_contact(reader)
            default = Record(fields(*key, 0, 0, b""))
            self._records.setdefault(key, default).contacts[contact] = body
        else:
            reader.integer(), reader.integer(), reader.string()
            self._records.setdefault(key, Record(body)).body = body

    def chunks(self) -> list[bytes]:
        found = []
        for record in self._records.values():
            found.append(fields(0) + record.body)
            found += [fields(1) + contact for contact in record.contacts.values()]
        return found


def _check_contact(reader: Reader) -> None:
    """Read what follows the address: the widths of 64-bit values are checked, as usrloc does."""
    if len(reader.string()) != 8:
        raise Refused("contact id")
    for _ in range(6):  # Call-ID, user agent, path, attribute, received, instance
        reader.string()
    if len(reader.string()) != 8:
        raise Refused("expires")
    if len(reader.string()) != 4:
        raise Refused("q")
    reader.string()
    for _ in range(2):  # CSeq, flags
        reader.integer()
    reader.string()
    reader.integer()
    if len(reader.string()) != 8:
        raise Refused("last modified")
    reader.string()
    reader.integer()


def _as_insert(update: bytes) -> bytes:
    """Move the contact's id from behind its data, where an update has it, to behind its address."""
    reader = Reader(update)
    for _ in range(3):  # domain, AoR, contact
        reader.string()
    head = len(update) - len(reader.rest())
    reader = Reader(update[head:])
    for _ in range(9):  # Call-ID to instance, expires, q, socket
        reader.string()
    for _ in range(2):
        reader.integer()
    reader.string()
    reader.integer()
    for _ in range(2):  # last modified, data
        reader.string()
    tail = reader.rest()
    contact_id = Reader(tail).string()
    rest = tail[len(contact_id) + 2 :]
    data = update[head : len(update) - len(tail)]
    return update[:head] + fields(contact_id) + data + rest


def contact_fields(aor: str, contact: str, call_id: str, *, expires: int) -> bytes:
    """Write the fields of a CT_INSERT, as a registration of a plain phone gives them."""
    return fields(
        DOMAIN, aor.encode(), contact.encode(), (1).to_bytes(8, "little"), call_id.encode(),
        b"simulated", b"", b"", b"", b"", expires.to_bytes(8, "little"),
        (1000).to_bytes(4, "little"), b"", 1, 0, b"", 511, bytes(8), b"", MATCH_BY_CALL_ID,
    )  # fmt: skip


def contact_keys(aor: str, contact: str, call_id: str) -> bytes:
    """Write the fields of a CT_DELETE."""
    call = call_id.encode()
    return fields(DOMAIN, aor.encode(), contact.encode(), call, 1, MATCH_BY_CALL_ID)
