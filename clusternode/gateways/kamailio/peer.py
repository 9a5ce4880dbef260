"""A simulated Kamailio 5.6: its module dmq as measured, made of the same pure halves as our node.

It is as credulous and as fragile as the original: it believes every list, runs doubled requests
twice, deletes what fails twice, wedges on lists that it cannot parse, and falls silent when its
own list does not fit. Facts: Kamailio 5.6.3, docs/gateway-kamailio.md, "What your Kamailios do".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Final, TypeAlias

import attrs

from clusternode.core.types import Instant, Seconds
from clusternode.errors import RemoteProtocolError
from clusternode.gateways.kamailio.codec import (
    METHOD,
    Identity,
    SipRequest,
    encode_reply,
    from_uri,
    parse_untrusted,
)
from clusternode.gateways.kamailio.effects import Answer, Effect, Source
from clusternode.gateways.kamailio.outbox import Ending, Outbox, Outgoing
from clusternode.gateways.kamailio.translate import (
    LIST_CONTENT_TYPE,
    PeerAddress,
    address_of,
    fits_into_list,
)

AGENT: Final = "kamailio (5.6.3 (x86_64/linux))"
NOTIFICATION: Final = "notification_peer"
_LINE: Final = re.compile(
    rb"sip:(?P<host>[0-9]{1,3}(?:\.[0-9]{1,3}){3}):(?P<port>[0-9]{1,5})"
    rb"(?:;transport=(?P<transport>tcp|tls))?;status=(?P<status>active|timeout|disabled|pending)"
)


Script: TypeAlias = Callable[[str, bytes], tuple[int, str]]
"""Takes channel and body of a message and returns code and reason of its answer."""


@attrs.frozen
class _Channels:
    """A script that takes what comes on some channels."""

    names: tuple[str, ...]

    def __call__(self, channel: str, body: bytes) -> tuple[int, str]:
        del body
        return (200, "OK") if channel in self.names else (404, "User Not Found")


class SimulatedKamailio:
    """One node. Its owner carries the effects `Send` and `Answer`; there are no others."""

    def __init__(
        self,
        own: PeerAddress,
        seeds: tuple[PeerAddress, ...],
        now: Instant,
        rng: Random,
        *,
        ping_interval: Seconds = 5.0,
        fr_timer: Seconds = 4.0,
        channels: tuple[str, ...] = (),
        script: Script | None = None,
    ) -> None:
        self.own = own
        self.statuses: dict[PeerAddress, str] = {}
        self.received: list[tuple[str, str, bytes]] = []  # origin, channel, body
        self.results: list[int] = []
        """The code of each request of its own on a user channel, local 408 included."""
        self.is_wedged = False
        self._seeds = seeds
        self._effects: list[Effect] = []
        self._timing = (ping_interval, fr_timer)
        self._script = script or _Channels(channels)
        identity = Identity(own.host, own.port, own.transport, AGENT)
        self._outbox = Outbox(identity, f"{rng.getrandbits(64):016x}", self._effects)
        self._round_at = now + ping_interval

    @property
    def is_silent(self) -> bool:
        """Whether it can no longer say its list, or is stuck."""
        return self.is_wedged or not fits_into_list([*self._active(), self.own])

    def _active(self) -> list[PeerAddress]:
        return [address for address, status in self.statuses.items() if status == "active"]

    def start(self, now: Instant) -> list[Effect]:
        """Tell the seeds, with Max-Forwards 2."""
        for seed in self._seeds:
            self.statuses[seed] = "pending"
            self._notify(now, seed, 2)
        return self._take()

    def next_deadline(self) -> Instant:
        deadline = self._outbox.transactions.next_deadline()
        return self._round_at if deadline is None else min(deadline, self._round_at)

    def tick(self, now: Instant) -> list[Effect]:
        self._outbox.tick(now)
        if now >= self._round_at:
            self._round_at = now + self._timing[0]
            for address in (*self.statuses,) or self._seeds:
                self._notify(now, address, 1)
        return self._take()

    def receive(self, now: Instant, data: bytes, source: Source) -> list[Effect]:
        if self.is_wedged:
            return []
        try:
            message = parse_untrusted(data)
        except RemoteProtocolError:
            return []
        if isinstance(message, SipRequest):
            if message.method == METHOD:
                self._request(now, message, source)
        elif message is not None:
            self._outbox.answer(now, message)
        return self._take()

    def broadcast(
        self, now: Instant, channel: str, body: bytes, content_type: str = LIST_CONTENT_TYPE
    ) -> list[Effect]:
        """dmq_bcast_message: to every active node."""
        for address in self._active():
            self._send(now, address, channel, body, 1, content_type)
        return self._take()

    def _take(self) -> list[Effect]:
        taken = self._effects[:]
        self._effects.clear()
        return taken

    def _notify(self, now: Instant, to: PeerAddress, max_forwards: int) -> None:
        if not self.is_silent:
            self._send(now, to, NOTIFICATION, self._list(), max_forwards)

    def _list(self) -> bytes:
        listed = (*reversed(self._active()), self.own)
        return b"".join(f"{address.uri};status=active\r\n".encode() for address in listed)

    def _send(
        self,
        now: Instant,
        to: PeerAddress,
        channel: str,
        body: bytes,
        max_forwards: int,
        content_type: str = LIST_CONTENT_TYPE,
    ) -> None:
        deadline = now + self._timing[1]
        on_end = partial(self._ended, to, channel)
        outgoing = Outgoing(
            to, channel, body, content_type, max_forwards, deadline, on_end, is_urgent=True
        )
        self._outbox.send(now, outgoing)

    def _ended(self, to: PeerAddress, channel: str, now: Instant, ending: Ending) -> None:
        del now
        if channel != NOTIFICATION:
            self.results.append(ending.code)
        if ending.code == 200 and ending.is_answer:
            self.statuses[to] = "active"
            self._merge(ending.body)  # whatever the channel was (trap 2)
        elif ending.code == 408:
            if to in self._seeds:
                self.statuses[to] = "pending"
            elif self.statuses.get(to) == "disabled":
                del self.statuses[to]
            elif to in self.statuses:
                self.statuses[to] = "disabled"

    def _merge(self, body: bytes) -> bool:
        """Believe a list, line by line; return whether anything was new."""
        is_changed = False
        if not body:
            return False
        if not body.endswith(b"\r\n"):
            self.is_wedged = True
            return False
        for raw in body[:-2].split(b"\r\n"):
            found = _LINE.fullmatch(raw)
            if found is None:
                self.is_wedged = True
                return is_changed
            transport = (found["transport"] or b"udp").decode()
            address = PeerAddress(transport, found["host"].decode(), int(found["port"]))
            status = found["status"].decode()
            before = self.statuses.get(address)
            if address != self.own and before not in (status, "disabled"):
                self.statuses[address] = status
                is_changed = is_changed or before is None
        return is_changed

    def _request(self, now: Instant, request: SipRequest, source: Source) -> None:
        if request.channel == NOTIFICATION:
            is_changed = self._merge(request.body)
            if self.is_silent:
                return
            self._answer(request, source, 200, "OK", self._list())
            if is_changed and request.max_forwards > 1:
                for address in self._active():
                    self._notify(now, address, 1)
        else:
            code, reason = self._script(request.channel, request.body)
            if code < 300:
                origin = address_of(from_uri(request))
                name = f"{origin.host}:{origin.port}"
                self.received.append((name, request.channel, request.body))
            self._answer(request, source, code, reason)

    def _answer(
        self, request: SipRequest, source: Source, code: int, reason: str, body: bytes = b""
    ) -> None:
        answer = encode_reply(
            request, code, reason, tag="k", agent=AGENT, content_type=LIST_CONTENT_TYPE, body=body
        )
        to = Source(source.host, request.via.port or 5060)
        self._effects.append(Answer(to, answer))
