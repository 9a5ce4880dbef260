"""The connections of a node: what its writers are given without asking."""

from __future__ import annotations

import contextlib

import trio
import trio.testing

from clusternode.core import effects
from clusternode.core.inputs import Connected, Measured, WriteReady
from clusternode.core.settings import NodeSettings
from clusternode.core.types import Address, ChannelName, ConnectionId, Incarnation, NodeId
from clusternode.core.wire.codec import encode, frame_of
from clusternode.core.wire.messages import Frame, Message, Ping
from clusternode.core.wire.session import Session
from clusternode.runtime.connections import Connections
from clusternode.runtime.driver import Driver
from clusternode.runtime.handshake import shake_hands
from clusternode.runtime.jobs import Jobs
from clusternode.runtime.transport import Wire
from clusternode.testing.memory_transport import (
    BUFFER_SIZE,
    MemoryNetwork,
    MemoryStream,
    memory_stream_pair,
)

ID = ConnectionId(1)


class Owner(Driver):
    """A driver whose node only has what the test gives to the writer, and notes what it is told."""

    def __init__(self, node_id: str) -> None:
        address = Address("tcp", "10.0.0.1", 5062)
        super().__init__(
            NodeSettings(
                node_id=NodeId(node_id),
                cluster="c",
                incarnation=Incarnation(1),
                address=address,
                nonce=bytes(16),
            )
        )
        self.connections = Connections(self, MemoryNetwork().transport("10.0.0.1"), Jobs())
        self.waiting: list[Frame] = []
        self.turns = 0
        self.told: list[object] = []

    def feed(self, input_):
        self.told.append(input_)
        if isinstance(input_, WriteReady):
            self.turns += 1
            frames, self.waiting = self.waiting, []
            self.connections.write(effects.Write(ID, frames, more=False))

    def push(self, number: int) -> None:
        self.connections.write_each(effects.WriteEach([ID], frame_of(Ping(number, 0))))

    def send(self, size: int) -> None:
        self.waiting.append(frame_of(Message(ChannelName("c"), "", bytes(size), 1)))
        self.connections.output_ready(effects.OutputReady(ID))


@contextlib.asynccontextmanager
async def connected():
    """Yield the owner of a connection, and what is at its other end."""
    owner = Owner("n1")
    here, there = memory_stream_pair()
    session = Session.dial(owner.connections.hello())
    other = Session.listen(lambda cluster: Owner("n2").connections.hello())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shake_hands, there, other, 5.0)
        early = await shake_hands(here, session, 5.0)
        nursery.start_soon(owner.connections.serve, Wire(here, "10.0.0.2:5062"), session, early)
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(owner.told[0], Connected)
        yield owner, there, other
        nursery.cancel_scope.cancel()


async def read(there: MemoryStream, other: Session) -> list[object]:
    """Return all that has been written."""
    found: list[object] = []
    with trio.move_on_after(1.0):
        while data := await there.receive_some(BUFFER_SIZE):
            found += other.receive_data_untrusted(data)
    return found


async def test_a_ping_is_written_without_asking_the_node(autojump_clock):
    async with connected() as (owner, there, other):
        owner.push(7)

        assert await read(there, other) == [Ping(7, 0)]
        assert owner.turns == 0


async def test_a_ping_goes_before_what_the_node_is_asked_for_then(autojump_clock):
    async with connected() as (owner, there, other):
        owner.send(10)
        owner.push(7)

        ping, message = await read(there, other)
        assert (ping, type(message)) == (Ping(7, 0), Message)
        assert owner.turns == 1


async def test_of_two_pings_that_wait_for_a_busy_writer_only_the_newer_is_written(autojump_clock):
    async with connected() as (owner, there, other):
        owner.send(2 * BUFFER_SIZE)
        await trio.testing.wait_all_tasks_blocked()
        owner.push(7)
        owner.push(8)
        owner.connections.measure(effects.Measure(ID))

        measured = owner.told[-1]
        assert isinstance(measured, Measured)
        assert measured.waiting_bytes > 2 * BUFFER_SIZE + len(encode(Ping(8, 0)))
        assert (await read(there, other))[1:] == [Ping(8, 0)]


async def test_a_ping_for_a_connection_that_has_ended_goes_nowhere(autojump_clock):
    async with connected() as (owner, there, other):
        owner.connections.disconnect(effects.Disconnect(ID, None))
        owner.push(7)

        assert await read(there, other) == []
