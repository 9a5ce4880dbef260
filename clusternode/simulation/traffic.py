"""Messages and requests that a world sends, and what their senders are told about them."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

from clusternode.core import effects
from clusternode.core.inputs import Answer, Ask, Publish
from clusternode.core.types import (
    ChannelName,
    DeliveryId,
    NodeId,
    RequestId,
    Seconds,
    Tag,
)
from clusternode.simulation.history import (
    DeliveryFact,
    Key,
    ReplyMade,
    RequestFact,
    key_in,
    make_key,
)
from clusternode.simulation.surroundings import NodeView, ProcessView, Sender, WorldView

_Mine = tuple[NodeId, int, int]  # node, life, number of the delivery or request


class Traffic:
    """The callers of all nodes."""

    def __init__(self, world: WorldView) -> None:
        self._world = world
        self._numbers: dict[tuple[NodeId, int], Iterator[int]] = defaultdict(
            lambda: itertools.count(1)
        )
        self._deliveries: dict[_Mine, DeliveryFact] = {}
        self._requests: dict[_Mine, RequestFact] = {}

    def publish(
        self,
        process: Sender,
        channel: ChannelName,
        destinations: Sequence[NodeId] | None = None,
        body_size: int = 0,
        text: str = "",
    ) -> None:
        """Broadcast, or send to `destinations`: a text, or a body by which it is known again."""
        mine = self._next(process)
        fact = self._expect_results("m", process, mine, channel)
        fact.is_opaque = bool(text)
        body = text.encode() or fact.key.encode()
        body += b" " * max(0, body_size - len(body))
        process.tell(Publish(DeliveryId(mine[2]), channel, body, destinations=destinations))

    def ask(
        self,
        process: Sender,
        channel: ChannelName,
        timeout: Seconds,
        destinations: Sequence[NodeId] | None = None,
        *,
        text: str = "",
        wanted: str | None = None,
        include_self: bool = False,
    ) -> None:
        """Ask everyone, or `destinations`; `wanted` is what every node has to reply."""
        mine = self._next(process)
        key = make_key("q", *mine)
        fact = RequestFact(key, process.node_id, process.fact.life, self._world.now, timeout)
        fact.wanted = wanted
        fact.texts = [] if text else None
        self._world.history.requests[key] = self._requests[mine] = fact
        process.tell(
            Ask(
                RequestId(mine[2]),
                channel,
                text.encode() or key.encode(),
                Tag(key),
                timeout,
                destinations=destinations,
                include_self=include_self,
            )
        )

    def answer(self, process: NodeView, asker: NodeId, request: Key, tag: Tag) -> None:
        """Reply to a request."""
        delivery, key = self.begin_reply(process, asker, request)
        process.feed(Answer(delivery, asker, tag, key.encode()))

    def begin_reply(
        self, process: ProcessView, asker: NodeId, request: Key
    ) -> tuple[DeliveryId, Key]:
        """Expect the result of a reply that is about to be given; return its id and its body."""
        mine = self._next(process)
        fact = self._expect_results("r", process, mine, ChannelName(""))
        fact.is_reply = True
        fact.fanouts.append([asker])
        made = ReplyMade(request, process.node_id, process.fact.life)
        self._world.history.replies_made[fact.key] = made
        return DeliveryId(mine[2]), fact.key

    def _next(self, process: ProcessView) -> _Mine:
        life = (process.node_id, process.fact.life)
        return (*life, next(self._numbers[life]))

    def _expect_results(
        self, kind: str, process: ProcessView, mine: _Mine, channel: ChannelName
    ) -> DeliveryFact:
        key = make_key(kind, *mine)
        fact = DeliveryFact(key, process.node_id, process.fact.life, channel, self._world.now)
        self._world.history.deliveries[key] = self._deliveries[mine] = fact
        return fact

    # What the nodes say.

    def fanned_out(self, process: ProcessView, effect: effects.Fanout) -> None:
        fact = self._delivery(process, effect.delivery)
        if fact is not None and not fact.is_reply:  # the one destination of a reply is known
            fact.fanouts.append(list(effect.destinations))

    def settled(self, process: ProcessView, effect: effects.Settle) -> None:
        now = self._world.now
        for delivery, node_id, code in effect.results:
            fact = self._delivery(process, delivery)
            if fact is not None:
                fact.results.append((now, node_id, code))
                self._world.trace.note(f"{now!r} {fact.key} {node_id} {int(code)}")

    def asked(self, process: ProcessView, effect: effects.Asked) -> None:
        fact = self._request(process, effect.request)
        if fact is not None:
            fact.asked.append(list(effect.node_ids))

    def replied(self, process: ProcessView, effect: effects.Replied) -> None:
        fact = self._request(process, effect.request)
        if fact is None:
            return
        key = key_in(effect.body)
        if fact.texts is not None:
            fact.texts.append((effect.node_id, effect.body.decode("utf-8", "replace")))
            key = make_key("u", *self._next(process))
            made = ReplyMade(fact.key, effect.node_id, 0)
            self._world.history.replies_made[key] = made
        fact.replies.append((self._world.now, effect.node_id, key))

    def request_finished(self, process: ProcessView, effect: effects.RequestFinished) -> None:
        fact = self._request(process, effect.request)
        if fact is not None:
            now = self._world.now
            fact.finished.append((now, effect.node_id, effect.outcome, effect.code))
            self._world.trace.note(
                f"{now!r} {fact.key} {effect.node_id} {effect.outcome.value} {int(effect.code)}"
            )

    def request_ended(self, process: ProcessView, effect: effects.RequestEnded) -> None:
        fact = self._request(process, effect.request)
        if fact is not None:
            fact.ended.append(self._world.now)

    def _delivery(self, process: ProcessView, delivery: DeliveryId) -> DeliveryFact | None:
        fact = self._deliveries.get((process.node_id, process.fact.life, delivery))
        if fact is None:
            self._world.core_failed(process.node_id, f"a result for delivery {delivery}: unknown")
        return fact

    def _request(self, process: ProcessView, request: RequestId) -> RequestFact | None:
        fact = self._requests.get((process.node_id, process.fact.life, request))
        if fact is None:
            self._world.core_failed(process.node_id, f"something on request {request}: unknown")
        return fact
