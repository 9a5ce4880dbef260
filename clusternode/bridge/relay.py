"""Carries what a link relays: from handlers of routes, or records, to a bus, a topic or an event.

The decisions are those of `clusternode.bridge.engine`; here is what takes time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import attrs
import trio

from clusternode.bridge.bodies import JSON_CONTENT_TYPE, Parcel
from clusternode.bridge.changes import CellChange, Change
from clusternode.bridge.engine import Arrival, LinkEngine, Outgoing, Refusal
from clusternode.bridge.kamailio import RecordIds
from clusternode.bridge.known import KnownCells
from clusternode.bridge.marks import (
    identity_of,
    split_untrusted,
)
from clusternode.bridge.records import arrival_of, headers_of
from clusternode.bridge.settings import Rule
from clusternode.bridge.verdicts import CODES, TAKEN, combine, verdict, verdict_of_request
from clusternode.bridge.worlds import World, world_of
from clusternode.bus.interface import Bus, Reply
from clusternode.core.types import ResultCode, Seconds
from clusternode.errors import BodyTooLarge, ClusternodeError, NoSuchNode, RemoteProtocolError
from clusternode.kafka.connections import Connection
from clusternode.kafka.consumer import Handled
from clusternode.kafka.ends import TYPED, End
from clusternode.kafka.records import Record, Report
from clusternode.routes.contexts import IncomingEvent, IncomingMessage, IncomingRequest
from clusternode.routes.events import EventHub
from clusternode.routes.table import Refuse

REPLY_MARGIN: Final[Seconds] = 0.2
"""So much before its asker gives up a relayed request ends, for its result to travel back."""
DELAY_MIN: Final[Seconds] = 0.001
"""So much a record waits at least for the limit of its rule, that a rounded delay is no spin."""
UNSAYABLE: Final = (ResultCode.BAD_REQUEST, ResultCode.TOO_LARGE)
"""What no attempt will bring over: it is left behind."""

FAILING: Final = "E_BRIDGE_FAILING"
"""The far side of a link has not taken something that it was given."""
RECOVERED: Final = "E_BRIDGE_RECOVERED"
"""It takes again what it is given."""


class Host(Protocol):
    """What a relay needs of the agent."""

    @property
    def buses(self) -> Mapping[str, Bus]: ...
    @property
    def events(self) -> EventHub: ...
    def connection(self, name: str) -> Connection: ...
    def wake(self) -> None:
        """Say that there is something to tell the other agents."""
        ...

    def incarnation_of(self, bus: Bus, node_id: str) -> object:
        """Return what tells two lives of a node apart."""
        ...

    def is_of_an_agent(self, bus: Bus, node_id: str) -> bool:
        """Tell whether a node of a foreign bus is another bridging agent's."""
        ...


class Owner(Protocol):
    """The rule at work that a relay belongs to."""

    is_chosen: bool
    """Whether this agent is the one that relays."""
    record_ids: RecordIds
    """Of the contacts that the rule has brought from Kamailio."""

    def hold(self, relay: Relay, arrival: Arrival) -> None:
        """Keep a message that another agent is to relay."""
        ...

    def done(self, fingerprint: str) -> None:
        """Take note that a message was dealt with here."""
        ...


class Relay:
    """One link at work."""

    def __init__(self, engine: LinkEngine, host: Host, owner: Owner) -> None:
        self.engine = engine
        self.last_error = ""
        self._host = host
        self._owner = owner
        self._cells = KnownCells()
        self._is_failing = False

    @property
    def rule(self) -> Rule:
        return self.engine.rule

    @property
    def source(self) -> End:
        return self.engine.link.source

    @property
    def target(self) -> End:
        return self.engine.link.target

    # --- what comes by routes -------------------------------------------------------------------

    async def take_message(self, message: IncomingMessage) -> ResultCode:
        """Relay a message, and return what its sender is to be told: 200 when the far side has it.

        404: the rule does not want it, or it has been there.
        """
        codes: list[ResultCode] = []
        try:
            codes += [await self._relay(arrival) for arrival in self._arrivals(message)]
        except RemoteProtocolError as error:
            self._failed(error)
            self.engine.counters.unreadable += 1
            codes.append(ResultCode.BAD_REQUEST)
        return combine(codes)

    def _arrivals(self, message: IncomingMessage) -> Iterator[Arrival]:
        """Make one arrival of a message, or one for each change that it tells.

        Raises:
            RemoteProtocolError: The body is none of a typed source.
        """
        bus = message.bus
        content_type, mark = split_untrusted(message.content_type)
        fields = self._fields(bus, message.origin, message.channel)
        fields["message_id"] = str(message.message_id)
        world = world_of(bus.name)
        incarnation = self._host.incarnation_of(bus, message.source)
        identity = identity_of(bus.name, message.source, incarnation, message.message_id)
        # Only in our own clusters do all agents know a message by the same number.
        told = identity_of(bus.name, message.origin, message.channel, message.body)
        arrival = Arrival(
            parcel=Parcel(message.body, content_type, fields),
            identity=identity,
            mark=mark,
            fingerprint=identity if world.reaches_self else told,
            max_forwards=message.max_forwards,
            is_of_an_agent=mark is None and self._host.is_of_an_agent(bus, message.origin),
        )
        if self.source.kind not in TYPED:
            yield arrival
            return
        if self.source.kind == "contacts" and world.carries_marks:  # of Kamailio
            self._owner.record_ids.learn_untrusted(message.body)
        changes = world.read_untrusted(self.source.kind, self.source.name, message.body)
        if self.target.kind == "table" and not world_of(self.target.where).says_patterns:
            cells = [change for change in changes if isinstance(change, CellChange)]
            changes = []
            for cell in cells:
                spelled = self._cells.spell_out(cell)
                self.engine.counters.unreadable += not spelled and cell.action == "expire"
                changes += spelled
        for number, change in enumerate(changes):
            yield _typed(arrival, change, number)

    def _fields(self, bus: Bus, origin: str, channel: str) -> dict[str, str]:
        return {"cluster": bus.name, "node": bus.node_id, "origin": origin, "channel": channel}

    async def take_request(self, request: IncomingRequest) -> None:
        """Ask the far side, and give its replies back.

        Raises:
            Refuse: Nobody there has answered; with the code of the far side.
        """
        bus = request.bus
        content_type, mark = split_untrusted(request.content_type)
        incarnation = self._host.incarnation_of(bus, request.origin)
        arrival = Arrival(
            parcel=Parcel(
                request.body, content_type, self._fields(bus, request.origin, request.channel)
            ),
            identity=identity_of(bus.name, request.origin, incarnation, request.tag),
            mark=mark,
            is_of_an_agent=mark is None and self._host.is_of_an_agent(bus, request.origin),
        )
        if not self._owner.is_chosen:
            self.engine.stand_by(trio.current_time(), arrival)
            return
        decided = self.engine.take(trio.current_time(), arrival)
        if isinstance(decided, Refusal):
            if CODES[decided] in (ResultCode.OK, ResultCode.NOT_FOUND):
                return  # nothing to say
            raise Refuse(CODES[decided], f"bridge {self.rule.name}: {decided.value}")
        code = ResultCode.TIMEOUT
        try:
            code = await self._ask(request, decided)
        except ClusternodeError as error:
            self._failed(error)
            code = ResultCode.UNAVAILABLE
        finally:
            self._ended(decided, is_taken=code in TAKEN or code is ResultCode.NOT_FOUND)
        if code not in TAKEN:
            raise Refuse(code, f"bridge {self.rule.name}: {int(code)} from the far side")

    async def _ask(self, request: IncomingRequest, outgoing: Outgoing) -> ResultCode:
        """Return 200 when somebody has replied, or nobody had anything to say."""
        bus, world = self._target_bus()
        left = request.deadline - trio.current_time() - REPLY_MARGIN
        timeout = max(min(self.rule.limits.timeout, left), REPLY_MARGIN / 2)
        refused: Reply | None = None
        replied = False
        async with bus.broadcast_request(
            self.target.name,
            outgoing.body,
            timeout=timeout,
            include_self=world.reaches_self,
            content_type=_marked(outgoing, world),
        ) as replies:
            async for reply in replies:
                if 200 <= reply.code < 300:
                    replied = True
                    await self._give_back(request, reply)
                else:
                    refused = refused or reply
            outcomes = replies.outcomes
        if replied:
            return ResultCode.OK
        if refused is not None and world_of(request.bus.name).carries_codes:
            await self._give_back(request, refused)
            return ResultCode.OK
        return verdict_of_request(outcomes)

    async def _give_back(self, request: IncomingRequest, reply: Reply) -> None:
        """Hand a reply on; where it is only a reason, as of a Kamailio, that is its body."""
        content_type, _ = split_untrusted(reply.content_type)
        body = reply.body or reply.reason.encode()
        await request.reply(body, code=reply.code, content_type=content_type)

    async def take_event(self, event: IncomingEvent) -> None:
        """Relay an event.

        Raises:
            ClusternodeError: The far side has not got it; it is counted and logged.
        """
        bus = event.bus
        fields = {"cluster": bus.name, "node": bus.node_id, "origin": bus.node_id}
        fields["event"] = event.name
        arrival = Arrival(
            parcel=Parcel(b"", JSON_CONTENT_TYPE, fields, event.parameters),
            identity=identity_of(bus.name, bus.node_id, trio.current_time(), id(event)),
            event=event.name,
        )
        if not self._owner.is_chosen:
            self.engine.stand_by(trio.current_time(), arrival)
            return
        if self.target.kind == "kafka":
            self._send_soon(arrival)  # events do not wait for one another
            return
        code = await self.relay_now(arrival)
        if code not in TAKEN and code is not ResultCode.NOT_FOUND:
            raise Refuse(code)

    def _send_soon(self, arrival: Arrival) -> None:
        decided = self.engine.take(trio.current_time(), arrival)
        if isinstance(decided, Refusal):
            return

        def report(report: Report) -> None:
            if report.error is not None:
                self._failed(report.error)
            self._ended(decided, is_taken=report.error is None)

        try:
            self._host.connection(self.target.where).send(
                self.target.name,
                decided.body,
                key=decided.key or None,
                headers=headers_of(decided, arrival, self.source),
                report=report,
            )
        except ClusternodeError as error:
            self._failed(error)
            self._ended(decided, is_taken=False)
            raise

    # --- what comes from a topic ----------------------------------------------------------------

    async def take_records(self, records: Sequence[Record], goes_on: Callable[[], bool]) -> Handled:
        """Relay records in order, until one fails."""
        count = 0
        for record in records:
            if count and not goes_on():
                break
            arrival = arrival_of(record, self.source.where)
            if arrival is None:
                self.engine.counters.looped += 1
                count += 1
                continue
            delay = self.engine.delay(trio.current_time())
            while delay > 0:
                await trio.sleep(max(delay, DELAY_MIN))
                delay = self.engine.delay(trio.current_time())  # others may have taken the token
            code = await self.relay_now(arrival)
            if code not in (*TAKEN, ResultCode.NOT_FOUND, *UNSAYABLE):
                return Handled(count, f"{int(code)} {code.name}: {self.last_error}")
            count += 1
        return Handled(count)

    # --- to the other end -----------------------------------------------------------------------

    async def _relay(self, arrival: Arrival) -> ResultCode:
        """Relay a message, or leave it to the chosen agent; return what its sender is told."""
        if not self._owner.is_chosen:
            if self.engine.stand_by(trio.current_time(), arrival) is None:
                return ResultCode.NOT_FOUND
            self._owner.hold(self, arrival)
            return ResultCode.QUEUED
        return await self.relay_here(arrival)

    async def relay_here(self, arrival: Arrival) -> ResultCode:
        """Relay a message that the others hold, and let them know when that has ended."""
        code = await self.relay_now(arrival)
        self._owner.done(arrival.fingerprint)
        return code

    async def relay_now(self, arrival: Arrival) -> ResultCode:
        """Relay something, whoever was chosen; return what its sender is to be told."""
        decided = self.engine.take(trio.current_time(), arrival)
        if isinstance(decided, Refusal):
            if CODES[decided] in (ResultCode.BUSY, ResultCode.BAD_REQUEST):
                self.last_error = decided.value
            return CODES[decided]
        code = ResultCode.TIMEOUT
        try:
            with trio.move_on_after(self.rule.limits.timeout):
                code = await self._put(decided, arrival)
        except (RemoteProtocolError, BodyTooLarge) as error:
            self._failed(error)
            is_large = isinstance(error, BodyTooLarge)
            code = ResultCode.TOO_LARGE if is_large else ResultCode.BAD_REQUEST
        except ClusternodeError as error:
            self._failed(error)
            code = ResultCode.UNAVAILABLE if getattr(error, "definite", True) else code
        finally:
            if code in UNSAYABLE:
                self.engine.cannot_say(decided)
            else:
                self._ended(decided, is_taken=code in TAKEN)
        return code

    async def _put(self, outgoing: Outgoing, arrival: Arrival) -> ResultCode:
        """Give something to the target, and wait until it has it.

        Raises:
            ClusternodeError: It was refused at once, or by Kafka.
        """
        target = self.target
        if target.kind == "kafka":
            await self._host.connection(target.where).publish(
                target.name,
                outgoing.body,
                key=outgoing.key or None,
                headers=headers_of(outgoing, arrival, self.source),
            )
            return ResultCode.OK
        if target.kind == "event":
            self._host.events.raise_event(target.name, outgoing.parameters)
            return ResultCode.OK
        bus, world = self._target_bus()
        if outgoing.change is not None:
            deliveries = world.write(
                bus,
                outgoing.change,
                outgoing.mark,
                self._owner.record_ids.of(outgoing.change),
            )
            results = [await delivery for delivery in deliveries]
            code = next((one for one in map(verdict, results) if one not in TAKEN), ResultCode.OK)
        else:
            code = verdict(await self._publish(bus, world, outgoing))
            if code is ResultCode.QUEUED and not world.carries_codes:
                code = ResultCode.OK  # more it never says
        if code not in TAKEN:
            self._failed(f"{int(code)} from {bus.name}")
        return code

    async def _publish(
        self, bus: Bus, world: World, outgoing: Outgoing
    ) -> Mapping[str, ResultCode]:
        options: dict[str, Any] = {
            "content_type": _marked(outgoing, world),
            "max_forwards": outgoing.max_forwards,
        }
        name, body = self.target.name, outgoing.body
        deliveries = [bus.broadcast(name, body, **options)]
        if world.reaches_self:  # a broadcast leaves us out
            deliveries.append(bus.send(name, bus.node_id, body, **options))
        return {node: code for each in deliveries for node, code in (await each).items()}

    def _target_bus(self) -> tuple[Bus, World]:
        """Return the bus of the target and what it is.

        Raises:
            NoSuchNode: This agent has none of that name.
        """
        bus = self._host.buses.get(self.target.where)
        if bus is None:
            raise NoSuchNode(f"this agent is in no cluster {self.target.where!r}")
        return bus, world_of(bus.name)

    def _ended(self, outgoing: Outgoing, *, is_taken: bool) -> None:
        """Take note of an end; tell when the far side stops taking, and when it does again."""
        self.engine.ended(trio.current_time(), outgoing, is_taken=is_taken)
        if self._is_failing is not is_taken:
            return
        self._is_failing = not is_taken
        parameters = {"bridge": self.rule.name, "link": str(self.engine.link)}
        if is_taken:
            self._host.events.raise_event(RECOVERED, parameters)
        else:
            self._host.events.raise_event(FAILING, {**parameters, "reason": self.last_error})

    def _failed(self, error: object) -> None:
        self.last_error = str(error)


def _typed(arrival: Arrival, change: Change, number: int) -> Arrival:
    """Return the arrival of one change of a body that may tell several."""
    fields = dict(arrival.parcel.fields)
    if isinstance(change, CellChange):
        fields |= {"table": change.table, "key": change.key}
        fields["value"] = "" if change.value is None else str(change.value)
    else:
        fields["aor"] = change.aor
    mark = arrival.mark
    if mark is not None:  # each change is one of its own
        mark = attrs.evolve(mark, identity=identity_of(mark.identity, number))
    return attrs.evolve(
        arrival,
        parcel=attrs.evolve(arrival.parcel, fields=fields),
        identity=identity_of(arrival.identity, number),
        mark=mark,
        fingerprint=identity_of(arrival.fingerprint, number),
        max_forwards=None,  # the modules of Kamailio and OpenSIPS have no use for it
        change=change,
    )


def _marked(outgoing: Outgoing, world: World) -> str:
    marked = outgoing.mark.on(outgoing.content_type) if world.carries_marks else None
    return marked or outgoing.content_type
