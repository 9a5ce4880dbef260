"""Peers that want no good, on real sockets. Each attack is a function that goes on until cancelled.

Outsiders do not know the secret of the cluster; insiders do, as a member that was taken over
would. `python -m tests.attack.kit SECONDS` runs all of them against a cluster and prints a table.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import attrs
import trio

from clusternode.core.types import ChannelName, Incarnation, NodeId, Tag
from clusternode.core.wire import limits
from clusternode.core.wire.codec import encode
from clusternode.core.wire.framing import HEADER, HEADER_SIZE, MAGIC
from clusternode.core.wire.messages import (
    Ack,
    Hello,
    List,
    ListEntry,
    Message,
    Ping,
    Pong,
    Proof,
    Record,
    Records,
    Reply,
    Resume,
    Want,
    WireMessage,
)
from clusternode.core.wire.proof import Direction, proof_of, transcript_of
from clusternode.core.wire.session import Session
from clusternode.errors import RemoteProtocolError

CLUSTER = "voip"
SOURCE = "127.0.0.66"
"""Where attackers come from; honest agents are at 127.0.0.1."""
EVIL = "zz-evil"
"""The id of the member that an insider has taken over."""
SECRET = b"the secret of the honest nodes"


@attrs.frozen
class Target:
    """An honest agent, and what an attacker knows of the cluster."""

    port: int
    honest: tuple[str, ...]
    host: str = "127.0.0.1"
    context: ssl.SSLContext | None = None
    """With the certificate of the attacker, where the cluster speaks TLS."""


Attack = Callable[[Target], Awaitable[None]]


@contextlib.asynccontextmanager
async def connected(target: Target) -> AsyncIterator[trio.abc.Stream]:
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with sock:
        await sock.bind((SOURCE, 0))
        await sock.connect((target.host, target.port))
        stream: trio.abc.Stream = trio.SocketStream(sock)
        if target.context is not None:
            stream = trio.SSLStream(stream, target.context, https_compatible=True)
        yield stream


def hello(node_id: str = EVIL, **changes: Any) -> Hello:
    fields = Hello(
        CLUSTER,
        NodeId(node_id),
        Incarnation(1 << 62),
        secrets.token_bytes(16),
        1,
        1,
        f"tcp://{SOURCE}:9",
        limits.MIB,
        4 * limits.MIB,
        challenge=secrets.token_bytes(16),
    )
    return attrs.evolve(fields, **changes)


async def for_ever(once: Callable[[], Awaitable[None]], pause: float = 0.01) -> None:
    while True:
        with contextlib.suppress(OSError, trio.BrokenResourceError, RemoteProtocolError):
            await once()
        await trio.sleep(pause)


async def many(count: int, one: Callable[[], Awaitable[None]], pause: float = 0.1) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(for_ever, one, pause)
            await trio.lowlevel.checkpoint()


async def drain(stream: trio.abc.Stream) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while await stream.receive_some(65536):
            pass


# --- outsiders ------------------------------------------------------------------------------------


async def slowloris(target: Target) -> None:
    """Two hundred connections that say a HELLO one byte at a time."""

    async def one() -> None:
        async with connected(target) as stream:
            for byte in encode(hello()):
                await stream.send_all(bytes([byte]))
                await trio.sleep(0.2)

    await many(200, one)


async def thousand(target: Target) -> None:
    """A thousand connections that say nothing, made again as soon as they are closed."""

    async def one() -> None:
        async with connected(target) as stream:
            await drain(stream)

    await many(1000, one, 0.5)


async def flood_before_hello(target: Target) -> None:
    """Bytes as fast as they go, behind a header that promises a HELLO."""

    async def one() -> None:
        async with connected(target) as stream:
            await stream.send_all(HEADER.pack(MAGIC, limits.HANDSHAKE_BYTES_MAX, 1, 0))
            while True:
                await stream.send_all(bytes(65536))

    await many(8, one, 0.01)


async def half_a_frame(target: Target) -> None:
    """Half a HELLO, and then nothing."""

    async def one() -> None:
        async with connected(target) as stream:
            frame = encode(hello())
            await stream.send_all(frame[: len(frame) // 2])
            await drain(stream)

    await many(100, one)


async def nested_bomb(target: Target) -> None:
    """A HELLO of arrays in arrays, and one that announces more than there is."""

    async def one() -> None:
        for payload in (b"\x91" * 4000, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff" * 2):
            async with connected(target) as stream:
                frame = HEADER.pack(MAGIC, HEADER_SIZE + len(payload), 1, 0) + payload
                await stream.send_all(frame)
                await drain(stream)

    await many(8, one)


async def replay(target: Target) -> None:
    """What a member said once, said again by somebody who only listened."""
    recorded: list[bytes] = []
    async with connected(target) as stream:
        session = Session.dial(hello("aa-recorded"), [SECRET])
        while not session.is_open:
            out = session.data_to_send()
            recorded.append(out)
            await stream.send_all(out)
            session.receive_data_untrusted(bytes(await stream.receive_some(65536)))
            recorded.append(session.data_to_send())
            await stream.send_all(recorded[-1])

    async def one() -> None:
        async with connected(target) as stream:
            for part in recorded:
                await stream.send_all(part or encode(Resume(0, 1)))
                await trio.sleep(0.02)
            await drain(stream)

    await many(4, one, 0.05)


async def reflect(target: Target) -> None:
    """Every HELLO and PROOF of the target sent back to it, on the same and on a second connection.

    The proof that the target makes as a client would have to pass for one that a server makes.
    """

    async def one() -> None:
        async with connected(target) as first, connected(target) as second:
            opening = hello()
            await first.send_all(encode(opening))
            answer = await first.receive_some(65536)
            await second.send_all(answer)
            echoed = await second.receive_some(65536)
            await first.send_all(echoed)
            transcript = transcript_of(encode(opening), bytes(answer))
            guess = proof_of(b"", Direction.CLIENT, transcript)
            await first.send_all(encode(Proof(guess)))
            await drain(first)

    await many(4, one, 0.05)


async def no_secret(target: Target) -> None:
    """A node without the secret, and one with another, that try again at once."""

    async def one() -> None:
        async with connected(target) as stream:
            await stream.send_all(encode(hello(challenge=b"")))
            await drain(stream)
        async with connected(target) as stream:
            session = Session.dial(hello(), [b"not the secret of anyone"])
            await stream.send_all(session.data_to_send())
            session.receive_data_untrusted(bytes(await stream.receive_some(65536)))
            await stream.send_all(session.data_to_send())
            await drain(stream)

    await many(8, one, 0.01)


def without_certificate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def tls_handshakes(target: Target) -> None:
    """TLS handshakes without a certificate, which cost the listener a signature each."""
    stranger = attrs.evolve(target, context=without_certificate())

    async def one() -> None:
        async with connected(stranger) as stream:
            await stream.send_all(encode(hello()))
            await stream.receive_some(65536)

    await many(50, one, 0.0)


async def half_a_tls_handshake(target: Target) -> None:
    """The first half of a TLS handshake, and garbage inside one."""
    below = attrs.evolve(target, context=None)

    async def one() -> None:
        async with connected(below) as stream:
            await stream.send_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
            await drain(stream)
        async with connected(below) as stream:
            await stream.send_all(b"\x16\x03\x01\x40\x00" + secrets.token_bytes(16384))
            await drain(stream)

    await many(100, one)


# --- insiders -------------------------------------------------------------------------------------


@attrs.define
class Member:
    """An attacker that has got in; it answers pings, so that it stays."""

    stream: trio.abc.Stream
    session: Session
    own: Hello
    _lock: trio.Lock = attrs.Factory(trio.Lock)

    async def say(self, *messages: WireMessage) -> None:
        await self.send(b"".join(map(encode, messages)))

    async def send(self, data: bytes) -> None:
        async with self._lock:
            await self.stream.send_all(data)

    async def take(self) -> None:
        """Read, and answer pings, until the connection ends."""
        while data := await self.stream.receive_some(262144):
            await self.answer(self.session.receive_data_untrusted(bytes(data)))

    async def answer(self, messages: list[WireMessage]) -> None:
        for message in messages:
            if isinstance(message, Resume):
                await self.say(Resume(0, 1))
            elif isinstance(message, Ping):
                await self.say(Pong(message.number, random.getrandbits(64)))


async def inside(
    target: Target, work: Callable[[Member], Awaitable[None]], *, reads: bool = True
) -> None:
    """Join with the secret and do `work`; join again when thrown out."""
    numbers = itertools.count(1)

    async def once() -> None:
        async with connected(target) as stream:
            own = hello(incarnation=Incarnation((1 << 62) + next(numbers)))
            session = Session.dial(own, [SECRET])
            early: list[WireMessage] = []
            while not session.is_open:
                await stream.send_all(session.data_to_send())
                data = await stream.receive_some(65536)
                if not data:
                    return
                early = session.receive_data_untrusted(bytes(data))
            await stream.send_all(session.data_to_send())
            member = Member(stream, session, own)
            while not any(isinstance(message, Resume) for message in early):
                data = await stream.receive_some(65536)
                if not data:
                    return
                early = session.receive_data_untrusted(bytes(data))
            await member.answer(early)
            await member.say(
                Records([Record(own.node_id, own.incarnation, 1, own.address)]), Ping(1, 0)
            )
            async with trio.open_nursery() as nursery:
                if reads:
                    nursery.start_soon(member.take)
                await work(member)
                nursery.cancel_scope.cancel()

    async def guarded() -> None:
        try:
            await once()
        except BaseExceptionGroup as group:
            _, rest = group.split(
                (OSError, trio.BrokenResourceError, trio.ClosedResourceError, RemoteProtocolError)
            )
            if rest is not None:
                raise

    await for_ever(guarded, 0.05)


async def another_id(target: Target) -> None:
    """The secret, and the id of an honest node with a larger and a smaller incarnation."""

    async def one() -> None:
        for node_id in target.honest:
            for incarnation in (1, (1 << 62) + random.getrandbits(20)):
                own = hello(node_id, incarnation=Incarnation(incarnation))
                async with connected(target) as stream:
                    session = Session.dial(own, [SECRET])
                    with trio.move_on_after(2):
                        while True:
                            await stream.send_all(session.data_to_send())
                            data = await stream.receive_some(65536)
                            if not data:
                                break
                            session.receive_data_untrusted(bytes(data))

    await many(2, one, 0.05)


async def false_records(target: Target) -> None:
    """Records about honest nodes, with higher versions: they left, or are elsewhere."""

    async def work(member: Member) -> None:
        for version in itertools.count(10):
            await member.say(
                Records(
                    [
                        Record(
                            NodeId(node_id),
                            Incarnation((1 << 61) + version),
                            version,
                            f"tcp://{SOURCE}:{10 + version % 1000}",
                            left=bool(version % 2),
                        )
                        for node_id in target.honest
                    ]
                )
            )
            await trio.sleep(0.05)

    await inside(target, work)


async def no_digest_agrees(target: Target) -> None:
    """Pings with another digest each time, as fast as they are read."""

    async def work(member: Member) -> None:
        for number in itertools.count(2):
            await member.say(*(Ping(number, random.getrandbits(64)) for _ in range(50)))
            await trio.sleep(0.005)

    await inside(target, work)


def ghost(number: int) -> NodeId:
    return NodeId(f"zz-ghost-{number:07}")


async def longest_list(target: Target) -> None:
    """Lists and records of as many members as fit, who do not exist; other ones each time."""

    async def work(member: Member) -> None:
        for turn in itertools.count():
            first = turn * limits.ENTRIES_MAX
            ghosts = [ghost(first + number) for number in range(limits.ENTRIES_MAX)]
            await member.say(List([ListEntry(one, Incarnation(5), 1, 0.0) for one in ghosts]))
            for start in range(0, len(ghosts), 1000):
                await member.say(
                    Records(
                        [
                            Record(one, Incarnation(5), 1, f"tcp://{SOURCE}:{1 + index}")
                            for index, one in enumerate(ghosts[start : start + 1000])
                        ]
                    )
                )
            await trio.sleep(0.3)

    await inside(target, work)


async def tag_flood(target: Target) -> None:
    """A record with every tag and channel that fits, changed as fast as it is read."""

    async def work(member: Member) -> None:
        own = member.own
        for version in itertools.count(2):
            tags = tuple((f"t{n:02}", f"{version:0256}") for n in range(limits.TAGS_MAX))
            channels = tuple(ChannelName(f"c{n:04}-{version}") for n in range(limits.CHANNELS_MAX))
            record = Record(own.node_id, own.incarnation, version, own.address, tags, channels)
            await member.say(Records([record]))
            await trio.sleep(0.02)

    await inside(target, work)


async def unasked_replies(target: Target) -> None:
    """Replies to requests that nobody made."""

    async def work(member: Member) -> None:
        for number in itertools.count():
            await member.say(
                *(Reply(Tag(f"tag-{number}-{n}"), "text/plain", b"x" * 100) for n in range(50))
            )
            await trio.sleep(0.005)

    await inside(target, work)


async def asks_and_never_reads(target: Target) -> None:
    """Wants everything again and again, pings, sends messages, and reads nothing."""

    async def work(member: Member) -> None:
        wanted = Want([NodeId(node_id) for node_id in target.honest] * 1000)
        for number in itertools.count(2):
            await member.say(wanted, Ping(number, number), List([]))
            await member.say(*(Message(ChannelName("load"), "", b"x" * 500, n) for n in range(20)))
            await trio.sleep(0.002)

    await inside(target, work, reads=False)


async def wrong_acks(target: Target) -> None:
    """Acknowledges what was never sent, and sends what belongs to no state."""

    async def work(member: Member) -> None:
        wrong: list[WireMessage] = [Ack(1 << 40), Resume(9, 9), Pong(7, 7), hello()]
        await member.say(random.choice(wrong))
        await trio.sleep(0.05)
        await member.say(Ack(1 << 50))
        await trio.sleep(0.05)

    await inside(target, work)


async def bomb_inside(target: Target) -> None:
    """Nested arrays and half a frame of the largest size, after the handshake."""

    async def work(member: Member) -> None:
        payload = b"\x91" * (limits.CONTROL_PAYLOAD_MAX - 1)
        frame = HEADER.pack(MAGIC, HEADER_SIZE + len(payload), Records.TYPE, 0) + payload
        await member.send(frame)
        await trio.sleep(0.1)

    async def half(member: Member) -> None:
        frame = HEADER.pack(MAGIC, HEADER_SIZE + limits.CONTROL_PAYLOAD_MAX, Message.TYPE, 0)
        await member.send(frame + bytes(limits.CONTROL_PAYLOAD_MAX // 2))
        await trio.sleep(5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(inside, target, work)
        nursery.start_soon(inside, target, half)


OUTSIDERS: Mapping[str, Attack] = {
    attack.__name__: attack
    for attack in (
        slowloris,
        thousand,
        flood_before_hello,
        half_a_frame,
        nested_bomb,
        replay,
        reflect,
        no_secret,
    )
}
TLS_OUTSIDERS: Mapping[str, Attack] = {
    attack.__name__: attack
    for attack in (tls_handshakes, half_a_tls_handshake, flood_before_hello, thousand)
}
INSIDERS: Mapping[str, Attack] = {
    attack.__name__: attack
    for attack in (
        another_id,
        false_records,
        no_digest_agrees,
        tag_flood,
        unasked_replies,
        asks_and_never_reads,
        wrong_acks,
        bomb_inside,
        longest_list,  # last: the ghosts stay for a while
    )
}
