"""The replies to one request, as they come (`interface.Replies`)."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Self

import attrs
import trio

from clusternode.bus.interface import NodeOutcome, Reply, ResultCallback
from clusternode.core import effects
from clusternode.core.effects import Outcome
from clusternode.core.types import Instant, NodeId, ResultCode, Tag
from clusternode.core.wire.limits import MIB

logger = logging.getLogger(__name__)

REPLIES_WAITING_MAX: Final = 65_536
"""Replies that wait for their reader; a node may answer as often as it wants, so there is a bound.

More are dropped, counted in `dropped`, and logged once.
"""
REPLIES_WAITING_BYTES: Final = 256 * MIB
"""Their bodies: 16 of the largest that the protocol has, or 256 of the default size."""


@attrs.define
class _Progress:
    """How far one asked node is."""

    replies: int = 0
    finished: tuple[Outcome, ResultCode] | None = None


class MeshReplies:
    """Filled by the bus, read by one task."""

    def __init__(self, tag: Tag, opened_at: Instant, cancel: Callable[[], None]) -> None:
        self.dropped = 0
        self._tag = tag
        self._opened_at = opened_at
        self._cancel = cancel
        self._waiting: deque[Reply] = deque()
        self._waiting_bytes = 0  # in bodies
        self._progress: dict[NodeId, _Progress] = {}
        self._news = trio.Event()
        self._has_ended = False

    @property
    def tag(self) -> Tag:
        return self._tag

    @property
    def asked(self) -> Sequence[NodeId]:
        return list(self._progress)

    @property
    def outcomes(self) -> Mapping[NodeId, NodeOutcome]:
        """Every asked node that has finished; at the end every asked node.

        A node that had not finished when the request was closed early counts as replied if it
        had, else as unanswered.
        """
        result = {}
        for node_id, progress in self._progress.items():
            finished = progress.finished
            if finished is None and self._has_ended:
                finished = (Outcome.UNANSWERED, ResultCode.TIMEOUT)
                if progress.replies:
                    finished = (Outcome.REPLIED, ResultCode.OK)
            if finished is not None:
                result[node_id] = NodeOutcome(*finished, progress.replies)
        return result

    # --- what the bus says ----------------------------------------------------------------------

    def fix_asked(self, node_ids: Sequence[NodeId]) -> None:
        self._progress = {node_id: _Progress() for node_id in node_ids}

    def add(self, effect: effects.Replied, now: Instant) -> None:
        """Take a reply."""
        progress = self._progress.get(effect.node_id)
        if progress is not None:
            progress.replies += 1
        size = len(effect.body)
        is_full = self._waiting_bytes + size > REPLIES_WAITING_BYTES
        if is_full or len(self._waiting) >= REPLIES_WAITING_MAX:
            if not self.dropped:
                logger.warning("request %s: its replies are not read: dropping some", self._tag)
            self.dropped += 1
            return
        self._waiting_bytes += size
        self._waiting.append(
            Reply(
                effect.node_id,
                effect.body,
                effect.content_type,
                effect.code,
                now - self._opened_at,
                effect.reason,
            )
        )
        self._news.set()

    def finish(self, node_id: NodeId, outcome: Outcome, code: ResultCode) -> None:
        """Take note that an asked node has finished."""
        progress = self._progress.get(node_id)
        if progress is not None:
            progress.finished = (outcome, code)

    def end(self) -> None:
        """Take note that nothing follows."""
        self._has_ended = True
        self._news.set()

    # --- what the asker does --------------------------------------------------------------------

    def close(self) -> None:
        """Stop waiting: later replies raise events only."""
        if not self._has_ended:
            self._cancel()
            self.end()

    def __aiter__(self) -> MeshReplies:
        return self

    async def __anext__(self) -> Reply:
        if self._waiting:
            # A reply that is there already costs no turn of the loop; the wait below is one.
            await trio.lowlevel.checkpoint_if_cancelled()
            return self._take()
        while not self._waiting:
            if self._has_ended:
                await trio.lowlevel.checkpoint_if_cancelled()
                raise StopAsyncIteration
            self._news = trio.Event()
            try:
                await self._news.wait()
            except trio.Cancelled:
                self.close()
                raise
        return self._take()

    def _take(self) -> Reply:
        reply = self._waiting.popleft()
        self._waiting_bytes -= len(reply.body)
        return reply

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    async def gather(self) -> list[Reply]:
        """Wait for the end and return all replies in the order of their arrival."""
        return [reply async for reply in self]

    async def first(self) -> Reply | None:
        """Return the first reply and close the request; None when nobody replied."""
        try:
            async for reply in self:
                return reply
            return None
        finally:
            self.close()


def call_back(on_result: ResultCallback, node_id: NodeId, code: ResultCode) -> None:
    """Call what the user gave; what it raises must reach neither the node nor other messages."""
    try:
        on_result(node_id, code)
    except (Exception, SystemExit):  # user code
        logger.exception("on_result raised for node %s", node_id)
