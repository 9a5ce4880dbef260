"""Our own mesh as a `Bus`: what the user says becomes inputs, what the node says reaches the user.

Per broadcast this makes one `Delivery`, one `Publish` and one dictionary entry; per result one
call. Nothing waits here but `Delivery` and `MeshReplies` in their reader's task.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import trio

from clusternode.bus.base import CHANGEABLE_STATUSES, CheckedBus
from clusternode.bus.interface import Arrivals, Delivery
from clusternode.core import effects
from clusternode.core.events import Event
from clusternode.core.inputs import (
    AddMember,
    Answer,
    Ask,
    CancelRequest,
    ChangeStatus,
    ChannelsChanged,
    Handled,
    Publish,
    RemoveMember,
)
from clusternode.core.snapshots import NodeSnapshot
from clusternode.core.types import (
    Address,
    ChannelName,
    Incarnation,
    NodeId,
    RequestId,
    ResultCode,
    Tag,
)
from clusternode.core.wire import limits
from clusternode.core.wire.messages import Reply
from clusternode.errors import ConfigError
from clusternode.runtime.driver import Driver


class MeshBus(CheckedBus):
    """One node of one cluster, as routes, control and command line see it.

    It is also the driver's `Observer`. Everything is called in the agent's thread.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        messaging = driver.settings.messaging
        super().__init__(
            body_size_max=messaging.body_size_max, open_requests_max=messaging.open_requests_max
        )
        self._channels: tuple[ChannelName, ...] = driver.settings.channels

    # --- who is there ---------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.driver.settings.cluster

    @property
    def node_id(self) -> NodeId:
        return self.driver.settings.node_id

    def snapshot(self) -> NodeSnapshot:
        return self.driver.snapshot()

    def rank(self, channel: str) -> tuple[int, int] | None:
        """Tell (own index, count) among the reachable members that listen on a channel."""
        listening = sorted(
            member.node_id
            for member in self.members()
            if channel in member.channels and (member.local or member.status == "active")
        )
        if self.node_id not in listening:
            return None
        return listening.index(self.node_id), len(listening)

    # --- messages and requests ------------------------------------------------------------------

    def _send_out(self, message: Publish) -> None:
        self.driver.feed(message)

    def _ask_out(self, request: Ask) -> None:
        self.driver.feed(request)

    def _cancelled(self, request: RequestId, tag: Tag) -> None:
        del tag
        self.driver.feed(CancelRequest(request))

    def reply(
        self,
        node_id: str,
        tag: str,
        body: bytes | str,
        *,
        content_type: str | None = None,
        code: int = 200,
    ) -> Delivery:
        """Answer a request by its tag."""
        data, content_type = self._checked(body, content_type)
        self._check_tag(tag)
        if not 0 <= code <= limits.U16_MAX:
            raise ConfigError("code", code, f"0 to {limits.U16_MAX}")
        destination = self._node_id(node_id)
        delivery, delivery_id = self._new_delivery(None)
        self.driver.feed(Answer(delivery_id, destination, Tag(tag), data, content_type, code))
        return delivery

    # --- what the user decides about the cluster ------------------------------------------------

    def set_channels(self, channels: Iterable[str]) -> None:
        """Say which channels the routes listen to now."""
        names = sorted(set(channels))
        for name in names:
            self._check_name("channel", name)
        if len(names) > limits.CHANNELS_MAX:
            raise ConfigError("channels", len(names), f"at most {limits.CHANNELS_MAX}")
        wanted = tuple(ChannelName(name) for name in names)
        if wanted != self._channels:
            self._channels = wanted
            self.driver.feed(ChannelsChanged(wanted))

    def add(self, address: str) -> None:
        """Dial an address from now on."""
        self.driver.feed(AddMember(Address.parse(address)))

    def remove(self, node_id: str) -> None:
        """Take a member off the list here."""
        self.driver.feed(RemoveMember(self._other_member(node_id)))

    def change_status(self, node_id: str, status: str) -> None:
        """Set the status of a member here until its next ping ends.

        Raises:
            NoSuchNode: It is not on the list, or is this node.
            ConfigError: There is no such status.
        """
        if status not in CHANGEABLE_STATUSES:
            raise ConfigError("status", status, "one of " + ", ".join(CHANGEABLE_STATUSES))
        self.driver.feed(ChangeStatus(self._other_member(node_id), status))

    # --- what the node says (driver.Observer) ---------------------------------------------------

    def settle(self, effect: effects.Settle) -> None:
        deliveries = self._deliveries
        for delivery_id, node_id, code in effect.results:
            delivery = deliveries[delivery_id]
            delivery.settle(node_id, code)
            if delivery.is_complete:
                del deliveries[delivery_id]

    def fan_out(self, effect: effects.Fanout) -> None:
        self._fix_destinations(effect.delivery, len(effect.destinations))

    def handle(self, effect: effects.Handle) -> None:
        finish = partial(self._finish, effect.origin, effect.incarnation)
        if self._receiver is None:
            finish(
                [
                    (position, ResultCode.NOT_FOUND)
                    for position, message in effect.items
                    if not isinstance(message, Reply)
                ]
            )
        else:
            self._receiver.arrived(
                Arrivals(self, effect.origin, effect.items, finish, self._channels_of_tags)
            )

    def _finish(
        self,
        origin: NodeId,
        incarnation: Incarnation,
        results: Sequence[tuple[int, ResultCode]],
    ) -> None:
        if results:
            self.driver.feed(Handled(origin, incarnation, results))

    def asked(self, effect: effects.Asked) -> None:
        replies = self._requests.get(effect.request)
        if replies is not None:
            replies.fix_asked(effect.node_ids)

    def replied(self, effect: effects.Replied) -> None:
        replies = self._requests.get(effect.request)
        if replies is not None:
            replies.add(effect, trio.current_time())

    def request_finished(self, effect: effects.RequestFinished) -> None:
        replies = self._requests.get(effect.request)
        if replies is not None:
            replies.finish(effect.node_id, effect.outcome, effect.code)

    def request_ended(self, effect: effects.RequestEnded) -> None:
        self._end(effect.request)

    def emit(self, event: Event) -> None:
        self.observed(event)
