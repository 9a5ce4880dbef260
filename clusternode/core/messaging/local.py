"""The path of messages from a node to itself: the same handlers, results, order and time limits.

Specified in docs/scripting.md ("Results").
"""

from __future__ import annotations

from collections.abc import Callable

from clusternode.core.context import Context
from clusternode.core.effects import Handle
from clusternode.core.messaging.sending import Outgoing
from clusternode.core.types import Incarnation, Instant, RequestId, ResultCode
from clusternode.core.wire.messages import Message, Reply, Request

Conclude = Callable[[Outgoing, ResultCode], None]


class LocalLoop:
    """What this node has sent to itself and has not handled yet."""

    def __init__(self, context: Context, conclude: Conclude) -> None:
        self._context = context
        self._conclude = conclude
        self._timer = ("expire", context.settings.node_id)
        self._given = 0
        self._pending: dict[int, Outgoing] = {}  # position → message; deadlines ascend
        self._asking: dict[int, Outgoing] = {}  # position → request
        self._handling = 0
        self.arrived: list[tuple[int, Message | Request | Reply]] = []  # in this step

    @property
    def is_idle(self) -> bool:
        return self._handling <= 0

    def put(self, outgoing: Outgoing) -> None:
        message = outgoing.frame.message
        assert isinstance(message, Message | Request)
        self._given += 1
        self._handling += 1
        self.arrived.append((self._given, message))
        if outgoing.request is not None:
            self._asking[self._given] = outgoing
            return
        self._pending[self._given] = outgoing
        if self._context.timers.deadline_of(self._timer) is None:
            self._context.timers.set(self._timer, outgoing.deadline)

    def put_reply(self, reply: Reply) -> None:
        """Show a reply of our own to ourselves to the observers; its result has been given."""
        self.arrived.append((0, reply))

    def handled(self, position: int, code: ResultCode) -> None:
        self._handling -= 1
        outgoing = self._pending.pop(position, None) or self._asking.pop(position, None)
        if outgoing is not None:
            self._conclude(outgoing, code)

    def forget_request(self, request: RequestId) -> None:
        """Wait no longer for the result of a request that has ended."""
        for position in [one for one, out in self._asking.items() if out.request == request]:
            del self._asking[position]

    def expire(self, now: Instant) -> None:
        """End the messages whose handlers take too long; requests end by their own timer."""
        while self._pending:
            position, outgoing = next(iter(self._pending.items()))
            if outgoing.deadline > now:
                self._context.timers.set(self._timer, outgoing.deadline)
                return
            del self._pending[position]
            self._conclude(outgoing, ResultCode.TIMEOUT)

    def drain(self) -> None:
        """End everything: handlers may still be at it."""
        for outgoing in [*self._pending.values(), *self._asking.values()]:
            self._conclude(outgoing, ResultCode.TIMEOUT)
        self._pending.clear()
        self._asking.clear()

    def flush(self, incarnation: Incarnation) -> None:
        """Hand what was sent in this step to the routes."""
        node_id = self._context.settings.node_id
        self._context.effects.append(Handle(node_id, incarnation, self.arrived))
        self.arrived = []
