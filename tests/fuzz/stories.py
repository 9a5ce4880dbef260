"""What n2 may tell n1 of routing, for the fuzzer to change: ways, tunnels, refusals, `down`.

n1 has links to n2 and n4. n0 and n3 are reached over n2; n0 begins its tunnel to n1, and n1 its
tunnel to n3, because the smaller node id does. Spec: docs/protocol.md, section 13.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from clusternode.core.types import ChannelName, Incarnation, NodeId, Tag
from clusternode.core.wire.codec import encode, payload_of
from clusternode.core.wire.messages import (
    Ack,
    Hello,
    List,
    ListEntry,
    Message,
    NoRoute,
    Ping,
    Pong,
    Record,
    Records,
    Request,
    Resume,
    Routed,
    Segment,
    Want,
    WireMessage,
)

Story: TypeAlias = list[WireMessage | float]
"""What is said, and for how many seconds nothing is."""
INCARNATION = Incarnation(1 << 60)
CHANNEL = ChannelName("a")
N0, N1, N2, N3, N4, N9 = (NodeId(f"n{number}") for number in (0, 1, 2, 3, 4, 9))


def hello(node_id: str, challenge: bytes = b"") -> Hello:
    return Hello(
        "voip",
        NodeId(node_id),
        INCARNATION,
        node_id.encode().ljust(16, b"-"),
        1,
        1,
        "tcp://10.0.0.1:5062",
        100_000,
        1_000_000,
        challenge=challenge,
    )


def record(node_id: NodeId, version: int = 1, *down: NodeId, left: bool = False) -> Record:
    address = f"tcp://10.0.1.{node_id[1:]}:5062"
    return Record(node_id, INCARNATION, version, address, (), (CHANNEL,), left, 50, 0.0, down)


def routed(
    origin: NodeId,
    inner: Ping | Pong | Segment,
    relays: tuple[NodeId, ...] = (N2,),
    destination: NodeId = N1,
) -> Routed:
    payload = payload_of(inner)
    return Routed(origin, INCARNATION, destination, INCARNATION, relays, inner.TYPE, payload)


KNOWN = Records([record(N0, 1, N1), record(N2), record(N3, 1, N1)])
HELLO_N0 = encode(hello("n0"))
OPENS = encode(Resume(0, 1))
SAYS = encode(Message(CHANNEL, "text/plain", b"over a tunnel", 7)) + encode(
    Request(CHANNEL, "text/plain", b"who", Tag("tag"), 5.0)
)


def n0_begins(number: int = 1) -> Story:
    """A tunnel that n0 begins, up to what is said in it."""
    begun = Segment(number, 0, 0, HELLO_N0)
    said = Segment(number, 0, len(HELLO_N0), OPENS + SAYS)
    return [KNOWN, routed(N0, Ping(3, 5)), routed(N0, begun), routed(N0, said)]


def n1_begins(hello_length: int) -> Story:
    """A tunnel that n1 begins because n3 asks for it over n2; its HELLO has that many bytes."""
    answer = encode(hello("n3")) + OPENS + SAYS
    asks = routed(N3, Ping(3, 5))
    half = len(answer) // 2
    first = Segment(1, hello_length, 0, answer[:half])
    second = Segment(1, hello_length, half, answer[half:])
    return [KNOWN, asks, routed(N3, first), routed(N3, second)]


def alive(seconds: int) -> Story:
    """Let time pass, while n2 answers the pings of n1, which come every 5 s."""
    return [part for second in range(seconds) for part in (1.0, Pong(1 + second // 5, 5))]


def stories(hello_length: int) -> Iterator[Story]:
    """Yield what n2 may say; `hello_length` is that of n1's HELLO."""
    n0, n3 = n0_begins(), n1_begins(hello_length)
    body = HELLO_N0 + OPENS + SAYS
    yield n0
    yield [*n0, *n0[1:], *n0_begins(2)[1:]]  # the same again, and a new tunnel in its place
    yield [*n0, routed(N0, Segment(1, 0, 0, b"", ends=True)), *n0_begins(2)]
    yield [*n0, routed(N0, Segment(1, 1 << 40, len(body), b"x"))]  # takes what was never sent
    yield [*n0, 2.0, 2.0, *alive(20)]  # nothing is acknowledged
    yield [KNOWN, *(routed(N0, Segment(1, 0, at, body[at : at + 40])) for at in (0, 80, 40, 80))]
    yield [KNOWN, routed(N0, Segment(1, 0, 0, encode(hello("n3"))))]  # somebody else's HELLO
    yield n3
    yield [*n3, *alive(12), routed(N3, Segment(1, hello_length, 0, b"", ends=True)), *alive(3)]
    yield [*n3, NoRoute(N1, N3, (N2,), N2), *alive(12)]
    yield [KNOWN, *alive(8), *(routed(N3, Pong(number, 5)) for number in range(4)), *alive(4)]
    yield [KNOWN, *alive(8), NoRoute(N1, N3, (N2,), N2), NoRoute(N1, N0, (N2,), N2), *alive(4)]
    two = (N3, N2)
    yield [KNOWN, routed(N0, Ping(3, 5), two), routed(N0, Segment(1, 0, 0, HELLO_N0), two)]
    yield [*n0, *n3[1:], Records([record(N2, 2, N0), record(N3, 2)]), *alive(8)]
    yield [*n0, Records([record(N0, 9, left=True), record(N2, 3, N0, N3)]), *alive(8)]
    for message in (Ping(1, 5), Pong(1, 5), Segment(1, 0, 0, HELLO_N0)):  # n1 is the relay
        yield [KNOWN, routed(N2, message, (N1,), N3), routed(N2, message, (N1, N4), N9)]
        yield [KNOWN, routed(N3, message, (N2, N1), N4), routed(N9, message, (N2, N1), N0)]
    yield [KNOWN, NoRoute(N4, N3, (N1, N2), N2), NoRoute(N9, N3, (N1, N2), N2)]
    entries = [ListEntry(one.node_id, INCARNATION, 7, 0.5) for one in KNOWN.records]
    yield [KNOWN, List(entries), Want([N0, N1, N3]), Ack(1), *alive(3)]
