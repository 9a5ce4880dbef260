"""One rule at work: its relays, whether this agent is the one that relays, and what it holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import attrs
import trio

from clusternode.bridge.engine import Arrival, Counters, LinkEngine
from clusternode.bridge.junction import HANDLER_MARGIN
from clusternode.bridge.kamailio import RecordIds
from clusternode.bridge.memory import Memory, TokenBucket
from clusternode.bridge.relay import Host, Relay
from clusternode.bridge.settings import Link, Rule
from clusternode.bridge.standby import DONE_MAX, Held, Notice, parse_notice_untrusted
from clusternode.bus.interface import Bus
from clusternode.core.snapshots import MemberSnapshot
from clusternode.core.types import Seconds
from clusternode.errors import RemoteProtocolError
from clusternode.kafka.consumer import ConsumerSettings
from clusternode.kafka.service import Wanted
from clusternode.routes.contexts import IncomingMessage
from clusternode.routes.table import Handler, RouteTable, make_handler
from clusternode.routes.table import Kind as RouteKind

PATIENCE_MARGIN: Final[Seconds] = 2.0
"""So much longer than a relay may take is a copy held before it is relayed all the same."""
EVENT, MESSAGE, REQUEST = RouteKind.EVENT, RouteKind.MESSAGE, RouteKind.REQUEST


@attrs.frozen
class Copy:
    """A message that another agent is to relay, and how we would."""

    relay: Relay
    arrival: Arrival


class RunningRule:
    """A rule with everything that lives as long as its settings stay the same."""

    def __init__(self, rule: Rule, memory: Memory, host: Host) -> None:
        self.rule = rule
        self.counters = Counters()
        bucket = TokenBucket(rule.limits.rate, rule.limits.burst)
        self.relays = [
            Relay(LinkEngine(rule, link, memory, bucket, self.counters), host, self)
            for link in rule.links
        ]
        self.is_chosen = not rule.is_ranked
        self.shares = False
        """Whether another agent that we see has this rule too."""
        self.held: Held[Copy] = Held()
        self.record_ids = RecordIds()
        self._host = host
        self._done: deque[str] = deque(maxlen=100 * DONE_MAX)

    # --- what it hears --------------------------------------------------------------------------

    def add_to(self, table: RouteTable, mesh: str | None) -> None:
        """Register what it hears but messages, as routes like any others."""
        for relay in self.relays:
            source = relay.source
            if source.kind == "request":
                self._add(table, make_handler(REQUEST, source.name, relay.take_request), relay)
            elif source.kind == "event":
                self._add(table, make_handler(EVENT, source.name, relay.take_event), relay)
        if self.rule.is_ranked and mesh is not None:
            handler = make_handler(MESSAGE, self.rule.channel, self.take_notice, via=mesh)
            handler.name = f"bridge {self.rule.name} notices"
            table.add(handler)

    def _add(self, table: RouteTable, handler: Handler, relay: Relay) -> None:
        handler.name = f"bridge {self.rule.name} {relay.engine.link}"
        handler.via = relay.source.where or None
        handler.time_limit = self.rule.limits.timeout + HANDLER_MARGIN
        table.add(handler)

    def wanted(self) -> Iterator[Wanted]:
        """Yield what is to be read of topics.

        Raises:
            NoSuchConnection: A reload took it away.
        """
        topics = self.rule.topics
        for relay in self.relays:
            if relay.source.kind != "kafka":
                continue
            connection = self._host.connection(relay.source.where)
            settings = ConsumerSettings(
                name=self.rule.name,
                topics=(relay.source.name,),
                group=topics.group
                or connection.settings.group_id
                or f"clusternode-{self.rule.name}",
                retries=topics.retries,
                dead_letter=topics.dead_letter,
            )
            yield Wanted(connection, settings, relay.take_records)

    def succeed(self, before: RunningRule) -> None:
        """Take over what a rule of the same name held before its settings changed."""
        self.held = before.held
        self.record_ids = before.record_ids
        self.is_chosen, self.shares = before.is_chosen, before.shares

    # --- which agent ----------------------------------------------------------------------------

    def rank(self, members: Sequence[MemberSnapshot], cut_off: Mapping[str, Sequence[str]]) -> bool:
        """See whether this agent is the one; return whether that has changed.

        The first of the reachable members that listen on the channel is it, as `Bus.rank` has it,
        which would ask for the members once for each rule; but one that sees nobody on a bus of
        the rule (`cut_off`: agent → buses) comes after those that do.
        """
        if not self.rule.is_ranked:
            return False
        listening = sorted(
            member.node_id
            for member in members
            if self.rule.channel in member.channels and (member.local or member.status == "active")
        )
        own = next((member.node_id for member in members if member.local), None)
        self.shares = len(listening) > 1
        buses = self.rule.buses
        able = [each for each in listening if not buses.intersection(cut_off.get(each, ()))]
        before, self.is_chosen = (
            self.is_chosen,
            own not in listening or own == [*able, *listening][0],
        )
        return before != self.is_chosen

    def hold(self, relay: Relay, arrival: Arrival) -> None:
        """Keep a message that another agent is to relay."""
        size = len(arrival.parcel.body)
        copy = Copy(relay, arrival)
        self.held.hold(trio.current_time(), arrival.fingerprint, copy, size)

    def done(self, fingerprint: str) -> None:
        """Remember to tell the others that a message was dealt with here."""
        if self.shares:
            self._done.append(fingerprint)
            self._host.wake()

    def overdue(self) -> list[Copy]:
        """Take out the copies that are to be relayed here: all of them, once we are chosen."""
        patience = 0.0 if self.is_chosen else self.rule.limits.timeout + PATIENCE_MARGIN
        return self.held.overdue(trio.current_time(), patience)

    def tell(self, mesh: Bus) -> None:
        """Tell the others what was dealt with."""
        if not self.shares:
            self._done.clear()
        while self._done:
            count = min(len(self._done), DONE_MAX)
            done = [self._done.popleft() for _ in range(count)]
            mesh.broadcast(self.rule.channel, Notice(done=done).encode())

    def take_notice(self, message: IncomingMessage) -> None:
        """Take what another agent tells; nonsense is counted and changes nothing."""
        try:
            notice = parse_notice_untrusted(message.body)
        except RemoteProtocolError:
            self.counters.unreadable += 1
            return
        self.held.done(trio.current_time(), notice.done)

    # --- what operators see ---------------------------------------------------------------------

    @property
    def state(self) -> str:
        if not self.rule.is_ranked:
            return "every"
        return "chosen" if self.is_chosen else "standby"

    def status(self) -> dict[str, Any]:
        link: Link = self.rule.links[0]
        errors = [relay.last_error for relay in self.relays if relay.last_error]
        return {
            "name": self.rule.name,
            "source": str(link.source),
            "target": str(link.target),
            "links": [str(each) for each in self.rule.links],
            "state": self.state,
            **attrs.asdict(self.counters),
            "held": len(self.held),
            "dropped": self.held.dropped,
            "last_error": errors[-1] if errors else "",
        }
