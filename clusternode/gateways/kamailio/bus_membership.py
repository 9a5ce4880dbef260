"""Joining, pings, lists and leaving: membership of a DMQ bus by our own pings.

Before anything about ourselves is said, a notification without a body asks the notification
addresses who is there: on a bus that is full, one node more would silence every Kamailio.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from clusternode.core.events import LimitReached
from clusternode.core.membership.health import Health
from clusternode.core.types import Instant
from clusternode.gateways.kamailio.effects import Effect, Raise
from clusternode.gateways.kamailio.members import Member, Members
from clusternode.gateways.kamailio.names import Names
from clusternode.gateways.kamailio.outbox import Ending, Outbox, Outgoing
from clusternode.gateways.kamailio.settings import KamailioSettings
from clusternode.gateways.kamailio.translate import (
    LIST_CONTENT_TYPE,
    MEMBERS_LISTED_MAX,
    NamedAddress,
    PeerAddress,
    encode_leave,
    encode_list,
    fits_into_list,
    parse_list_untrusted,
)

MAX_FORWARDS_JOIN: Final = 2
"""What asks a Kamailio to tell the others of us at once."""
MAX_FORWARDS_PING: Final = 1


class Membership:
    """The part of the machine that knows who is there and is known to be there."""

    def __init__(
        self,
        cluster: str,
        settings: KamailioSettings,
        outbox: Outbox,
        effects: list[Effect],
        now: Instant,
    ) -> None:
        self.settings = settings
        self.members = Members(
            cluster, settings.server_address, settings.health, lambda e: effects.append(Raise(e))
        )
        self.names = Names(cluster, settings, effects, self._seed_resolved)
        self.is_announced = False
        """Whether we may say that we are there: the bus has room for one more."""
        self.is_leaving = False
        self._cluster = cluster
        self._outbox = outbox
        self._effects = effects
        self._round_at: Instant = now
        self._welcomed: set[PeerAddress] = set()
        """Seeds that were told of us with Max-Forwards 2."""
        self._is_full = False

    def start(self, now: Instant) -> None:
        """Begin: without notification addresses we are the first of the bus."""
        self.names.start(now)
        for seed in self.names.numeric_seeds:
            self.members.add_seed(seed)
        if not self.settings.notification_address:
            self.is_announced = True
        self._round(now)

    def next_deadline(self) -> Instant:
        return self._round_at

    def tick(self, now: Instant) -> bool:
        """Ping everybody when it is time; return whether it was."""
        if now < self._round_at:
            return False
        self.names.tick(now)
        self._round(now)
        return True

    def _round(self, now: Instant) -> None:
        # A clock that stood still makes one round late, not many at once.
        self._round_at = now + self.settings.ping_interval
        for member in self.members.all():
            if not member.has_open_ping:
                self._ping(now, member)

    def _ping(self, now: Instant, member: Member, max_forwards: int = MAX_FORWARDS_PING) -> None:
        member.has_open_ping = True
        member.pinged_at = now
        self._outbox.send(
            now,
            Outgoing(
                member.address,
                self.settings.notification_channel,
                self.list_body(),
                LIST_CONTENT_TYPE,
                max_forwards,
                now + self.settings.ping_timeout,
                partial(self._ping_ended, member),
                is_urgent=True,
            ),
        )

    def _ping_ended(self, member: Member, now: Instant, ending: Ending) -> None:
        member.has_open_ping = False
        if not (ending.is_answer and 200 <= ending.code < 300):
            self.members.failed(now, member, f"ping: {ending.code} {ending.reason}"[:100])
            return
        self._take_list(now, ending.body)
        self.members.answered(now, member, ending.round_trip)
        self._announce(now)
        if member.is_joining:
            member.is_joining = False
            self._tell_everyone(now)
        if member.is_seed and self.is_announced and member.address not in self._welcomed:
            self._welcomed.add(member.address)
            self._ping(now, member, MAX_FORWARDS_JOIN)

    def _announce(self, now: Instant) -> None:
        """Say that we are there as soon as that harms nobody."""
        if self.is_announced:
            return
        known = [member.address for member in self.members.all()]
        if len(known) <= MEMBERS_LISTED_MAX and fits_into_list([*known, self.members.own]):
            self.is_announced = True
            self._is_full = False
            for member in self.members.active():
                if not member.has_open_ping and not member.is_seed:
                    self._ping(now, member)
        elif not self._is_full:
            self._is_full = True
            detail = f"{len(known)} nodes: with one more none could write its list"
            event = LimitReached(self._cluster, "bus is full", "", detail)
            self._effects.append(Raise(event))

    def list_body(self) -> bytes:
        """Return what we say of the bus: nothing before we may say that we are there."""
        if not self.is_announced:
            return b""
        return encode_list(self.members.own, [member.address for member in self.members.active()])

    def _take_list(self, now: Instant, body: bytes) -> None:
        """Look into everything that a list says, but believe nothing of it."""
        for line in parse_list_untrusted(body):
            address = self.names.address_of(now, line.address)
            if address is not None:
                self._look_at(now, address)

    def _look_at(self, now: Instant, address: PeerAddress, *, is_itself: bool = False) -> None:
        member = self.members.hear_of(now, address, is_itself=is_itself)
        if member is not None:
            self._ping(now, member)

    def heard_from(self, now: Instant, address: PeerAddress) -> None:
        """Take note that a node that is not active has spoken."""
        self._look_at(now, address, is_itself=True)

    def notified(
        self, now: Instant, sender: NamedAddress, body: bytes, max_forwards: int, host: str
    ) -> bytes:
        """Take a notification; return the list to answer with."""
        address = self.names.address_of(now, sender)
        if address is not None and address != self.members.own:
            is_itself = host == address.host or self.members.has_host(host)
            if is_itself and _says_goodbye(body, sender):
                member = self.members.get(address)
                if member is not None and host == address.host:
                    self.members.left(member)
                    if not member.has_open_ping:  # a forged goodbye lasts until the answer
                        self._ping(now, member)
                return self.list_body()
            was_known = self.members.get(address) is not None
            self._look_at(now, address, is_itself=host == address.host)
            member = self.members.get(address)
            if member is not None and not was_known and max_forwards > 1:
                member.is_joining = True
        self._take_list(now, body)
        return self.list_body()

    def _tell_everyone(self, now: Instant) -> None:
        """Tell all active nodes of one that joined through us (dmq: Max-Forwards 2)."""
        for member in self.members.active():
            if not member.has_open_ping:
                self._ping(now, member)

    def send(self, now: Instant, outgoing: Outgoing) -> None:
        self._outbox.send(now, outgoing)

    def _seed_resolved(self, now: Instant, address: PeerAddress) -> None:
        member = self.members.add_seed(address)
        if member is not None and not member.has_open_ping and not member.is_active:
            self._ping(now, member)

    def leave(self, now: Instant, on_left: Callable[[], None]) -> None:
        """Take ourselves off every list: the line goes to each node, for none passes it on."""
        self.is_leaving = True
        if not self.is_announced:
            on_left()
            return
        told = [member for member in self.members.all() if member.health is not Health.LEFT]
        # Nobody is waited for who does not answer anyway.
        waiting = {member.address for member in told if member.is_active}

        def ended(address: PeerAddress, now: Instant, ending: Ending) -> None:
            del now, ending
            if address in waiting:
                waiting.remove(address)
                if not waiting:
                    on_left()

        if not waiting:
            on_left()
        self._round_at = float("inf")
        for member in told:
            self._outbox.send(
                now,
                Outgoing(
                    member.address,
                    self.settings.notification_channel,
                    encode_leave(self.members.own),
                    LIST_CONTENT_TYPE,
                    MAX_FORWARDS_PING,
                    now + self.settings.ping_timeout,
                    partial(ended, member.address),
                    is_urgent=True,
                ),
            )


def _says_goodbye(body: bytes, sender: NamedAddress) -> bool:
    """Tell whether a notification is the one line of a node that leaves."""
    lines = parse_list_untrusted(body)
    return len(lines) == 1 and lines[0].status == "disabled" and lines[0].address == sender
