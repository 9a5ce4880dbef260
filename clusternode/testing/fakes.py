"""Small stand-ins for what an agent works with: a resolver with a table, a receiver that notes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import trio

from clusternode.bus.interface import Arrivals, Bus
from clusternode.core.events import Event
from clusternode.core.inputs import ResolvedAddress
from clusternode.core.types import Address, NodeId, ResultCode
from clusternode.core.wire.messages import Message, Reply, Request
from clusternode.errors import ResolveError


class FakeResolver:
    """Answers from a table that a test may change; other names do not exist."""

    def __init__(self, table: Mapping[str, Sequence[ResolvedAddress]] | None = None) -> None:
        self.table = dict(table or {})  # address as text → answers
        self.asked: list[Address] = []

    async def resolve(self, name: Address) -> Sequence[ResolvedAddress]:
        await trio.lowlevel.checkpoint()
        self.asked.append(name)
        answers = self.table.get(str(name))
        if not answers:
            raise ResolveError(f"{name.host}: no such name")
        return answers


class NotingReceiver:
    """Notes what arrives and happens; answers everything at once, or when told to."""

    def __init__(self, code: ResultCode | None = ResultCode.OK) -> None:
        self.code = code
        """The result of everything; None: `finish_all` gives it later."""
        self.messages: list[tuple[NodeId, Message]] = []
        self.requests: list[tuple[NodeId, Request]] = []
        self.events: list[Event] = []
        self.answer: Callable[[Request], bytes | None] = lambda request: None
        """Makes the reply to a request; None: nothing to say."""
        self._open: list[tuple[Arrivals, list[int]]] = []

    def arrived(self, arrivals: Arrivals) -> None:
        tickets = []
        for ticket, message in arrivals.items:
            if isinstance(message, Reply):
                continue
            tickets.append(ticket)
            if isinstance(message, Request):
                self.requests.append((arrivals.origin, message))
                body = self.answer(message)
                if body is not None:
                    arrivals.bus.reply(arrivals.origin, message.tag, body)
            else:
                self.messages.append((arrivals.origin, message))
        self._open.append((arrivals, tickets))
        if self.code is not None:
            self.finish_all(self.code)

    def finish_all(self, code: ResultCode) -> None:
        """Give the result of everything that is still open."""
        waiting, self._open = self._open, []
        for arrivals, tickets in waiting:
            arrivals.finish([(ticket, code) for ticket in tickets])

    def observed(self, bus: Bus, event: Event) -> None:
        self.events.append(event)
