"""One node of one cluster: `step(now, input) -> effects`. Composition only.

Membership and messaging do not know each other; here each gets its part of an input. How a
message travels through these parts is told in docs/architecture.md.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from clusternode.core.context import Context
from clusternode.core.echoes import Echoes
from clusternode.core.effects import Effect, Write
from clusternode.core.events import LoopLagged, StateNotWritten
from clusternode.core.inputs import (
    AddMember,
    Answer,
    Ask,
    CancelRequest,
    ChangeStatus,
    ChannelsChanged,
    Connected,
    DialFailed,
    Disconnected,
    FramesReceived,
    Handled,
    Input,
    Lagged,
    Leave,
    Measured,
    Persisted,
    PersistFailed,
    Publish,
    RecordSettingsChanged,
    RemoveMember,
    Resolved,
    Start,
    TimePassed,
    WriteReady,
)
from clusternode.core.leaving import Leaving
from clusternode.core.membership.health import Health
from clusternode.core.membership.links import Link, Links, Phase
from clusternode.core.membership.membership import Membership
from clusternode.core.messaging.messaging import Messaging
from clusternode.core.overview import glance, overview
from clusternode.core.settings import NodeSettings
from clusternode.core.snapshots import NodeGlance, NodeSnapshot
from clusternode.core.tunnels import Tunnels
from clusternode.core.types import ConnectionId, Incarnation, Instant, NodeId
from clusternode.core.wire.messages import (
    POSITIONED_TYPE_MIN,
    Ack,
    Close,
    Frame,
    Hello,
    List,
    Message,
    NoRoute,
    Ping,
    Pong,
    Proof,
    Record,
    Records,
    Reply,
    Request,
    Results,
    Resume,
    Routed,
    Segment,
    Unknown,
    Want,
    WireMessage,
)
from clusternode.core.wire.session import PROTOCOL_MAX, PROTOCOL_MIN

STALLING_WRITE_BYTES = 32 * 1024
"""A write from this size on may wait for a slow peer, so its end is of interest; half of what a
kernel buffers at least."""
PATIENCE_SHARE = 0.125
"""The part of `ping_timeout` that a ping waits for a write of more than one frame."""

_OPEN = Phase.OPEN
_POSITIONED = frozenset({Message, Request, Reply, Results})


class Node:
    """The sans-IO node. Never raises for what a peer did; deterministic given its arguments."""

    def __init__(self, settings: NodeSettings, now: Instant, rng: random.Random) -> None:
        self.settings = settings
        self._context = Context(settings, rng)
        self._links = Links(self._context)
        self._messaging = Messaging(self._context, self._wake, settings.incarnation)
        record = Record(
            settings.node_id,
            settings.incarnation,
            1,
            str(settings.address),
            tuple(sorted(settings.tags.items())),
            tuple(sorted(settings.channels)),
            priority=settings.priority,
        )
        self._membership = Membership(self._context, self._links, self._messaging, record, now)
        self._tunnels = Tunnels(self._context, self._links, self._membership, self)
        self._leaving = Leaving(self._context, self._membership, self._messaging)
        self.pings = Echoes(self._links, self._membership, self._leaving, self._pongs_received)
        self._inputs = self._input_handlers()
        self._messages = self._message_handlers()
        self._when_open = self._handlers_when_open()
        self._timers = self._timer_handlers()

    def step(self, now: Instant, input_: Input) -> list[Effect]:
        """Take one input and return what the surroundings should do, in order."""
        self._inputs[input_.__class__](input_, now)
        return self._finish(now)

    def _finish(self, now: Instant) -> list[Effect]:
        """End a step: return what it leads to."""
        if self._tunnels.dirty:
            self._tunnels.flush(now)
        deliveries = self._messaging.deliveries
        if deliveries.settled or deliveries.local.arrived:
            self._messaging.flush()
        if self._leaving.is_under_way:
            self._leaving.finish_if_done(now)
        context = self._context
        effects, context.effects = context.effects, []
        return effects

    def next_deadline(self) -> Instant | None:
        """Tell when the next `TimePassed` is due; None when nothing waits for time."""
        return self._context.timers.next_deadline()

    @property
    def incarnation(self) -> Incarnation:
        """The number of this life; it rises when others know a larger one."""
        return self._membership.members.own.incarnation

    def hello(self, agent: str = "") -> Hello:
        """Return what this node says first on every connection it has from now on."""
        settings = self.settings
        return Hello(
            cluster=settings.cluster,
            node_id=settings.node_id,
            incarnation=self.incarnation,
            nonce=settings.nonce,
            protocol_min=PROTOCOL_MIN,
            protocol_max=PROTOCOL_MAX,
            address=str(settings.address),
            body_size_max=settings.messaging.body_size_max,
            window_bytes=settings.messaging.window_bytes,
            agent=agent,
        )

    # --- inputs ---------------------------------------------------------------------------------

    def _input_handlers(self) -> dict[type[Input], Callable[[Any, Instant], None]]:
        membership, messaging = self._membership, self._messaging
        return {
            FramesReceived: self._frames_received,
            WriteReady: self._write_ready,
            Measured: self._measured,
            Publish: self._publish,
            Handled: lambda handled, now: messaging.handled(handled, now),
            TimePassed: self._time_passed,
            Ask: self._ask,
            Answer: self._answer,
            CancelRequest: lambda cancel, now: messaging.cancel(cancel),
            Start: lambda start, now: membership.start(tuple(start.known_members), now),
            Connected: membership.opening.connected,
            DialFailed: membership.dial_failed,
            Disconnected: self._disconnected,
            Resolved: lambda one, now: membership.discovery.notification.resolved(
                one.name, one.addresses, one.error, now
            ),
            ChannelsChanged: self._channels_changed,
            RecordSettingsChanged: self._record_settings_changed,
            AddMember: self._add_member,
            RemoveMember: lambda remove, now: membership.remove(remove.node_id, now),
            ChangeStatus: self._change_status,
            Lagged: self._lagged,
            Leave: lambda leave, now: self._leaving.begin(now),
            Persisted: lambda persisted, now: None,
            PersistFailed: self._persist_failed,
        }

    def _publish(self, publish: Publish, now: Instant) -> None:
        self._messaging.publish(publish, self._destinations(publish), now)

    def _destinations(self, call: Publish | Ask) -> list[tuple[NodeId, bool]]:
        """Return (node id, is it active) of everyone a message is for."""
        active = Health.ACTIVE
        rows = self._membership.members.rows
        if call.destinations is not None:
            return [
                (node_id, node_id in rows and rows[node_id].health is active)
                for node_id in dict.fromkeys(call.destinations)
            ]
        everyone = [
            (node_id, row.health is active)
            for node_id, row in rows.items()
            if row.health is active or row.health not in (Health.LEFT, Health.REMOVED)
        ]
        if isinstance(call, Publish):
            if call.excluded:
                return [one for one in everyone if one[0] not in call.excluded]
        elif call.include_self:
            everyone.append((self.settings.node_id, False))
        return everyone

    def _ask(self, ask: Ask, now: Instant) -> None:
        self._messaging.ask(ask, self._destinations(ask), now)

    def _answer(self, answer: Answer, now: Instant) -> None:
        is_active = self._membership.members.is_active(answer.node_id)
        self._messaging.answer(answer, is_active=is_active, now=now)

    def _channels_changed(self, changed: ChannelsChanged, now: Instant) -> None:
        members = self._membership.members
        if tuple(sorted(changed.channels)) != members.own.channels:
            self._membership.exchange.publish(members.change_own(channels=changed.channels))

    def _record_settings_changed(self, changed: RecordSettingsChanged, now: Instant) -> None:
        members = self._membership.members
        if (changed.tags, changed.priority) != (members.own.tags, members.own.priority):
            record = members.change_own(tags=changed.tags, priority=changed.priority)
            self._membership.exchange.publish(record)

    def _add_member(self, add: AddMember, now: Instant) -> None:
        self._membership.discovery.add(add.address, now)

    def _change_status(self, change: ChangeStatus, now: Instant) -> None:
        """Set a status because an operator said so; the next ping may change it again."""
        members = self._membership.members
        row = members.rows.get(change.node_id)
        if row is None or row.health in (Health.LEFT, Health.REMOVED):
            return
        row.is_confirmed = True
        members.set_health(row, Health(change.status), "an operator said so", now)
        if row.health is Health.DISABLED:
            self._messaging.disabled(change.node_id)

    def _lagged(self, lagged: Lagged, now: Instant) -> None:
        self._membership.keepalive.lagged(now)
        self._membership.rerouting.lagged()
        self._context.count("lags")
        self._context.emit(LoopLagged(self.settings.cluster, lagged.seconds))

    def _persist_failed(self, failed: PersistFailed, now: Instant) -> None:
        self._context.count("state_writes_failed")
        self._context.emit(StateNotWritten(self.settings.cluster, failed.detail))

    # --- connections ----------------------------------------------------------------------------

    def _disconnected(self, disconnected: Disconnected, now: Instant) -> None:
        link = self._links.get(disconnected.connection)
        if link is None:
            return
        self._membership.disconnected(
            link, disconnected.detail, now, misbehaved=disconnected.misbehaved
        )

    def _wake(self, node_id: NodeId) -> None:
        link = self._links.open_to(node_id)
        if link is None:
            return
        if not link.is_announced and not link.is_writing:
            if link.control or self._messaging.has_output(node_id):
                self._links.announce(link)

    def _write_ready(self, ready: WriteReady, now: Instant) -> None:
        self._context.effects.append(self.output(ready.connection, ready.bytes_max, now))

    def output(self, connection: ConnectionId, bytes_max: int, now: Instant) -> Write:
        """Return what is to be written on a connection: all that `step` does for `WriteReady`.

        For whoever has thousands of idle connections to serve; not while the node is leaving.
        """
        link = self._links.by_connection.get(connection)
        if link is None:
            return Write(connection, [], more=False)
        if link.is_writing:
            link.pace(now, self.settings.health.ping_timeout * PATIENCE_SHARE)
        frames, taken, has_more = self._take(link, min(bytes_max, link.bytes_max))
        link.granted_at = now
        link.is_announced = False
        link.is_writing = bool(frames) and (has_more or taken >= STALLING_WRITE_BYTES)
        return Write(connection, frames, link.is_writing)

    def _take(self, link: Link, bytes_max: int) -> tuple[list[Frame], int, bool]:
        """Return the frames for one write, their size, and whether more wait."""
        frames, taken = self._links.take(link, bytes_max)
        if link.relayed and taken < bytes_max:
            relayed, size = self._links.take_relayed(link, (bytes_max - taken + 1) // 2)
            taken += size
            frames = [*frames, *relayed]
        has_more = bool(link.control or link.relayed)
        if link.phase is _OPEN and not self._messaging.is_quiet(link.node_id):
            if taken < bytes_max:
                data = self._messaging.take(link.node_id, bytes_max - taken)
                taken += sum([frame.size_bytes for frame in data])
                frames = [*frames, *data] if frames else data
            has_more = has_more or self._messaging.has_output(link.node_id)
        return frames, taken, has_more

    def _measured(self, measured: Measured, now: Instant) -> None:
        link = self._links.get(measured.connection)
        if link is not None and link.phase is Phase.OPEN:
            if self._membership.keepalive.measured(link, measured, now):
                self._membership.ping_unanswered(link.node_id, now)

    # --- what tunnels ask for -------------------------------------------------------------------

    def take(self, link: Link, bytes_max: int) -> tuple[list[Frame], bool]:
        """Return the frames for a tunnel, and whether more wait."""
        frames, _, has_more = self._take(link, bytes_max)
        return frames, has_more

    def frames(self, link: Link, messages: list[WireMessage], now: Instant) -> None:
        """Take what came through a tunnel."""
        self._frames_received(FramesReceived(link.connection, messages), now)

    # --- frames ---------------------------------------------------------------------------------

    def _frames_received(self, received: FramesReceived, now: Instant) -> None:
        link = self._links.by_connection.get(received.connection)
        if link is None:
            return
        when_open = self._when_open
        positioned: list[WireMessage] = []
        for message in received.messages:
            kind = type(message)
            handle = when_open.get(kind)
            if handle is not None and link.phase is _OPEN:
                handle(link, message, now)
                if link.is_over:
                    return
                continue
            if kind in _POSITIONED or (
                kind is Unknown and message.type >= POSITIONED_TYPE_MIN  # type: ignore[union-attr]
            ):
                positioned.append(message)
                continue
            if kind is Close and positioned:
                self._positioned(link, positioned, now)
                positioned = []
                if link.is_over:
                    return
            if handle is None:
                self._messages[kind](link, message, now)
            else:
                self._membership.misbehaved(link, f"{kind.__name__} before Resume", now)
            if link.is_over:
                return
        if positioned:
            self._positioned(link, positioned, now)
        if link.phase is _OPEN:
            self._membership.keepalive.heard(link.node_id)

    def _pongs_received(self, links: Sequence[Link], pong: Pong, now: Instant) -> list[Effect]:
        for link in links:
            self._frames_received(FramesReceived(link.connection, [pong]), now)
        return self._finish(now)

    def _positioned(self, link: Link, messages: list[WireMessage], now: Instant) -> None:
        if link.phase is not Phase.OPEN:
            self._membership.misbehaved(link, "a message before Resume", now)
            return
        stream = self._messaging.deliveries.stream_of(link.node_id)
        assert stream is not None
        error = self._messaging.receive_untrusted(stream, messages, now)
        if error is not None:
            self._membership.misbehaved(link, error, now)
            return
        self._messaging.owe_ack(stream, now)
        if stream.has_output:
            self._wake(link.node_id)

    def _message_handlers(self) -> dict[type[WireMessage], Callable[[Link, Any, Instant], None]]:
        membership = self._membership
        return {
            Ack: self._ack,
            Resume: membership.opening.resume_untrusted,
            Close: membership.closed_by_peer_untrusted,
            Segment: self._misplaced,
            Hello: self._too_late,
            Proof: self._too_late,
            Unknown: lambda link, unknown, now: self._context.count("unknown_types"),
        }

    def _handlers_when_open(
        self,
    ) -> dict[type[WireMessage], Callable[[Link, Any, Instant], None]]:
        """Return the handlers of what may come only after both Resumes."""
        membership = self._membership
        return {
            Ping: membership.ping_untrusted,
            Pong: self._pong,
            Records: membership.exchange.records_untrusted,
            List: membership.exchange.list_untrusted,
            Want: membership.exchange.want_untrusted,
            Routed: self._routed,
            NoRoute: self._no_route,
        }

    def _too_late(self, link: Link, message: WireMessage, now: Instant) -> None:
        name = type(message).__name__
        self._membership.misbehaved(link, f"{name} after the handshake", now)

    def _misplaced(self, link: Link, segment: Segment, now: Instant) -> None:
        self._membership.misbehaved(link, "Segment outside Routed", now)

    def _routed(self, link: Link, routed: Routed, now: Instant) -> None:
        error = self._membership.rerouting.routed_untrusted(link, routed, now)
        if error is not None:
            self._membership.misbehaved(link, error, now)

    def _no_route(self, link: Link, no_route: NoRoute, now: Instant) -> None:
        error = self._membership.rerouting.no_route_untrusted(link, no_route, now)
        if error is not None:
            self._membership.misbehaved(link, error, now)

    def _ack(self, link: Link, ack: Ack, now: Instant) -> None:
        stream = self._messaging.deliveries.stream_of(link.node_id)
        if link.phase is not Phase.OPEN or stream is None:
            self._membership.misbehaved(link, "Ack before Resume", now)
        elif not self._messaging.deliveries.acknowledged_untrusted(stream, ack.position, now):
            self._membership.misbehaved(link, f"Ack of {ack.position}, never sent", now)
        elif self._membership.keepalive.acknowledged(link.node_id, ack.position, now):
            self._membership.proved(link.node_id, now)
            self._leaving.heard_by(link.node_id)

    def _pong(self, link: Link, pong: Pong, now: Instant) -> None:
        if self._membership.pong_untrusted(link, pong, now) and self._leaving.is_under_way:
            self._leaving.heard_by(link.node_id)

    # --- time -----------------------------------------------------------------------------------

    def _time_passed(self, _passed: TimePassed, now: Instant) -> None:
        for key in self._context.timers.pop_due(now):
            self._timers[key[0]](key, now)

    def _timer_handlers(self) -> dict[str, Callable[[Any, Instant], None]]:
        membership, messaging = self._membership, self._messaging
        return {
            "round": lambda key, now: membership.round_due(key[1], now),
            "pongs": lambda key, now: self._pings_overdue(now),
            "pong": lambda key, now: membership.ping_timed_out(key[1], now),
            "dial": lambda key, now: membership.discovery.due(key[1], now),
            "turn": lambda key, now: membership.discovery.next_turn(now),
            "exchange": lambda key, now: membership.exchange.due(now),
            "refresh": lambda key, now: membership.discovery.notification.refresh(key[1], now),
            "patience": lambda key, now: self._links_overdue(now),
            "ack": lambda key, now: self._ack_due(key[1]),
            "expire": lambda key, now: messaging.deliveries.expire(key[1], now),
            "wait": lambda key, now: messaging.deliveries.admit_waiting(key[1], now),
            "request": lambda key, now: messaging.request_timed_out(key[1]),
            "down": lambda key, now: membership.rerouting.publish_down(now),
            "tunnel": lambda key, now: self._tunnels.due(key[1], now),
            "forget": lambda key, now: membership.forget_due(now),
            "persist": lambda key, now: membership.memory.persist(now),
            "leave": lambda key, now: None,  # `finish_if_done` follows every step
        }

    def _pings_overdue(self, now: Instant) -> None:
        for node_id in self._membership.keepalive.overdue(now):
            self._membership.ping_timed_out(node_id, now)

    def _links_overdue(self, now: Instant) -> None:
        for link in self._links.overdue(now):
            if not link.is_over:
                self._membership.opening.timed_out(link, now)

    def _ack_due(self, node_id: NodeId) -> None:
        link = self._links.open_to(node_id)
        if link is not None:
            self._links.announce(link)

    # --- for people -----------------------------------------------------------------------------

    def snapshot(self, now: Instant) -> NodeSnapshot:
        """Return the member list, the notification addresses and the counters as they are now."""
        return overview(self._context, self._membership, self._messaging, now)

    def glance(self) -> NodeGlance:
        """Return how the members stand: what a check of thousands of nodes needs of a snapshot."""
        return glance(self._context, self._membership)
