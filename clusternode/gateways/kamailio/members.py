"""Who is on the bus: every node by its own answers, whatever others say of it.

A line of somebody's list, or a request of somebody unknown, is a rumour: its node is pinged and
counts only when it has answered. States and thresholds are those of `core.membership.health`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs

from clusternode.core.events import (
    Event,
    Joined,
    LimitReached,
    NodeStateChanged,
    PeerDisabled,
    PeerDown,
    PeerLeft,
    PeerRemoved,
    PeerUp,
)
from clusternode.core.membership.health import (
    Health,
    apply_left,
    apply_ping_answered,
    apply_ping_failed,
)
from clusternode.core.settings import HealthSettings
from clusternode.core.types import Instant, NodeId, Seconds
from clusternode.gateways.kamailio.translate import PeerAddress

MEMBERS_MAX: Final = 256
"""Nodes and rumours at a time: no bus has more than 29 Kamailios, agents may be some more."""
RUMOURS_MAX: Final = 64
"""Nodes at a time that have not answered yet: a forged list makes us ping so many at most."""
RUMOUR_PAUSE: Final[Seconds] = 30.0
"""How long a rumour that proved wrong is not believed again: lists repeat ghosts for ever."""
FORGOTTEN_MAX: Final = 1024
REPING_PAUSE: Final[Seconds] = 1.0
"""Between two pings that something heard of a node asked for."""

_PEER_EVENTS: Final[dict[Health, Callable[[str, str, str], Event]]] = {
    Health.ACTIVE: PeerUp,
    Health.NOT_ACTIVE: PeerDown,
    Health.DISABLED: PeerDisabled,
    Health.REMOVED: PeerRemoved,
    Health.LEFT: PeerLeft,
}


@attrs.define(eq=False)
class Member:
    """A node of the bus, or the rumour of one."""

    address: PeerAddress
    is_seed: bool = False
    health: Health = Health.NOT_ACTIVE
    is_confirmed: bool = False
    """Whether it has answered since it was added: no rumour any more."""
    fail_count: int = 0
    last_seen: Instant | None = None
    round_trip: Seconds | None = None
    has_open_ping: bool = False
    pinged_at: Instant | None = None
    is_joining: bool = False
    """Whether it announced itself to us: the others are to be told when it has answered."""

    @property
    def node_id(self) -> NodeId:
        return self.address.node_id

    @property
    def is_active(self) -> bool:
        return self.health is Health.ACTIVE


class Members:
    """The member list of one node, without self."""

    def __init__(
        self,
        cluster: str,
        own: PeerAddress,
        settings: HealthSettings,
        emit: Callable[[Event], None],
    ) -> None:
        self.own = own
        self.refused = 0
        """Rumours that were not followed because of a bound."""
        self._cluster = cluster
        self._settings = settings
        self._emit = emit
        self._members: dict[PeerAddress, Member] = {}
        self._hosts: dict[str, int] = {}  # numeric host → members there
        self._wrong: dict[PeerAddress, Instant] = {}  # rumour → until when it is not believed
        self._was_full = False

    def __len__(self) -> int:
        return len(self._members)

    def get(self, address: PeerAddress) -> Member | None:
        return self._members.get(address)

    def by_id(self, node_id: str) -> Member | None:
        """Return a confirmed member or seed by its node id."""
        return next((member for member in self.visible() if member.node_id == node_id), None)

    def all(self) -> list[Member]:
        """Return members and rumours."""
        return list(self._members.values())

    def visible(self) -> list[Member]:
        """Return what observers see: members that have answered, and seeds."""
        return [each for each in self._members.values() if each.is_confirmed or each.is_seed]

    def active(self) -> list[Member]:
        return [member for member in self._members.values() if member.is_active]

    def has_host(self, host: str) -> bool:
        """Tell whether a member, confirmed or seed, is at a numeric host."""
        return self._hosts.get(host, 0) > 0

    def is_reachable(self, address: PeerAddress) -> bool:
        """Tell whether our one socket reaches an address: the same transport, and IPv4."""
        return address.transport == self.own.transport and address.is_ipv4

    def add_seed(self, address: PeerAddress) -> Member | None:
        """Add a notification address; None for our own, and for one out of reach."""
        if address == self.own or not self.is_reachable(address):
            return None
        member = self._members.get(address)
        if member is None:
            if len(self._members) >= MEMBERS_MAX:
                return None
            member = self._members[address] = Member(address)
        if not member.is_seed and not member.is_confirmed:
            self._count_host(address, 1)
        member.is_seed = True
        return member

    def hear_of(self, now: Instant, address: PeerAddress, *, is_itself: bool) -> Member | None:
        """Take a rumour: return the node if it is to be pinged now.

        Args:
            now: The time.
            address: The node.
            is_itself: Whether it spoke itself, so that an earlier failure does not count.
        """
        if address == self.own or not self.is_reachable(address):
            return None
        member = self._members.get(address)
        if member is None:
            until = self._wrong.get(address)
            if until is not None and now < until and not is_itself:
                return None
            if not self._has_room():
                self.refused += 1
                return None
            self._wrong.pop(address, None)
            member = self._members[address] = Member(address)
        if member.is_active or member.has_open_ping:
            return None
        if member.pinged_at is not None and now - member.pinged_at < REPING_PAUSE:
            return None
        return member

    def _has_room(self) -> bool:
        rumours = sum(not each.is_confirmed for each in self._members.values())
        is_full = len(self._members) >= MEMBERS_MAX or rumours >= RUMOURS_MAX
        if is_full and not self._was_full:
            detail = f"{len(self._members)} nodes, {rumours} of them have not answered yet"
            self._emit(LimitReached(self._cluster, "members", "", detail))
        self._was_full = is_full
        return not is_full

    def answered(self, now: Instant, member: Member, round_trip: Seconds | None) -> None:
        """Take proof of life."""
        if member.address not in self._members:  # removed meanwhile: its next word brings it back
            return
        was_alone = not any(each.is_active for each in self._members.values())
        previous = member.health.value if member.is_confirmed else "new"
        if not member.is_confirmed:
            member.is_confirmed = True
            if not member.is_seed:
                self._count_host(member.address, 1)
        member.last_seen = now
        member.round_trip = round_trip or member.round_trip
        member.fail_count = 0
        if member.is_active:
            return
        member.health = apply_ping_answered(member.health)
        self._changed(member, previous, "ping answered")
        if was_alone:
            self._emit(Joined(self._cluster, member.node_id))

    def failed(self, now: Instant, member: Member, reason: str) -> None:
        """Take a ping that was not answered as it should."""
        if self._members.get(member.address) is not member:
            return
        if not member.is_confirmed and not member.is_seed:
            self._forget(now, member)
            return
        before = member.health
        member.health, member.fail_count = apply_ping_failed(
            before, member.fail_count, self._settings, is_protected=member.is_seed
        )
        if before is Health.LEFT:
            member.health = Health.REMOVED  # it said that it leaves, and it has
        if member.health is not before:
            self._changed(member, before.value, reason)
        if member.health is Health.REMOVED:
            self._forget(now, member)

    def left(self, member: Member) -> None:
        """Take a goodbye that a node said itself."""
        if member.health is Health.LEFT or not member.is_confirmed:
            return
        before = member.health
        member.health = apply_left(before)
        self._changed(member, before.value, "leave heard")

    def set_status(self, member: Member, status: str) -> None:
        """Set a status by hand; the next ping corrects it."""
        before = member.health
        member.health = Health(status)
        if member.health is not before:
            self._changed(member, before.value, "operator")

    def remove(self, now: Instant, member: Member) -> None:
        """Take a member off by hand (dmq.remove): it returns by its own next ping."""
        before, member.health = member.health, Health.REMOVED
        self._changed(member, before.value, "operator")
        self._forget(now, member)
        if member.is_seed:  # asked for ever, but no member until it answers
            self.add_seed(member.address)

    def _forget(self, now: Instant, member: Member) -> None:
        del self._members[member.address]
        if member.is_confirmed or member.is_seed:
            self._count_host(member.address, -1)
        while len(self._wrong) >= FORGOTTEN_MAX:
            del self._wrong[next(iter(self._wrong))]
        self._wrong[member.address] = now + RUMOUR_PAUSE

    def _count_host(self, address: PeerAddress, change: int) -> None:
        count = self._hosts.get(address.host, 0) + change
        if count > 0:
            self._hosts[address.host] = count
        else:
            self._hosts.pop(address.host, None)

    def _changed(self, member: Member, previous: str, reason: str) -> None:
        health, node_id = member.health, member.node_id
        self._emit(
            NodeStateChanged(
                self._cluster,
                node_id,
                int(health is Health.ACTIVE),
                health.value,
                previous,
                reason,
                member.fail_count,
            )
        )
        self._emit(_PEER_EVENTS[health](self._cluster, node_id, member.address.uri))
