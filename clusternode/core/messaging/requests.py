"""Open requests: who was asked, who answered, who is finished, and when it is over.

Specified in docs/scripting.md ("Requests and replies"). The asked set is fixed at the call.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from clusternode.core.context import Context
from clusternode.core.effects import (
    Asked,
    Outcome,
    Replied,
    RequestEnded,
    RequestFinished,
)
from clusternode.core.inputs import Ask
from clusternode.core.types import ChannelName, Instant, NodeId, RequestId, ResultCode, Tag
from clusternode.core.wire.messages import Reply


@attrs.define(eq=False)
class OpenRequest:
    """One request of ours that has not ended."""

    request: RequestId
    tag: Tag
    channel: ChannelName
    deadline: Instant
    waiting: dict[NodeId, int]  # node that has not finished → replies so far


class Requests:
    """All open requests of one node, by id and by tag."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._open: dict[RequestId, OpenRequest] = {}
        self._by_tag: dict[Tag, OpenRequest] = {}

    def __len__(self) -> int:
        return len(self._open)

    def open(self, ask: Ask, asked: Sequence[NodeId], now: Instant) -> bool:
        """Open a request before anything is sent; tells whether there was room for it."""
        self._context.effects.append(Asked(ask.request, list(asked)))
        limit = self._context.settings.messaging.open_requests_max
        refusal = None
        if len(self._open) >= limit:
            self._context.count("requests_refused")
            refusal = ResultCode.BUSY
        elif ask.tag in self._by_tag:
            refusal = ResultCode.BAD_REQUEST
        opened = OpenRequest(
            ask.request, ask.tag, ask.channel, now + ask.timeout, dict.fromkeys(asked, 0)
        )
        if refusal is not None:
            for node_id in asked:
                self._finished(ask.request, node_id, Outcome.FAILED, refusal)
            self._context.effects.append(RequestEnded(ask.request))
            return False
        self._open[ask.request] = self._by_tag[ask.tag] = opened
        self._context.timers.set(("request", ask.request), opened.deadline)
        return True

    def channel_of(self, tag: Tag) -> ChannelName | None:
        opened = self._by_tag.get(tag)
        return None if opened is None else opened.channel

    def replied_untrusted(self, node_id: NodeId, reply: Reply) -> ResultCode:
        """Take a reply; the result says whether anyone waits for it."""
        opened = self._by_tag.get(reply.tag)
        if opened is None or node_id not in opened.waiting:
            self._context.count("replies_unexpected")
            return ResultCode.NOT_FOUND
        opened.waiting[node_id] += 1
        self._context.effects.append(
            Replied(opened.request, node_id, reply.tag, reply.body, reply.content_type, reply.code)
        )
        return ResultCode.OK

    def finish(self, request: RequestId, node_id: NodeId, code: ResultCode) -> None:
        """One asked node is done: its handlers have ended, or it never will be."""
        opened = self._open.get(request)
        if opened is None or node_id not in opened.waiting:
            return
        replies = opened.waiting.pop(node_id)
        if code is ResultCode.OK:
            outcome = Outcome.REPLIED if replies else Outcome.NOTHING
        else:
            outcome = Outcome.FAILED
        self._finished(request, node_id, outcome, code)
        if not opened.waiting:
            self._close(opened)

    def gone(self, node_id: NodeId) -> None:
        """A member is disabled, removed or has left: nothing more will come from it."""
        for opened in list(self._open.values()):
            self.finish(opened.request, node_id, ResultCode.TIMEOUT)

    def close_if_empty(self, request: RequestId) -> None:
        """End a request for which nobody was asked."""
        opened = self._open.get(request)
        if opened is not None and not opened.waiting:
            self._close(opened)

    def timed_out(self, request: RequestId) -> list[NodeId]:
        """End a request whose time is over, and return those who did not finish."""
        opened = self._open.get(request)
        if opened is None:
            return []
        unanswered = list(opened.waiting)
        for node_id in unanswered:
            self._finished(request, node_id, Outcome.UNANSWERED, ResultCode.TIMEOUT)
        self._close(opened)
        return unanswered

    def cancel(self, request: RequestId) -> list[NodeId]:
        """Forget a request that nobody waits for any more; return those who did not finish."""
        opened = self._open.get(request)
        if opened is None:
            return []
        self._forget(opened)
        return list(opened.waiting)

    def _finished(
        self, request: RequestId, node_id: NodeId, outcome: Outcome, code: ResultCode
    ) -> None:
        self._context.effects.append(RequestFinished(request, node_id, outcome, code))

    def _close(self, opened: OpenRequest) -> None:
        self._forget(opened)
        self._context.effects.append(RequestEnded(opened.request))

    def _forget(self, opened: OpenRequest) -> None:
        del self._open[opened.request]
        del self._by_tag[opened.tag]
        self._context.timers.cancel(("request", opened.request))
