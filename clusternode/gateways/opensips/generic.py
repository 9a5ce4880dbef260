"""Requests and replies of scripts: GENERIC_MSG, as module clusterer's script functions use it.

A request is one copy for each node with a tag; a reply names that tag, and nothing else ties the
two. Whoever wants may answer, as often as he wants, late, or with a tag that was never given out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import attrs

from clusternode.core.effects import Outcome
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
from clusternode.core.wire.codec import is_tag
from clusternode.core.wire.messages import Message, Reply, Request
from clusternode.errors import RemoteProtocolError
from clusternode.gateways.opensips import effects
from clusternode.gateways.opensips.context import Context
from clusternode.gateways.opensips.messages import Generic, Routed, Trailer
from clusternode.gateways.opensips.pacing import OnEnd

CHANNEL: Final = ChannelName("generic")
CONTENT_TYPE: Final = "text/plain"
ANSWER_TIME: Final[Seconds] = 30.0
"""How long a handler may hold a request open; OpenSIPS does not say how long it waits."""

Route = Callable[[Routed, OnEnd], object]
"""Sends a packet to its destination and says how that ended."""


@attrs.define(eq=False)
class _Open:
    """One request of ours that waits for replies."""

    request: RequestId
    deadline: Instant
    unfinished: list[NodeId]


class Conversations:
    """What scripts, theirs and ours, say to each other."""

    def __init__(self, context: Context, others: Callable[[], Sequence[int]], route: Route) -> None:
        self._context = context
        self._others = others
        self._route = route
        self._open: dict[Tag, _Open] = {}
        self._messages = 0

    # --- ours -----------------------------------------------------------------------------------

    def publish(
        self,
        delivery: DeliveryId,
        tag: Tag,
        body: bytes,
        destinations: Sequence[NodeId] | None,
        excluded: Sequence[str] = (),
    ) -> None:
        """Send a request that nobody waits for: OpenSIPS knows no other message."""
        node_ids = self._destinations(destinations, excluded)
        self._context.effects.append(effects.Destined(delivery, len(node_ids)))
        for node_id in node_ids:
            self._send(node_id, tag, body, partial(self._settle, delivery, node_id))

    def _settle(self, delivery: DeliveryId, node_id: NodeId, code: ResultCode) -> None:
        self._context.effects.append(effects.Settled(delivery, node_id, code))

    def ask(
        self,
        request: RequestId,
        tag: Tag,
        body: bytes,
        timeout: Seconds,
        destinations: Sequence[NodeId] | None,
        *,
        include_self: bool,
    ) -> None:
        """Send a request and wait for one reply of each node that was asked."""
        own = NodeId(str(self._context.own_id))
        node_ids = self._destinations(destinations, ())
        if include_self and own not in node_ids:
            node_ids.append(own)
        self._context.effects.append(effects.Asked(request, node_ids))
        # The waiter is there before anything is sent.
        self._open[tag] = _Open(request, self._context.now + timeout, list(node_ids))
        for node_id in node_ids:
            self._send(node_id, tag, body, partial(self._sent, tag, node_id))
        self._end_if_finished(tag)

    def _sent(self, tag: Tag, node_id: NodeId, code: ResultCode) -> None:
        if code is not ResultCode.QUEUED:
            self._finish(tag, node_id, Outcome.FAILED, code)

    def cancel(self, tag: Tag) -> None:
        self._open.pop(tag, None)

    def reply(self, delivery: DeliveryId, node_id: NodeId, tag: Tag, body: bytes) -> None:
        """Answer a request of somebody's script."""
        self._context.effects.append(effects.Destined(delivery, 1))
        on_end = partial(self._settle, delivery, node_id)
        self._send(node_id, tag, body, on_end, is_request=False)

    def _destinations(
        self, destinations: Sequence[NodeId] | None, excluded: Sequence[str]
    ) -> list[NodeId]:
        if destinations is not None:
            return list(destinations)
        return [NodeId(str(each)) for each in self._others() if str(each) not in excluded]

    def _send(
        self, node_id: NodeId, tag: Tag, body: bytes, on_end: OnEnd, *, is_request: bool = True
    ) -> None:
        if not node_id.isdecimal() or not 0 < int(node_id) < 2**31:
            on_end(ResultCode.UNAVAILABLE)
            return
        context, destination = self._context, int(node_id)
        trailer = Trailer(context.cluster_id, context.own_id, destination)
        packet = Generic(trailer, is_request, tag, body)
        if destination == context.own_id:
            on_end(ResultCode.QUEUED)
            self.received(packet)
        else:
            self._route(packet, on_end)

    # --- theirs ---------------------------------------------------------------------------------

    def received(self, packet: Generic) -> None:
        """Take a request or a reply.

        Raises:
            RemoteProtocolError: Its tag is none that could be written down or answered.
        """
        if packet.tag and not is_tag(packet.tag):
            raise RemoteProtocolError(f"the tag {packet.tag[:64]!r} of {len(packet.tag)} letters")
        origin, tag = NodeId(str(packet.trailer.source)), Tag(packet.tag)
        if not packet.is_request:
            self._reply_received(origin, tag, packet.text)
            return
        self._messages += 1
        arrived = effects.Arrived(
            origin,
            (
                Request(CHANNEL, CONTENT_TYPE, packet.text, tag, ANSWER_TIME),
                Message(CHANNEL, CONTENT_TYPE, packet.text, self._messages),
            ),
        )
        self._context.effects.append(arrived)

    def _reply_received(self, origin: NodeId, tag: Tag, body: bytes) -> None:
        reply = Reply(tag, CONTENT_TYPE, body)
        self._context.effects.append(effects.Arrived(origin, (reply,)))
        known = self._open.get(tag)
        if known is None:
            self._context.count("late_replies")
            return
        self._context.effects.append(effects.Replied(known.request, origin, body))
        self._finish(tag, origin, Outcome.REPLIED, ResultCode.OK)

    # --- the end of a request -------------------------------------------------------------------

    def _finish(self, tag: Tag, node_id: NodeId, outcome: Outcome, code: ResultCode) -> None:
        known = self._open.get(tag)
        if known is None or node_id not in known.unfinished:
            return
        known.unfinished.remove(node_id)
        self._context.effects.append(effects.Finished(known.request, node_id, outcome, code))
        self._end_if_finished(tag)

    def _end_if_finished(self, tag: Tag) -> None:
        known = self._open.get(tag)
        if known is not None and not known.unfinished:
            del self._open[tag]

    def next_deadline(self) -> Instant | None:
        return min((each.deadline for each in self._open.values()), default=None)

    def tick(self) -> None:
        """End the requests whose time is over."""
        over = [tag for tag, each in self._open.items() if each.deadline <= self._context.now]
        for tag in over:
            for node_id in list(self._open[tag].unfinished):
                self._finish(tag, node_id, Outcome.UNANSWERED, ResultCode.TIMEOUT)
