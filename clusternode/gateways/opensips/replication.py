"""What OpenSIPS's modules cachedb_local and usrloc replicate, as typed values.

Layouts: cachedb_local version 1; usrloc versions 2 to 5, which are read, and 5, which is written
(OpenSIPS `usrloc/ul_cluster.c`). Everything read is untrusted and bounded by its packet.
Written down in docs/gateway-opensips.md; JSON forms are in `typed`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import attrs

from clusternode.errors import RemoteProtocolError
from clusternode.gateways.opensips.fields import STRING_SIZE_MAX, FieldReader, FieldWriter
from clusternode.gateways.opensips.messages import CACHE, CONTACTS, ModulePacket, Trailer

CACHE_VERSION: Final = 1
CONTACTS_VERSION: Final = 5
"""What we write; 3 brought `match`, 4 named flags, 5 the attributes of an AoR."""
CONTACTS_VERSION_MIN: Final = 2
MATCH_PARAMETERS_MAX: Final = 32
"""Names of URI parameters in a match rule; a bound of ours, OpenSIPS's own rules have three."""

NOBODY: Final = Trailer(1, 1, 1)
"""Where only the body of a packet is wanted."""

_U64 = struct.Struct("<Q")
_I64 = struct.Struct("<q")
_I32 = struct.Struct("<i")


# --- cachedb_local ------------------------------------------------------------------------------


@attrs.frozen
class CacheInsert:
    """An entry was stored; also what a sync chunk holds."""

    collection: str
    key: str
    value: bytes
    ttl: int = 0
    """Seconds that it lives from now on; 0 for ever."""


@attrs.frozen
class CacheRemove:
    """An entry was removed."""

    collection: str
    key: str


CacheChange: TypeAlias = CacheInsert | CacheRemove

_CACHE_INSERT, _CACHE_REMOVE = 1, 2


def read_cache_untrusted(packet: ModulePacket) -> CacheChange:
    """Read a packet of cachedb_local.

    Raises:
        RemoteProtocolError: It is none.
    """
    _check_version(packet.capability, packet.version, CACHE_VERSION, CACHE_VERSION)
    reader = FieldReader(packet.body, f"{CACHE} {packet.type}")
    match packet.type:
        case 1:
            return _read_cache_insert(reader)
        case 2:
            change = CacheRemove(reader.text("collection"), _text(reader, "key"))
            reader.expect_end()
            return change
    raise RemoteProtocolError(f"{CACHE}: no type {packet.type}")


def read_cache_chunk_untrusted(chunk: bytes, version: int) -> CacheInsert:
    """Read one sync chunk of cachedb_local.

    Raises:
        RemoteProtocolError: It is none.
    """
    _check_version(CACHE, version, CACHE_VERSION, CACHE_VERSION)
    return _read_cache_insert(FieldReader(chunk, f"{CACHE} chunk"))


def _read_cache_insert(reader: FieldReader) -> CacheInsert:
    insert = CacheInsert(
        reader.text("collection"),
        _text(reader, "key"),
        reader.blob("value"),
        reader.integer("ttl", 0),
    )
    reader.expect_end()
    return insert


def cache_packet(trailer: Trailer, change: CacheChange) -> ModulePacket:
    """Make the packet of a change.

    Raises:
        BodyTooLarge: Key or value have more than 65535 bytes.
        LocalProtocolError: A text or number cannot be written.
    """
    writer = FieldWriter()
    writer.texts(change.collection, change.key)
    if isinstance(change, CacheRemove):
        return ModulePacket(trailer, CACHE, CACHE_VERSION, _CACHE_REMOVE, bytes(writer.data))
    writer.blob(change.value)
    writer.integers(change.ttl)
    return ModulePacket(trailer, CACHE, CACHE_VERSION, _CACHE_INSERT, bytes(writer.data))


def cache_chunk(insert: CacheInsert) -> bytes:
    """Write one sync chunk."""
    return cache_packet(NOBODY, insert).body


# --- usrloc -------------------------------------------------------------------------------------


@attrs.frozen
class Match:
    """How a change finds its contact among those of an AoR."""

    mode: int = 1
    """-1 none, 0 by contact, 1 by contact and Call-ID, 2 by the URI parameters `parameters`."""
    parameters: tuple[str, ...] = ()


MATCH_PARAMETERS: Final = 2


@attrs.frozen
class AorInsert:
    """An address of record was made."""

    domain: str
    aor: str
    label: int = 0
    next_contact_label: int = 0
    attributes: str = ""
    """kv_storage: what scripts attached, as OpenSIPS writes it (JSON). Version 5."""


@attrs.frozen
class AorDelete:
    """An address of record and all its contacts were removed."""

    domain: str
    aor: str


@attrs.frozen
class Contact:
    """One contact of an address of record, as usrloc holds it."""

    domain: str
    aor: str
    contact: str
    contact_id: int = 0
    callid: str = ""
    user_agent: str = ""
    path: str = ""
    attr: str = ""
    received: str = ""
    instance: str = ""
    expires: int = 0
    """Unix seconds; 0 for never."""
    q: int = -1
    """Thousandths; -1 when not said."""
    sock: str = ""
    cseq: int = 0
    flags: int = 0
    cflags: str | int = ""
    """Branch flags: names from version 4 on, a mask before."""
    methods: int = -1
    """A mask; all bits when not said."""
    last_modified: int = 0
    """Unix seconds."""
    attributes: str = ""
    """kv_storage."""

    @property
    def aor_label(self) -> int:
        """The label of its AoR, which its id has in bits 14 to 45."""
        return self.contact_id >> 14 & 0xFFFF_FFFF


@attrs.frozen
class ContactInsert:
    """A contact was added."""

    contact: Contact
    match: Match = attrs.Factory(Match)


@attrs.frozen
class ContactUpdate:
    """A contact was refreshed."""

    contact: Contact
    match: Match = attrs.Factory(Match)


@attrs.frozen
class ContactDelete:
    """A contact was removed."""

    domain: str
    aor: str
    contact: str
    callid: str = ""
    cseq: int = 0
    match: Match = attrs.Factory(Match)


Location: TypeAlias = AorInsert | AorDelete | ContactInsert | ContactUpdate | ContactDelete
LocationChunk: TypeAlias = AorInsert | ContactInsert


def read_location_untrusted(packet: ModulePacket) -> Location:
    """Read a packet of usrloc, version 2 to 5.

    Raises:
        RemoteProtocolError: It is none.
    """
    _check_version(CONTACTS, packet.version, CONTACTS_VERSION_MIN, CONTACTS_VERSION)
    read = _LOCATION.get(packet.type)
    if read is None:
        raise RemoteProtocolError(f"{CONTACTS}: no type {packet.type}")
    reader = FieldReader(packet.body, f"{CONTACTS} {packet.type}")
    change = read(reader, packet.version)
    reader.expect_end()
    return change


def read_location_chunk_untrusted(chunk: bytes, version: int) -> LocationChunk:
    """Read one sync chunk of usrloc.

    Raises:
        RemoteProtocolError: It is none.
    """
    _check_version(CONTACTS, version, CONTACTS_VERSION_MIN, CONTACTS_VERSION)
    reader = FieldReader(chunk, f"{CONTACTS} chunk")
    is_contact = reader.flag("is contact")
    change = _read_insert(reader, version) if is_contact else _read_aor_insert(reader, version)
    reader.expect_end()
    return change


def _read_aor_insert(reader: FieldReader, version: int) -> AorInsert:
    return AorInsert(
        reader.text("domain"),
        _aor(reader),
        reader.unsigned("label"),
        reader.unsigned("next label"),
        reader.text("attributes", STRING_SIZE_MAX) if version >= 5 else "",
    )


def _read_aor_delete(reader: FieldReader, version: int) -> AorDelete:
    return AorDelete(reader.text("domain"), _aor(reader))


def _read_insert(reader: FieldReader, version: int) -> ContactInsert:
    contact = Contact(reader.text("domain"), _aor(reader), _text(reader, "contact"))
    contact_id = _packed(reader, "contact id", _U64)
    contact = attrs.evolve(_read_contact(reader, contact, version), contact_id=contact_id)
    return ContactInsert(contact, _read_match(reader, version))


def _read_update(reader: FieldReader, version: int) -> ContactUpdate:
    # Unlike in an insert, the id comes after the rest.
    contact = Contact(reader.text("domain"), _aor(reader), _text(reader, "contact"))
    contact = _read_contact(reader, contact, version)
    contact = attrs.evolve(contact, contact_id=_packed(reader, "contact id", _U64))
    return ContactUpdate(contact, _read_match(reader, version))


def _read_contact(reader: FieldReader, contact: Contact, version: int) -> Contact:
    return Contact(
        contact.domain,
        contact.aor,
        contact.contact,
        callid=_text(reader, "callid"),
        user_agent=_text(reader, "user_agent"),
        path=_text(reader, "path"),
        attr=_text(reader, "attr"),
        received=_text(reader, "received"),
        instance=_text(reader, "instance"),
        expires=_packed(reader, "expires", _I64),
        q=_packed(reader, "q", _I32),
        sock=_text(reader, "sock"),
        cseq=reader.integer("cseq"),
        flags=reader.unsigned("flags"),
        cflags=_text(reader, "cflags") if version >= 4 else reader.unsigned("cflags"),
        methods=reader.integer("methods"),
        last_modified=_packed(reader, "last_modified", _I64),
        attributes=_text(reader, "attributes"),
    )


def _read_delete(reader: FieldReader, version: int) -> ContactDelete:
    return ContactDelete(
        reader.text("domain"),
        _aor(reader),
        _text(reader, "contact"),
        _text(reader, "callid"),
        reader.integer("cseq"),
        _read_match(reader, version),
    )


def _read_match(reader: FieldReader, version: int) -> Match:
    if version < 3:
        return Match()
    mode = reader.integer("match mode", -1, MATCH_PARAMETERS)
    if mode != MATCH_PARAMETERS:
        return Match(mode)
    return Match(
        mode, reader.items("match", MATCH_PARAMETERS_MAX, lambda: reader.text("parameter"))
    )


_LOCATION: Final[Mapping[int, Callable[[FieldReader, int], Location]]] = {
    1: _read_aor_insert,
    2: _read_aor_delete,
    3: _read_insert,
    4: _read_update,
    5: _read_delete,
}


def location_packet(trailer: Trailer, change: Location) -> ModulePacket:
    """Make the packet of a change, in version 5.

    Raises:
        BodyTooLarge: A text has more than 65535 bytes.
        LocalProtocolError: A text or number cannot be written.
    """
    writer = FieldWriter()
    match change:
        case AorInsert():
            type_ = 1
            _write_aor_insert(writer, change)
        case AorDelete():
            type_ = 2
            writer.texts(change.domain, change.aor)
        case ContactInsert(contact, rule):
            type_ = 3
            _write_insert(writer, contact, rule)
        case ContactUpdate(contact, rule):
            type_ = 4
            writer.texts(contact.domain, contact.aor, contact.contact)
            _write_contact(writer, contact)
            writer.packed(_U64, contact.contact_id)
            _write_match(writer, rule)
        case ContactDelete():
            type_ = 5
            writer.texts(change.domain, change.aor, change.contact, change.callid)
            writer.integers(change.cseq)
            _write_match(writer, change.match)
    return ModulePacket(trailer, CONTACTS, CONTACTS_VERSION, type_, bytes(writer.data))


def location_chunk(change: LocationChunk) -> bytes:
    """Write one sync chunk."""
    writer = FieldWriter()
    if isinstance(change, AorInsert):
        writer.integers(0)
        _write_aor_insert(writer, change)
    else:
        writer.integers(1)
        _write_insert(writer, change.contact, change.match)
    return bytes(writer.data)


def _write_aor_insert(writer: FieldWriter, change: AorInsert) -> None:
    writer.texts(change.domain, change.aor)
    writer.unsigned(change.label)
    writer.unsigned(change.next_contact_label)
    writer.texts(change.attributes)


def _write_insert(writer: FieldWriter, contact: Contact, rule: Match) -> None:
    writer.texts(contact.domain, contact.aor, contact.contact)
    writer.packed(_U64, contact.contact_id)
    _write_contact(writer, contact)
    _write_match(writer, rule)


def _write_contact(writer: FieldWriter, contact: Contact) -> None:
    writer.texts(
        contact.callid,
        contact.user_agent,
        contact.path,
        contact.attr,
        contact.received,
        contact.instance,
    )
    writer.packed(_I64, contact.expires)
    writer.packed(_I32, contact.q)
    writer.texts(contact.sock)
    writer.integers(contact.cseq)
    writer.unsigned(contact.flags)
    # A mask of an older sender has no names here; OpenSIPS would not know them either.
    writer.texts(contact.cflags if isinstance(contact.cflags, str) else "")
    writer.integers(contact.methods)
    writer.packed(_I64, contact.last_modified)
    writer.texts(contact.attributes)


def _write_match(writer: FieldWriter, rule: Match) -> None:
    writer.integers(rule.mode)
    if rule.mode == MATCH_PARAMETERS:
        writer.integers(len(rule.parameters))
        writer.texts(*rule.parameters)


# --- fields -------------------------------------------------------------------------------------


def _check_version(capability: str, version: int, minimum: int, maximum: int) -> None:
    if not minimum <= version <= maximum:
        raise RemoteProtocolError(
            f"{capability}: version {version}, expected {minimum} to {maximum}"
        )


def _aor(reader: FieldReader) -> str:
    aor = reader.text("aor")
    if not aor:
        raise reader.error("aor", "is empty")
    return aor


def _text(reader: FieldReader, name: str) -> str:
    return reader.text(name, STRING_SIZE_MAX)


def _packed(reader: FieldReader, name: str, layout: struct.Struct) -> int:
    """Take a number that OpenSIPS puts into a string, as it has no integers of 64 bits."""
    data = reader.blob(name)
    if len(data) != layout.size:
        raise reader.error(name, f"has {len(data)} bytes, expected {layout.size}")
    (value,) = layout.unpack(data)
    return int(value)
