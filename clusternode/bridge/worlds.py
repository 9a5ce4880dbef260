"""The buses as bridges see them: what each can carry, and how it says cells and registrations."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

from clusternode.bridge import kamailio, opensips
from clusternode.bridge.changes import CellChange, Change
from clusternode.bridge.marks import Mark
from clusternode.bus.interface import Bus, Delivery
from clusternode.gateways.kamailio.bus import KamailioBus
from clusternode.gateways.kamailio.htable import Refused
from clusternode.gateways.kamailio.replication import (
    HTABLE_CHANNEL,
    JSON_CONTENT_TYPE,
    parse_htable_untrusted,
)


def _unix_now() -> float:
    return datetime.now(UTC).timestamp()


class World(Protocol):
    """One kind of bus."""

    @property
    def carries_marks(self) -> bool:
        """Whether the content type, and the mark in it, reaches the others."""
        ...

    @property
    def carries_codes(self) -> bool:
        """Whether a reply has a code, so that one that says no is known as such."""
        ...

    @property
    def reaches_self(self) -> bool:
        """Whether what is relayed goes to this agent's own routes there, too."""
        ...

    @property
    def says_patterns(self) -> bool:
        """Whether it can say "expire" and "all that begin so" of cells."""
        ...

    def channel(self, kind: str) -> str | None:
        """Return the channel of tables or contacts; None where the world has none."""
        ...

    def read_untrusted(self, kind: str, name: str, body: bytes) -> list[Change]:
        """Return the changes that a body of that channel tells of one table.

        Raises:
            RemoteProtocolError: It is no such body.
        """
        ...

    def write(self, bus: Bus, change: Change, mark: Mark, record_id: str) -> Sequence[Delivery]:
        """Tell every node of a bus a change; `record_id`: a Kamailio's, of a contact."""
        ...


class Mesh:
    """Our own clusters."""

    carries_marks: Final = True
    carries_codes: Final = True
    reaches_self: Final = True
    says_patterns: Final = True

    def channel(self, kind: str) -> str | None:
        del kind
        return None

    def read_untrusted(self, kind: str, name: str, body: bytes) -> list[Change]:
        raise AssertionError(f"our clusters have no {kind} {name}: refused before")

    def write(self, bus: Bus, change: Change, mark: Mark, record_id: str) -> Sequence[Delivery]:
        del mark, record_id
        raise AssertionError(f"{bus.name} has no tables: {change} was refused before")


class Kamailio:
    """A DMQ bus."""

    carries_marks: Final = True
    carries_codes: Final = True
    reaches_self: Final = False
    says_patterns: Final = True

    def channel(self, kind: str) -> str | None:
        return kamailio.CHANNELS.get(kind)

    def read_untrusted(self, kind: str, name: str, body: bytes) -> list[Change]:
        return kamailio.read_untrusted(kind, name, body, _unix_now())

    def write(self, bus: Bus, change: Change, mark: Mark, record_id: str) -> Sequence[Delivery]:
        """Tell every Kamailio, and our own copy of the table if we keep one."""
        found = []
        channel = kamailio.CHANNELS["table" if isinstance(change, CellChange) else "contacts"]
        content_type = mark.on(JSON_CONTENT_TYPE) or JSON_CONTENT_TYPE
        for body in kamailio.write(change, _unix_now(), record_id):
            if channel == HTABLE_CHANNEL:
                _keep(bus, body)
            found.append(bus.broadcast(channel, body, content_type=content_type))
        return found


def _keep(bus: Bus, body: bytes) -> None:
    """Change our own copy too: whoever starts later may ask us for it."""
    if isinstance(bus, KamailioBus):
        try:
            bus.node.tables.tables.apply(parse_htable_untrusted(body), _unix_now())
        except Refused:
            bus.node.counters.refused += 1


class OpenSips:
    """An OpenSIPS cluster."""

    carries_marks: Final = False
    carries_codes: Final = False
    reaches_self: Final = False
    says_patterns: Final = False

    def channel(self, kind: str) -> str | None:
        return opensips.CHANNELS.get(kind)

    def read_untrusted(self, kind: str, name: str, body: bytes) -> list[Change]:
        return opensips.read_untrusted(kind, name, body)

    def write(self, bus: Bus, change: Change, mark: Mark, record_id: str) -> Sequence[Delivery]:
        """Tell every OpenSIPS; there is no place for the mark."""
        del mark, record_id
        channel = opensips.CHANNELS["table" if isinstance(change, CellChange) else "contacts"]
        return [bus.broadcast(channel, opensips.write(change, _unix_now()))]


WORLDS: Final[dict[str, World]] = {"kamailio": Kamailio(), "opensips": OpenSips()}
"""Name of a gateway → its world; every other bus is a mesh."""
MESH: Final = Mesh()


def world_of(bus_name: str) -> World:
    return WORLDS.get(bus_name, MESH)
