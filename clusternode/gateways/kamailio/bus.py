"""A DMQ bus as a `Bus`: what the user says goes to the machine, its effects reach the user."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

import trio

from clusternode.bus.base import CHANGEABLE_STATUSES, CheckedBus, ip_of
from clusternode.bus.interface import (
    Arrivals,
    Delivery,
)
from clusternode.bus.replies import MeshReplies
from clusternode.core import effects as core_effects
from clusternode.core.effects import Outcome
from clusternode.core.inputs import Ask, Publish
from clusternode.core.snapshots import NodeSnapshot
from clusternode.core.types import (
    Address,
    NodeId,
    RequestId,
    ResultCode,
    Tag,
)
from clusternode.errors import ConfigError, NoSuchNode
from clusternode.gateways.kamailio import effects, views
from clusternode.gateways.kamailio.codec import BODY_SIZE_MAX
from clusternode.gateways.kamailio.effects import Effect
from clusternode.gateways.kamailio.node import KamailioNode
from clusternode.gateways.kamailio.translate import PeerAddress, parse_address, result_of
from clusternode.gateways.kamailio.views import HtableView

OPEN_REQUESTS_MAX: Final = 1024

Perform = Callable[[list[Effect]], None]


class KamailioBus(CheckedBus):
    """One node of a DMQ bus, as routes, control and command line see it."""

    def __init__(self, name: str, node: KamailioNode, perform: Perform) -> None:
        super().__init__(body_size_max=BODY_SIZE_MAX, open_requests_max=OPEN_REQUESTS_MAX)
        self._node = node
        self._name = name
        self._perform = perform
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

    def rank(self, channel: str) -> tuple[int, int] | None:
        """Tell (own index, count) among the active nodes; DMQ does not say who listens."""
        if channel not in self._channels:
            return None
        active = [member.node_id for member in self.node.membership.members.active()]
        nodes = sorted([*active, self.node_id])
        return nodes.index(self.node_id), len(nodes)

    def is_from_node(self, address: str) -> bool:
        """Tell whether an IP address, with or without a port, is a node's (dmq_is_from_node)."""
        host = ip_of(address)
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

    # --- messages and requests ------------------------------------------------------------------

    def _send_out(self, message: Publish) -> None:
        """Send; the SIP code of each node is its result. DMQ has no mark for copies."""
        self._perform(
            self.node.publish(
                trio.current_time(),
                message.delivery,
                message.channel,
                message.body,
                message.content_type,
                destinations=message.destinations,
                excluded=message.excluded,
                max_forwards=message.max_forwards,
            )
        )

    def _ask_out(self, request: Ask) -> None:
        """Ask; the SIP answer of each node (code, reason, body) is its one reply."""
        self._perform(
            self.node.ask(
                trio.current_time(),
                request.request,
                request.channel,
                request.body,
                request.content_type,
                request.timeout,
                destinations=request.destinations,
                include_self=request.include_self,
            )
        )

    def _cancelled(self, request: RequestId, tag: Tag) -> None:
        """Nothing to do: the answers of SIP come whether or not somebody waits."""

    def _check_channel(self, channel: str) -> None:
        super()._check_channel(channel)
        if channel == self.node.settings.notification_channel:
            # A body there is a member list, and a wrong one stops old Kamailios.
            raise ConfigError("channel", channel, "any but the notification channel of the bus")

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

    # --- what the user decides about the bus ----------------------------------------------------

    def set_channels(self, channels: Iterable[str]) -> None:
        """Say which channels the routes listen to now; DMQ tells nobody."""
        self._channels = tuple(sorted(set(channels)))
        self._node.tables.listened = frozenset(self._channels)

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
        self._fix_destinations(effect.delivery, effect.count)

    def settled(self, effect: effects.Settled) -> None:
        self._settle(effect.delivery, effect.node_id, effect.code)

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
            self._end(request)
