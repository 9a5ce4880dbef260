"""The recorded sessions, replayed: a node of ours takes the place of one of the real ones.

It gets every message that the real node got, when that got it, and its operator does what the real
node's operator did: what a script or command began is taken from what the real node sent then.
"""

from __future__ import annotations

import heapq
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from typing import Protocol

import attrs

from clusternode.gateways.opensips.codec import decode_untrusted, encode
from clusternode.gateways.opensips.messages import (
    Adjacency,
    CapabilityUpdate,
    Command,
    Generic,
    LinkUpdate,
    ModulePacket,
    NodeCapabilities,
    NodeDescription,
    Packet,
    Ping,
    Pong,
    RemoveNode,
    Routed,
    SharingTagActive,
    Sync,
    SyncEnd,
    SyncRequest,
    Topology,
    TopologyUpdate,
    Trailer,
    UnknownId,
)
from tests.gateways.opensips.captures import Frame, frames

TICK = 0.5013
"""What the real nodes' timer of half a second took on that machine."""
SAME_TICK = 0.02
ROUND_TRIP = 0.0003
OVERTAKEN_BY = 0.001
PROBE_LATE = 0.52
SYNC_AFTER = 0.0005
SYNC_TAKES = 0.1
SPEAKS_EVERY = 2.7
"""A node that sends nothing for longer than a ping interval and a tick is dead or cut off."""
ROUTED = (Generic, ModulePacket, Command, SharingTagActive, RemoveNode)


@attrs.frozen
class Sent:
    """A message that a node wrote to a neighbour."""

    at: float
    receiver: int
    packet: Packet


class Subject(Protocol):
    """A node in the place of a real one."""

    sent: list[Sent]

    def start(self, at: float) -> None: ...
    def next_deadline(self) -> float | None: ...
    def tick(self, at: float) -> None: ...
    def take(self, at: float, sender: int, data: bytes) -> None: ...
    def operate(self, at: float, act: Act) -> None: ...


@attrs.frozen
class Act:
    """Something that the operator or the script began."""

    at: float
    what: str
    """request, module, tag, command, remove, enable, disable, capability on or off, sync; data: to
    be given what it had before the recording began."""
    packet: Routed | None = None
    targets: tuple[int, ...] = ()
    """To whom the real node sent it."""
    name: str = ""


@attrs.frozen
class Life:
    """The part of a session that one process of a node lived."""

    session: str
    node_id: int
    begins: float
    """Seconds from the session's first message."""
    ends: float
    by_hand: tuple[tuple[float, str, str], ...] = ()
    """(when, what, capability): what an operator did that no message of its own tells."""
    overtaken: tuple[tuple[float, int], ...] = ()
    """(when, sender): messages within a millisecond that another worker handled that much later."""
    compared_from: float = 0.0
    """Seconds from the session's first message; what is sent earlier is left out."""

    @property
    def zero(self) -> float:
        return frames(self.session)[0].at

    def frames(self) -> Iterator[Frame]:
        for frame in frames(self.session):
            if self.begins <= frame.at - self.zero < self.ends:
                yield frame

    def received(self) -> list[Frame]:
        """Return what the node got, with the times at which it was handled."""
        return [self._handled(each) for each in self.frames() if each.receiver == self.node_id]

    def _handled(self, frame: Frame) -> Frame:
        for when, sender in self.overtaken:
            if frame.sender == sender and 0 <= frame.at - self.zero - when < OVERTAKEN_BY:
                return attrs.evolve(frame, at=frame.at + OVERTAKEN_BY)
        return frame

    def sent(self) -> list[Sent]:
        return [
            Sent(frame.at, frame.receiver, decode_untrusted(frame.data))
            for frame in self.frames()
            if frame.sender == self.node_id
        ]

    def ticks(self) -> list[float]:
        """Return when the real node's timer went off: when it pinged, and in between."""
        found: list[float] = []
        pings = [sent.at for sent in self.sent() if isinstance(sent.packet, Ping)]
        for at in pings:
            if found and at - found[-1] < SAME_TICK:
                continue
            while found and at - found[-1] > 1.5 * TICK:
                found.append(found[-1] + TICK)
            found.append(at)
        return found

    def acts(self) -> list[Act]:
        """Return what the node was told to do, in order."""
        acts: dict[object, Act] = {}
        copies: Counter[object] = Counter()
        for sent in self.sent():
            packet = sent.packet
            if not isinstance(packet, ROUTED) or packet.trailer.source != self.node_id:
                continue
            same, what = _act_of(packet)
            if not what:
                continue
            target = packet.trailer.destination
            copies[same, target] += 1
            key = (same, copies[same, target])
            known = acts.get(key) or Act(sent.at, what, packet)
            acts[key] = attrs.evolve(known, targets=(*known.targets, target))
        by_hand = [Act(self.zero + at, what, name=name) for at, what, name in self.by_hand]
        return sorted([*acts.values(), *by_hand], key=lambda act: act.at)


def _act_of(packet: Packet) -> tuple[object, str]:
    """Return what makes copies of a packet one act, and which; no act for answers."""
    match packet:
        case Generic(is_request=True, tag=tag):
            return tag, "request"
        case ModulePacket():
            return (packet.capability, packet.type, packet.body), "module"
        case SharingTagActive(tag=tag):
            return tag, "tag"
        case Command():
            return (packet.name, packet.parameters), "command"
        case RemoveNode(node_id=node_id):
            return node_id, "remove"
    return None, ""


class Replay:
    """One life, lived by a subject.

    The real nodes' PONGs answered the real node's pings, so they are not repeated: a ping of the
    subject is answered when the real one was, or at once where the real node sent none, or not at
    all while the recorded node was silent. In the same way it is given data when it asks for them.
    """

    def __init__(self, life: Life, subject: Subject) -> None:
        self._life = life
        self._subject = subject
        self._heap: list[tuple[float, int, Frame | Sent | Act]] = []
        self._order = itertools.count()
        self._pongs: dict[int, list[tuple[float, Pong]]] = {}
        self._speaks: dict[int, list[float]] = {}
        self._unknown_until: dict[int, float] = {}
        self._donated: list[tuple[float, Sync | SyncEnd]] = []
        self._seen = 0
        for frame in life.received():
            packet = decode_untrusted(frame.data)
            self._speaks.setdefault(frame.sender, []).append(frame.at)
            if isinstance(packet, UnknownId):
                self._unknown_until[frame.sender] = frame.at
            if isinstance(packet, Pong):
                self._pongs.setdefault(frame.sender, []).append((frame.at, packet))
            elif isinstance(packet, Sync | SyncEnd):
                self._donated.append((frame.at, packet))
            else:
                self._push(frame.at, frame)
        self._push(life.zero, Act(life.zero, "data"))
        for act in life.acts():
            self._push(act.at, act)

    def _push(self, at: float, what: Frame | Sent | Act) -> None:
        heapq.heappush(self._heap, (at, next(self._order), what))

    def run(self) -> list[Sent]:
        """Return what the subject sent."""
        subject, life = self._subject, self._life
        end = min(life.zero + life.ends, frames(life.session)[-1].at + 0.1)
        subject.start(life.zero + life.begins)
        while True:
            self._answer()
            deadline = subject.next_deadline()
            at = self._heap[0][0] if self._heap else end
            if deadline is not None and deadline <= min(at, end):
                subject.tick(deadline)
                continue
            if at >= end:
                return subject.sent
            _, _, what = heapq.heappop(self._heap)
            if isinstance(what, Frame):
                subject.take(at, what.sender, what.data)
            elif isinstance(what, Sent):
                subject.take(at, what.receiver, encode(what.packet))
            else:
                subject.operate(at, what)

    def kept(self, sent: list[Sent]) -> list[Sent]:
        """Leave out pings, and what was sent to the dead: the recording has nothing of it."""
        return [
            each
            for each in sent
            if each.at - self._life.zero >= self._life.compared_from
            and (isinstance(each.packet, Pong) or self._is_kept(each))
        ]

    def _is_kept(self, sent: Sent) -> bool:
        return not isinstance(sent.packet, Ping) and self.is_alive(sent.receiver, sent.at)

    def _answer(self) -> None:
        for sent in self._subject.sent[self._seen :]:
            if isinstance(sent.packet, SyncRequest):
                self._donate(sent, sent.packet.capability)
            if isinstance(sent.packet, Ping) and self.is_alive(sent.receiver, sent.at):
                answer = self._pong_of(sent)
                if answer is not None:
                    self._push(answer[0], Sent(answer[0], sent.receiver, answer[1]))
        self._seen = len(self._subject.sent)

    def _donate(self, asked: Sent, capability: str) -> None:
        """Give what a recorded donor gave at that time, whichever it was."""
        given = [each for each in self._donated if each[1].capability == capability]
        ends = [at for at, packet in given if isinstance(packet, SyncEnd)]
        if not ends:
            return
        end = min(ends, key=lambda at: abs(at - asked.at))
        begin = max((at for at in ends if at < end), default=0.0)
        for at, packet in given:
            if begin < at <= end:
                trailer = attrs.evolve(packet.trailer, source=asked.receiver)
                answer = attrs.evolve(packet, trailer=trailer)
                is_same = asked.at < at < asked.at + SYNC_TAKES
                self._push(
                    at if is_same else asked.at + SYNC_AFTER, Sent(at, asked.receiver, answer)
                )

    def is_alive(self, node_id: int, at: float) -> bool:
        return any(at <= each <= at + SPEAKS_EVERY for each in self._speaks.get(node_id, ()))

    def _pong_of(self, sent: Sent) -> tuple[float, Pong] | None:
        if sent.at - SAME_TICK < self._unknown_until.get(sent.receiver, 0.0):
            return None
        recorded = self._pongs.get(sent.receiver, [])
        wants_nodes = isinstance(sent.packet, Ping) and sent.packet.wants_nodes
        for at, pong in recorded:
            # The real node probes at its next tick what we probe at once.
            if sent.at <= at < sent.at + (PROBE_LATE if wants_nodes else SAME_TICK):
                return at, pong
        lists = [(at, pong.node_ids) for at, pong in recorded if pong.node_ids]
        earlier = [ids for at, ids in lists if at < sent.at]
        known = earlier[-1] if earlier else lists[0][1] if lists else ()
        return sent.at + ROUND_TRIP, Pong(1, sent.receiver, known if wants_nodes else ())


# What is compared

Seen = tuple[int, Packet]
"""A receiver, and a packet without what the protocol leaves free."""


def normalised(sent: Sent, node_id: int) -> Seen:
    """Take from a packet of our own what the protocol leaves free.

    That is: wall clocks, how far our counters are, the random part of a tag, and the order of
    nodes, neighbours, capabilities and chunks in lists.
    What others made is passed on byte for byte, so it stays as it is.
    """
    packet = sent.packet
    if author(packet) == node_id:
        match packet:
            case LinkUpdate():
                packet = attrs.evolve(packet, sequence=0, timestamp=0)
            case CapabilityUpdate(nodes=lists):
                lists = tuple(_plain_states(each, node_id) for each in sorted(lists, key=_node_id))
                packet = attrs.evolve(packet, sequence=0, timestamp=0, nodes=lists)
            case TopologyUpdate(nodes=rows):
                rows = tuple(_plain_row(row, node_id) for row in sorted(rows, key=_node_id))
                packet = attrs.evolve(packet, sequence=0, timestamp=0, nodes=rows)
            case Generic(is_request=True, tag=tag):
                assert re.fullmatch(rf"1-{node_id}-[0-9A-Za-z]{{24}}", tag)
                packet = attrs.evolve(packet, tag="")
            case SyncRequest():
                return 0, attrs.evolve(packet, trailer=Trailer(1, node_id, 0))
            case Sync(chunks=chunks):
                packet = attrs.evolve(packet, chunks=tuple(sorted(chunks)))
    return sent.receiver, packet


def _node_id(row: Adjacency | NodeCapabilities) -> int:
    return row.node_id


def _plain_states(row: NodeCapabilities, author_id: int) -> NodeCapabilities:
    """Sort a list; when a sync is finished is free, so a full list of our own says synced."""
    states = sorted(row.capabilities)
    if row.node_id == author_id and len(states) > 1:
        states = [(name, True) for name, _ in states]
    return attrs.evolve(row, capabilities=tuple(states))


def _plain_row(row: Adjacency, author_id: int) -> Adjacency:
    """Leave the author out of the lists of others: they know their own end of that link."""
    others = tuple(sorted(each for each in row.neighbours if each != author_id))
    return attrs.evolve(row, link_sequence=0, link_timestamp=0, neighbours=others)


def author(packet: Packet) -> int:
    """Return who made a packet, whoever sent it on."""
    if isinstance(packet, Topology):
        return packet.source
    return packet.trailer.source


def differences(life: Life, subject: Subject) -> tuple[Counter[Seen], Counter[Seen]]:
    """Return what only the real node sent, and what only the subject sent.

    Of a flooded message several copies arrive at the same time, and the first one that a worker
    handles is passed on to all that are not in its path. Which one that is cannot be seen from
    outside: a copy that was, or was not, sent to somebody in the path of another copy is no
    difference.
    """
    run = Replay(life, subject)
    ours = Counter(normalised(each, life.node_id) for each in run.kept(run.run()))
    theirs = Counter(normalised(each, life.node_id) for each in run.kept(life.sent()))
    paths: dict[object, set[int]] = {}
    for frame in life.received():
        packet = decode_untrusted(frame.data)
        if isinstance(packet, FLOODED):
            paths.setdefault(_identity(packet), set()).update(packet.path)

    def is_excused(seen: Seen) -> bool:
        receiver, packet = seen
        if not isinstance(packet, FLOODED) or packet.source == life.node_id:
            return False
        return receiver in paths[_identity(packet)]

    only_theirs = Counter({s: n for s, n in (theirs - ours).items() if not is_excused(s)})
    only_ours = Counter({s: n for s, n in (ours - theirs).items() if not is_excused(s)})
    return only_theirs, only_ours


FLOODED = (LinkUpdate, TopologyUpdate, NodeDescription, CapabilityUpdate)


def _identity(packet: Packet) -> object:
    number = getattr(packet, "sequence", 0)
    return type(packet), author(packet), number, getattr(packet, "timestamp", 0)
