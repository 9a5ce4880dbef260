"""One node of a DMQ bus, sans-IO: datagrams, time and wishes in, effects out.

Specified in docs/gateway-kamailio.md; facts about Kamailio from its modules dmq, htable and
dmq_usrloc of 5.6 to 6.2. Every public method that changes something returns the effects.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Final

import attrs

from clusternode.core.events import LimitReached, PeerMisbehaved
from clusternode.core.sip_events import SipReplicated
from clusternode.core.types import (
    ChannelName,
    DeliveryId,
    Instant,
    NodeId,
    RequestId,
    ResultCode,
    Seconds,
    Tag,
)
from clusternode.core.wire.messages import Answerable, Message, Request
from clusternode.errors import RemoteProtocolError
from clusternode.gateways.kamailio import effects, translate
from clusternode.gateways.kamailio.bus_membership import Membership
from clusternode.gateways.kamailio.codec import (
    METHOD,
    Identity,
    SipRequest,
    encode_reply,
    parse_untrusted,
)
from clusternode.gateways.kamailio.effects import Effect, Source
from clusternode.gateways.kamailio.members import Member
from clusternode.gateways.kamailio.outbox import Ending, Outbox, Outgoing, verdict
from clusternode.gateways.kamailio.replication import HTABLE_CHANNEL, USRLOC_CHANNEL
from clusternode.gateways.kamailio.settings import KamailioSettings
from clusternode.gateways.kamailio.tables import SharedTables, usrloc_events
from clusternode.gateways.kamailio.transactions import ServerTransactions
from clusternode.gateways.kamailio.translate import PeerAddress, reply_of

AGENT: Final = "clusternode"
"""User-Agent and Server: no version, so that a captured bus says nothing about its holes."""
PENDING_MAX: Final = 20_000
"""Requests of others that wait for their handlers here; beyond it 486."""
SCRIPT_REQUESTS_MAX: Final = 4096
"""Requests of scripts that may still be answered; the oldest is forgotten first."""
COMPLAINT_PAUSE: Final[Seconds] = 1.0
"""Between two events about misbehaviour; all of it is counted."""
QUIET_METHODS: Final = ("ACK", "CANCEL")
"""Never answered: an ACK has no answer, a CANCEL belongs to a transaction that we have none of."""


@attrs.define
class Counters:
    """What happened since the start; the names are in docs/gateway-kamailio.md."""

    received: int = 0
    malformed: int = 0
    strangers: int = 0
    messages: int = 0
    replicated: int = 0
    refused: int = 0


@attrs.define
class _ScriptRequest:
    reply_channel: str
    tag: Tag
    address: PeerAddress
    until: Instant


class KamailioNode:
    """A full member of one bus. `unix_offset` is what makes unix time of an instant."""

    def __init__(self, cluster: str, settings: KamailioSettings, now: Instant, rng: Random) -> None:
        self.settings = settings
        self.counters = Counters()
        self.unix_offset = 0.0
        self._cluster = cluster
        self._effects: list[Effect] = []
        own = settings.server_address
        identity = Identity(own.host, own.port, own.transport, AGENT)
        self.outbox = Outbox(identity, f"{rng.getrandbits(64):016x}", self._effects)
        self.membership = Membership(cluster, settings, self.outbox, self._effects, now)
        self.tables = SharedTables(cluster, settings.htables, self.membership, self._effects)
        self._answered = ServerTransactions()
        self._pending: dict[int, tuple[SipRequest, Source]] = {}  # ticket → what waits
        self._scripts: OrderedDict[tuple[str, str], _ScriptRequest] = OrderedDict()
        self._complained_at: Instant | None = None

    @property
    def own(self) -> PeerAddress:
        return self.settings.server_address

    @property
    def is_leaving(self) -> bool:
        return self.membership.is_leaving

    @property
    def node_id(self) -> NodeId:
        return self.own.node_id

    @property
    def duplicates(self) -> int:
        """How many copies of requests were not handled again."""
        return self._answered.duplicates

    # --- time and the network -------------------------------------------------------------------

    def start(self, now: Instant) -> list[Effect]:
        """Begin to join. To be called once, before anything else."""
        self.membership.start(now)
        return self._take()

    def next_deadline(self) -> Instant | None:
        """Tell when `tick` is due."""
        deadlines = (self.outbox.transactions.next_deadline(), self.membership.next_deadline())
        known = [deadline for deadline in deadlines if deadline is not None]
        return min(known) if known else None

    def tick(self, now: Instant) -> list[Effect]:
        """Do what the clock asks for."""
        self.outbox.tick(now)
        if self.membership.tick(now):
            self.tables.tick(now, now + self.unix_offset)
        return self._take()

    def receive(self, now: Instant, data: bytes, source: Source) -> list[Effect]:
        """Take one datagram, or one message of a stream. Nothing in it can raise."""
        self.counters.received += 1
        try:
            message = parse_untrusted(data)
            if isinstance(message, SipRequest):
                self._request(now, message, source)
            elif message is not None:
                self.outbox.answer(now, message)
                self.tables.ask(now)  # somebody may have become active
        except RemoteProtocolError as error:
            self.counters.malformed += 1
            self._complain(now, source, str(error))
        return self._take()

    def send_failed(self, now: Instant, branch: str) -> list[Effect]:
        """Take note that a `Send` could not be done."""
        self.outbox.send_failed(now, branch)
        return self._take()

    def resolved(
        self, now: Instant, name: translate.NamedAddress, addresses: Sequence[PeerAddress]
    ) -> list[Effect]:
        """Take the answer to `Resolve`, best first."""
        self.membership.names.resolved(now, name, addresses)
        return self._take()

    def resolve_failed(
        self, now: Instant, name: translate.NamedAddress, reason: str
    ) -> list[Effect]:
        self.membership.names.failed(now, name, reason)
        return self._take()

    def _take(self) -> list[Effect]:
        # The list is shared with the parts, so it is emptied and not replaced.
        taken = self._effects[:]
        self._effects.clear()
        return taken

    def _complain(self, now: Instant, source: Source, reason: str) -> None:
        if self._complained_at is None or now - self._complained_at >= COMPLAINT_PAUSE:
            self._complained_at = now
            address = f"{source.host}:{source.port}"
            event = PeerMisbehaved(self._cluster, "", address, reason)
            self._effects.append(effects.Raise(event))

    # --- requests of others ---------------------------------------------------------------------

    def _request(self, now: Instant, request: SipRequest, source: Source) -> None:
        if request.method in QUIET_METHODS:
            return
        if not self._answered.is_new(now, request.key):
            answer = self._answered.answer_to(request.key)
            if answer is not None:
                self._effects.append(effects.Answer(_answer_to(request, source), answer))
            return
        if request.method == METHOD:
            self._kdmq(now, request, source)
        else:
            self._sip(now, request, source)

    def _kdmq(self, now: Instant, request: SipRequest, source: Source) -> None:
        if request.channel == self.settings.notification_channel:
            self._notification(now, request, source)
            return
        if self.is_leaving:
            self._reply(request, source, ResultCode.LEAVING)
            return
        origin = self._origin(now, request, source)
        if origin is None:
            self.counters.strangers += 1
            self._complain(now, source, "a message of a stranger")
            self._reply(request, source, ResultCode.FORBIDDEN)
            return
        self.counters.messages += 1
        try:
            is_of_module = self._take_of_module(now, request, origin)
        except RemoteProtocolError as error:
            self.counters.malformed += 1
            self._complain(now, source, f"channel {request.channel}: {error}")
            self._reply(request, source, ResultCode.BAD_REQUEST)
            return
        if is_of_module and request.channel not in self.tables.listened:
            self._reply(request, source, ResultCode.OK)
        else:
            self._to_routes(now, request, source, origin)

    def _take_of_module(self, now: Instant, request: SipRequest, origin: PeerAddress) -> bool:
        """Take what htable or usrloc says; False for any other channel. As they, it may raise."""
        if request.channel == USRLOC_CHANNEL:
            events = usrloc_events(self._cluster, origin.node_id, request.body)
            self._effects += [effects.Raise(event) for event in events]
        elif request.channel != HTABLE_CHANNEL:
            return False
        elif self.tables.is_kept:
            self.tables.receive(now, now + self.unix_offset, request.body, origin)
        else:
            self.tables.observe(origin.node_id, request.body)
        return True

    def _notification(self, now: Instant, request: SipRequest, source: Source) -> None:
        if self.is_leaving:  # an answer would make us active again (measured on 5.6.3)
            return
        named = translate.sender_of(request)
        body = self.membership.notified(now, named, request.body, request.max_forwards, source.host)
        self._reply(request, source, ResultCode.OK, translate.LIST_CONTENT_TYPE, body)

    def _origin(self, now: Instant, request: SipRequest, source: Source) -> PeerAddress | None:
        """Return whom a message is from, or None for a stranger.

        From says it, as in DMQ; but a datagram must come from the host of some node of the bus, or
        from the host that From names. A stream of a known node may come from any of its addresses.
        """
        named = translate.sender_of(request)
        address = self.membership.names.address_of(now, named)
        if address is None:
            return None
        if address == self.own:
            return address if source.host == address.host else None
        member = self.membership.members.get(address)
        is_known = member is not None and (
            source.connection is not None or self.membership.members.has_host(source.host)
        )
        if not is_known and source.host != address.host:
            return None
        if member is None or not member.is_active:
            self.membership.heard_from(now, address)
        return address

    def _to_routes(
        self, now: Instant, request: SipRequest, source: Source, origin: PeerAddress
    ) -> None:
        channel = request.channel
        if not translate.is_channel(channel):
            self._reply(request, source, ResultCode.NOT_FOUND)
            return
        if len(self._pending) >= PENDING_MAX:
            self.counters.refused += 1
            if self.counters.refused % PENDING_MAX == 1:
                detail = f"{PENDING_MAX} messages wait for their handlers"
                limit = LimitReached(self._cluster, "pending", origin.node_id, detail)
                self._effects.append(effects.Raise(limit))
            self._reply(request, source, ResultCode.BUSY)
            return
        ticket = self.counters.messages
        message = self._message(now, request, origin)
        self._pending[ticket] = (request, source)
        self._effects.append(effects.Arrived(origin.node_id, ticket, message))

    def _message(self, now: Instant, request: SipRequest, origin: PeerAddress) -> Answerable:
        channel = ChannelName(request.channel)
        content_type = _printable(request.content_type)
        if content_type.partition(";")[0].strip().lower() == translate.REQUEST_CONTENT_TYPE:
            script = translate.parse_script_request_untrusted(request.body)
            if script is not None:
                timeout = translate.SCRIPT_REQUEST_TIMEOUT
                while len(self._scripts) >= SCRIPT_REQUESTS_MAX:
                    self._scripts.popitem(last=False)
                self._scripts[origin.node_id, script.tag] = _ScriptRequest(
                    script.reply_channel, script.tag, origin, now + timeout
                )
                return Request(
                    channel, translate.LIST_CONTENT_TYPE, script.body, script.tag, timeout
                )
        return Message(
            channel, content_type, request.body, self.counters.messages, request.max_forwards
        )

    def finish(self, now: Instant, results: Sequence[tuple[int, ResultCode]]) -> list[Effect]:
        """Answer requests whose handlers have ended."""
        del now
        for ticket, code in results:
            pending = self._pending.pop(ticket, None)
            if pending is not None:
                self._reply(*pending, code)
        return self._take()

    def _reply(
        self,
        request: SipRequest,
        source: Source,
        code: ResultCode,
        content_type: str = "",
        body: bytes = b"",
    ) -> None:
        """Answer a request. Only the notification channel ever gets a body: see "Never harm"."""
        number, reason = reply_of(code)
        answer = encode_reply(
            request,
            number,
            reason,
            tag=f"{self.node_id}.{self.counters.received:x}",
            agent=AGENT,
            content_type=content_type,
            body=body,
        )
        self._answered.answered(request.key, answer)
        self._effects.append(effects.Answer(_answer_to(request, source), answer))

    def _sip(self, now: Instant, request: SipRequest, source: Source) -> None:
        """Take a request that is no KDMQ: a copy made by dmq_t_replicate, or a keep-alive."""
        if request.method == "OPTIONS":
            self._reply(request, source, ResultCode.OK)
            return
        if not self.membership.members.has_host(source.host) or self.is_leaving:
            self.counters.strangers += 1
            self._reply(request, source, ResultCode.FORBIDDEN)
            return
        self.counters.replicated += 1
        names = request.headers.keys()
        headers = {name: list(request.headers.getlist(name)) for name in names}
        event = SipReplicated(
            self._cluster,
            source.host,
            request.method,
            str(request.uri),
            request.call_id,
            headers,
            request.body,
        )
        self._effects.append(effects.Raise(event))
        # A 200 to an INVITE would ask for an ACK and a call; the copy only wants to be seen.
        is_call = request.method == "INVITE"
        self._reply(request, source, ResultCode.UNAVAILABLE if is_call else ResultCode.OK)

    # --- what the user wants --------------------------------------------------------------------

    def publish(
        self,
        now: Instant,
        delivery: DeliveryId,
        channel: str,
        body: bytes,
        content_type: str,
        *,
        destinations: Sequence[str] | None,
        excluded: Sequence[str] = (),
        max_forwards: int = 1,
    ) -> list[Effect]:
        """Send a message to all nodes that have not left, or to some."""
        node_ids = self._destinations(destinations, excluded)
        self._effects.append(effects.Destined(delivery, len(node_ids)))
        for node_id in node_ids:
            on_end = partial(self._settle, delivery, node_id)
            self._send(now, node_id, channel, body, content_type, max_forwards, None, on_end)
        return self._take()

    def _settle(self, delivery: DeliveryId, node_id: NodeId, now: Instant, ending: Ending) -> None:
        del now
        code = translate.result_of(ending.code)
        self._effects.append(effects.Settled(delivery, node_id, code))

    def ask(
        self,
        now: Instant,
        request: RequestId,
        channel: str,
        body: bytes,
        content_type: str,
        timeout: Seconds,
        *,
        destinations: Sequence[str] | None,
        include_self: bool = False,
    ) -> list[Effect]:
        """Ask all nodes that have not left, or some: the SIP answer of each is its one reply."""
        node_ids = self._destinations(destinations, ())
        if include_self and self.node_id not in node_ids:
            node_ids.append(self.node_id)
        self._effects.append(effects.Asked(request, node_ids))
        for node_id in node_ids:
            on_end = partial(self._replied, request, node_id)
            self._send(now, node_id, channel, body, content_type, 1, timeout, on_end)
        return self._take()

    def _replied(self, request: RequestId, node_id: NodeId, now: Instant, ending: Ending) -> None:
        del now
        self._effects.append(
            effects.Replied(
                request,
                node_id,
                ending.code,
                ending.reason,
                _printable(ending.content_type),
                ending.body,
                ending.is_answer,
            )
        )

    def _destinations(
        self, destinations: Sequence[str] | None, excluded: Sequence[str]
    ) -> list[NodeId]:
        if destinations is not None:
            return [NodeId(node_id) for node_id in destinations]
        members = self.membership.members.visible()
        return [each.node_id for each in members if each.node_id not in excluded]

    def _send(
        self,
        now: Instant,
        node_id: str,
        channel: str,
        body: bytes,
        content_type: str,
        max_forwards: int,
        timeout: Seconds | None,
        on_end: Callable[[Instant, Ending], None],
    ) -> None:
        address = self._address(node_id)
        if address is None or self.is_leaving:
            on_end(now, verdict(ResultCode.UNAVAILABLE))
            return
        deadline = now + (self.settings.fr_timer if timeout is None else timeout)
        outgoing = Outgoing(address, channel, body, content_type, max_forwards, deadline, on_end)
        self.outbox.send(now, outgoing)

    def _address(self, node_id: str) -> PeerAddress | None:
        if node_id == self.node_id:
            return self.own
        member: Member | None = self.membership.members.by_id(node_id)
        return member.address if member is not None and member.is_active else None

    def reply_to_script(
        self, now: Instant, delivery: DeliveryId, node_id: str, tag: str, code: int, body: bytes
    ) -> list[Effect]:
        """Answer a request of a script on its reply channel; 404 where none is open."""
        self._effects.append(effects.Destined(delivery, 1))
        on_end = partial(self._settle, delivery, NodeId(node_id))
        script = self._scripts.get((node_id, tag))
        if script is None or script.until < now:
            on_end(now, verdict(ResultCode.NOT_FOUND))
            return self._take()
        outgoing = Outgoing(
            script.address,
            script.reply_channel,
            translate.encode_script_reply(script.tag, code, body),
            translate.REPLY_CONTENT_TYPE,
            1,
            now + self.settings.fr_timer,
            on_end,
        )
        self.outbox.send(now, outgoing)
        return self._take()

    def perform(self, action: Callable[[], None]) -> list[Effect]:
        """Let a part do something and return what it asks for."""
        action()
        return self._take()

    def leave(self, now: Instant, on_left: Callable[[], None]) -> list[Effect]:
        """Tell each node that we go; `on_left` is called when each has answered or not."""
        self.membership.leave(now, on_left)
        return self._take()


def _answer_to(request: SipRequest, source: Source) -> Source:
    """Return where an answer goes (RFC 3261 section 18.2.2 and RFC 3581)."""
    if source.connection is not None or request.via.wants_source_port:
        return source
    return Source(source.host, request.via.port or 5060)


def _printable(content_type: str) -> str:
    """Return a content type that our own messages may carry."""
    return "".join(each for each in content_type if " " <= each <= "~")[:128] or "text/plain"
