"""A DMQ bus as a `Bus`: what the user says goes to the machine, its effects reach the user."""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

import trio

from clusternode.bus.interface import (
    REQUEST_TIMEOUT,
    TEXT_CONTENT_TYPE,
    Arrivals,
    Delivery,
    Receiver,
    ResultCallback,
)
from clusternode.bus.replies import MeshReplies, call_back
from clusternode.core import effects as core_effects
from clusternode.core.effects import Outcome
from clusternode.core.events import Event
from clusternode.core.snapshots import MemberSnapshot, NodeSnapshot
from clusternode.core.types import (
    Address,
    DeliveryId,
    NodeId,
    RequestId,
    ResultCode,
    Seconds,
    Tag,
    is_name,
)
from clusternode.core.wire.codec import is_content_type, is_tag
from clusternode.errors import BodyTooLarge, ConfigError, NoSuchNode, Overloaded
from clusternode.gateways.kamailio import effects, views
from clusternode.gateways.kamailio.codec import BODY_SIZE_MAX
from clusternode.gateways.kamailio.effects import Effect
from clusternode.gateways.kamailio.node import KamailioNode
from clusternode.gateways.kamailio.translate import PeerAddress, parse_address, result_of
from clusternode.gateways.kamailio.views import HtableView

OPEN_REQUESTS_MAX: Final = 1024
OCTETS: Final = "application/octet-stream"
CHANGEABLE_STATUSES: Final = ("active", "not_active", "disabled")

Perform = Callable[[list[Effect]], None]


class KamailioBus:
    """One node of a DMQ bus, as routes, control and command line see it."""

    def __init__(self, name: str, node: KamailioNode, perform: Perform) -> None:
        self._node = node
        self._name = name
        self._perform = perform
        self._ids = itertools.count(1)
        self._deliveries: dict[DeliveryId, Delivery] = {}
        self._requests: dict[RequestId, MeshReplies] = {}
        self._tag_prefix = secrets.token_hex(6)
        self._receiver: Receiver | None = None
        self._channels: tuple[str, ...] = ()

    # --- who is there ---------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._name

    @property
    def node(self) -> KamailioNode:
        return self._node

    @property
    def node_id(self) -> NodeId:
        return self.node.node_id

    def snapshot(self) -> NodeSnapshot:
        return views.snapshot(self.node, self._name, self._channels, trio.current_time())

    def members(self) -> Sequence[MemberSnapshot]:
        """The own row first, then the others by node id."""
        return self.snapshot().members

    def rank(self, channel: str) -> tuple[int, int] | None:
        """Tell (own index, count) among the active nodes; DMQ does not say who listens."""
        if channel not in self._channels:
            return None
        active = [member.node_id for member in self.node.membership.members.active()]
        nodes = sorted([*active, self.node_id])
        return nodes.index(self.node_id), len(nodes)

    def is_from_node(self, address: str) -> bool:
        """Tell whether an IP address, with or without a port, is a node's (dmq_is_from_node)."""
        host = views.ip_of(address)
        return host is not None and self.node.membership.members.has_host(host)

    def htable(self, table: str) -> HtableView:
        """Return the live view of a shared table.

        Raises:
            ConfigError: `[gateway.kamailio] htables` does not name it.
        """
        if table not in self.node.tables.tables:
            known = ", ".join(self.node.tables.tables.autoexpire) or "none"
            raise ConfigError(f"gateway.{self._name}.htables", known, f"the table {table} in it")
        return HtableView(self, table)

    # --- messages -------------------------------------------------------------------------------

    def broadcast(
        self,
        channel: str,
        body: bytes | str,
        *,
        except_: Iterable[str] = (),
        content_type: str | None = None,
        max_forwards: int = 1,
        on_result: ResultCallback | None = None,
    ) -> Delivery:
        """Send to every node but self; the SIP code of each is its result."""
        return self._publish(
            channel, body, content_type, max_forwards, on_result, None, tuple(except_)
        )

    def send(
        self,
        channel: str,
        node_id: str,
        body: bytes | str,
        *,
        content_type: str | None = None,
        max_forwards: int = 1,
        on_result: ResultCallback | None = None,
    ) -> Delivery:
        """Send to one node; to the own id it goes over the network, as in DMQ."""
        self._check_name("node_id", node_id)
        return self._publish(channel, body, content_type, max_forwards, on_result, (node_id,), ())

    def replicate(
        self,
        channel: str,
        body: bytes | str,
        *,
        source: str = "",
        replicated: bool = False,
        skip_loop_test: bool = False,
        content_type: str | None = None,
        on_result: ResultCallback | None = None,
    ) -> Delivery | None:
        """Broadcast; None when it is itself a copy or `source` is a node of the bus.

        The bus has no mark for copies: a Kamailio that gets one tells by `dmq_is_from_node`.
        """
        if replicated or (source and not skip_loop_test and self._is_of_bus(source)):
            return None
        return self._publish(channel, body, content_type, 1, on_result, None, ())

    def _is_of_bus(self, source: str) -> bool:
        members = self.node.membership.members
        return members.by_id(source) is not None or self.is_from_node(source)

    def _publish(
        self,
        channel: str,
        body: bytes | str,
        content_type: str | None,
        max_forwards: int,
        on_result: ResultCallback | None,
        destinations: Sequence[str] | None,
        excluded: Sequence[str],
    ) -> Delivery:
        self._check_channel(channel)
        data, content_type = self._checked(body, content_type)
        if not 0 <= max_forwards <= 255:
            raise ConfigError("max_forwards", max_forwards, "0 to 255")
        delivery, delivery_id = self._new_delivery(on_result)
        self._perform(
            self.node.publish(
                trio.current_time(),
                delivery_id,
                channel,
                data,
                content_type,
                destinations=destinations,
                excluded=excluded,
                max_forwards=max_forwards,
            )
        )
        return delivery

    def _new_delivery(self, on_result: ResultCallback | None) -> tuple[Delivery, DeliveryId]:
        delivery = Delivery(None if on_result is None else partial(call_back, on_result))
        delivery_id = DeliveryId(next(self._ids))
        self._deliveries[delivery_id] = delivery
        return delivery, delivery_id

    # --- requests -------------------------------------------------------------------------------

    def broadcast_request(
        self,
        channel: str,
        body: bytes | str,
        *,
        timeout: Seconds = REQUEST_TIMEOUT,
        tag: str | None = None,
        include_self: bool = False,
        content_type: str | None = None,
    ) -> MeshReplies:
        """Ask every node: the SIP answer of each (code, reason, body) is its one reply."""
        return self._ask(channel, body, timeout, tag, content_type, None, include_self)

    def request(
        self,
        channel: str,
        node_id: str,
        body: bytes | str,
        *,
        timeout: Seconds = REQUEST_TIMEOUT,
        tag: str | None = None,
        content_type: str | None = None,
    ) -> MeshReplies:
        """Ask one node."""
        self._check_name("node_id", node_id)
        return self._ask(channel, body, timeout, tag, content_type, (node_id,), False)

    def _ask(
        self,
        channel: str,
        body: bytes | str,
        timeout: Seconds,
        tag: str | None,
        content_type: str | None,
        destinations: Sequence[str] | None,
        include_self: bool,
    ) -> MeshReplies:
        self._check_channel(channel)
        data, content_type = self._checked(body, content_type)
        if not (math.isfinite(timeout) and timeout > 0):
            raise ConfigError("timeout", timeout, "seconds, more than 0")
        if tag is not None and not is_tag(tag):
            raise ConfigError("tag", tag, "printable ASCII letters")
        if len(self._requests) >= OPEN_REQUESTS_MAX:
            raise Overloaded(f"{len(self._requests)} requests are open, the most that may be")
        request_id = RequestId(next(self._ids))
        own_tag = Tag(tag or f"{self._tag_prefix}.{request_id}")
        now = trio.current_time()
        replies = MeshReplies(own_tag, now, partial(self._cancel, request_id))
        self._requests[request_id] = replies
        self._perform(
            self.node.ask(
                now,
                request_id,
                channel,
                data,
                content_type,
                timeout,
                destinations=destinations,
                include_self=include_self,
            )
        )
        return replies

    def _cancel(self, request_id: RequestId) -> None:
        self._requests.pop(request_id, None)

    def reply(
        self,
        node_id: str,
        tag: str,
        body: bytes | str,
        *,
        content_type: str | None = None,
        code: int = 200,
    ) -> Delivery:
        """Answer a request of a script, on the reply channel that it named."""
        data, _ = self._checked(body, content_type)
        delivery, delivery_id = self._new_delivery(None)
        now = trio.current_time()
        self._perform(self.node.reply_to_script(now, delivery_id, node_id, tag, code, data))
        return delivery

    # --- checks ---------------------------------------------------------------------------------

    def _checked(self, body: bytes | str, content_type: str | None) -> tuple[bytes, str]:
        if isinstance(body, str):
            body = body.encode()
            content_type = content_type or TEXT_CONTENT_TYPE
        if len(body) > BODY_SIZE_MAX:
            raise BodyTooLarge(f"body of {len(body)} bytes, at most {BODY_SIZE_MAX}")
        if content_type is not None and (not content_type or not is_content_type(content_type)):
            raise ConfigError("content_type", content_type, "printable ASCII letters")
        return body, content_type or OCTETS

    def _check_channel(self, channel: str) -> None:
        self._check_name("channel", channel)
        if channel == self.node.settings.notification_channel:
            # A body there is a member list, and a wrong one stops old Kamailios.
            raise ConfigError("channel", channel, "any but the notification channel of the bus")

    def _check_name(self, what: str, name: str) -> None:
        if not is_name(name):
            raise ConfigError(what, name, "1 to 64 of A-Z a-z 0-9 . _ : -")

    # --- what the user decides about the bus ----------------------------------------------------

    def set_channels(self, channels: Iterable[str]) -> None:
        """Say which channels the routes listen to now; DMQ tells nobody."""
        self._channels = tuple(sorted(set(channels)))
        self._node.tables.listened = frozenset(self._channels)

    def attach(self, receiver: Receiver) -> None:
        """Hand everything that arrives and happens to `receiver`."""
        self._receiver = receiver

    def add(self, address: str) -> None:
        """Ping an address now: `sip:IP:PORT`, or `tcp://IP:PORT` for TCP."""
        if address.startswith("tcp://"):
            known = Address.parse(address)
            address = PeerAddress("tcp", known.host, known.port).uri
        try:
            numeric = parse_address(address).numeric
        except ValueError:
            numeric = None
        if numeric is None:
            raise ConfigError("address", address, "sip:IP:PORT")
        now = trio.current_time()
        self._perform(self.node.perform(partial(self.node.membership.heard_from, now, numeric)))

    def remove(self, node_id: str) -> None:
        """Take a node off the list here; it returns with its next ping."""
        members = self.node.membership.members
        member = members.by_id(node_id)
        if member is None:
            raise NoSuchNode(f"{node_id} is no other node of {self._name}")
        self._perform(self.node.perform(partial(members.remove, trio.current_time(), member)))

    def change_status(self, node_id: str, status: str) -> None:
        """Set the status of a node here until its next ping ends."""
        if status not in CHANGEABLE_STATUSES:
            raise ConfigError("status", status, "one of " + ", ".join(CHANGEABLE_STATUSES))
        members = self.node.membership.members
        member = members.by_id(node_id)
        if member is None:
            raise NoSuchNode(f"{node_id} is no other node of {self._name}")
        self._perform(self.node.perform(partial(members.set_status, member, status)))

    # --- what the machine says ------------------------------------------------------------------

    def destined(self, effect: effects.Destined) -> None:
        self._deliveries[effect.delivery].fix_destinations(effect.count)
        if not effect.count:
            del self._deliveries[effect.delivery]

    def settled(self, effect: effects.Settled) -> None:
        delivery = self._deliveries[effect.delivery]
        delivery.settle(effect.node_id, effect.code)
        if delivery.is_complete:
            self._deliveries.pop(effect.delivery, None)

    def arrived(self, effect: effects.Arrived) -> None:
        if self._receiver is None:
            self._finish([(effect.ticket, ResultCode.NOT_FOUND)])
            return
        items = [(effect.ticket, effect.message)]
        self._receiver.arrived(Arrivals(self, effect.origin, items, self._finish))

    def _finish(self, results: Sequence[tuple[int, ResultCode]]) -> None:
        self._perform(self.node.finish(trio.current_time(), results))

    def asked(self, effect: effects.Asked) -> None:
        replies = self._requests.get(effect.request)
        if replies is not None:
            replies.fix_asked(effect.node_ids)
            self._end_if_all_finished(effect.request, replies)

    def replied(self, effect: effects.Replied) -> None:
        """Make one reply and one outcome of the answer of a node."""
        replies = self._requests.get(effect.request)
        if replies is None:
            return
        code = result_of(effect.code)
        if effect.is_answer:
            replies.add(
                core_effects.Replied(
                    effect.request,
                    effect.node_id,
                    replies.tag,
                    effect.body,
                    effect.content_type,
                    effect.code,
                    effect.reason,
                ),
                trio.current_time(),
            )
        if 200 <= effect.code < 300:
            outcome = Outcome.REPLIED
        elif not effect.is_answer and code is ResultCode.TIMEOUT:
            outcome = Outcome.UNANSWERED
        else:
            outcome = Outcome.FAILED
        replies.finish(effect.node_id, outcome, code)
        self._end_if_all_finished(effect.request, replies)

    def _end_if_all_finished(self, request: RequestId, replies: MeshReplies) -> None:
        if len(replies.outcomes) == len(replies.asked):
            self._requests.pop(request, None)
            replies.end()

    def observed(self, event: Event) -> None:
        if self._receiver is not None:
            self._receiver.observed(self, event)
