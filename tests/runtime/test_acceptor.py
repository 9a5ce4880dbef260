"""What strangers and peers that misbehave get to see, and that nobody else is disturbed."""

import contextlib

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clusternode.core.settings import NodeSettings
from clusternode.core.types import Address, ChannelName, Incarnation, NodeId
from clusternode.core.wire.codec import encode
from clusternode.core.wire.messages import Close, CloseReason, Hello, Message, Ping
from clusternode.core.wire.session import PROTOCOL_MAX, PROTOCOL_MIN, Session
from clusternode.runtime.acceptor import Acceptor
from clusternode.runtime.connections import Connections
from clusternode.runtime.driver import Driver
from clusternode.runtime.jobs import Jobs
from clusternode.testing.memory_transport import MemoryNetwork
from tests.agents import SEED, cluster_of, eventually, host_of

STRANGER = "10.0.0.66"


def hello(cluster="voip", node_id="stranger"):
    return Hello(
        cluster,
        NodeId(node_id),
        Incarnation(1),
        bytes(16),
        PROTOCOL_MIN,
        PROTOCOL_MAX,
        f"tcp://{STRANGER}:5062",
        1024,
        65536,
    )


async def dial(cluster, host=STRANGER):
    wire = await cluster.network.transport(host).dial(Address.parse(SEED), 5.0)
    return wire.stream


async def what_comes_back(stream, session=None):
    """Read to the end of the connection; return the CLOSE in it."""
    session = session or Session.dial(hello())
    closes = []
    with trio.fail_after(30):
        while data := await stream.receive_some(65536):
            closes += [
                message
                for message in session.receive_data_untrusted(data)
                if isinstance(message, Close)
            ]
    return session.peer_close or (closes[0] if closes else None)


async def test_garbage_is_answered_with_a_reason_and_disturbs_nobody(autojump_clock, caplog):
    async with cluster_of(2) as cluster:
        stream = await dial(cluster)

        await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
        close = await what_comes_back(stream)

        assert close.reason == CloseReason.PROTOCOL_ERROR
        await eventually(lambda: f"handshake with {STRANGER}" in caplog.text)
        await cluster.everyone_active()


async def test_a_wrong_cluster_is_told_so(autojump_clock):
    async with cluster_of(1) as cluster:
        stream = await dial(cluster)

        await stream.send_all(encode(hello(cluster="other")))

        assert (await what_comes_back(stream)).reason == CloseReason.WRONG_CLUSTER


async def test_whoever_says_nothing_is_closed_at_the_handshake_timeout(autojump_clock):
    async with cluster_of(1) as cluster:
        stream = await dial(cluster)
        began = trio.current_time()

        close = await what_comes_back(stream)

        assert close.reason == CloseReason.HANDSHAKE_TIMEOUT
        assert trio.current_time() - began == pytest.approx(5.0)


async def test_garbage_after_the_handshake_closes_with_a_reason_and_is_logged_once(
    autojump_clock, caplog
):
    async with cluster_of(2) as cluster:
        for _ in range(3):
            stream = await dial(cluster)
            session = Session.dial(hello())
            await stream.send_all(session.data_to_send() + b"\xff" * 64)
            close = await what_comes_back(stream, session)
            assert close is not None
            assert close.reason == CloseReason.PROTOCOL_ERROR

        assert len([line for line in caplog.messages if STRANGER in line]) <= 2
        assert cluster.nodes["n1"].statuses()["n2"] == "active"


async def test_a_message_before_the_stream_is_open_is_a_fault(autojump_clock):
    async with cluster_of(1) as cluster:
        stream = await dial(cluster)
        session = Session.dial(hello())
        message = Message(ChannelName("c"), "text/plain", b"x", 1)

        await stream.send_all(session.data_to_send() + encode(message) + encode(Ping(1, 0)))

        assert (await what_comes_back(stream, session)).reason == CloseReason.PROTOCOL_ERROR


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=5), st.booleans())
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_bytes_never_stop_an_agent(chunks, after_hello):
    async def attack():
        async with cluster_of(1) as cluster:
            stream = await dial(cluster)
            with contextlib.suppress(trio.BrokenResourceError):
                if after_hello:
                    await stream.send_all(encode(hello()))
                for chunk in chunks:
                    await stream.send_all(chunk)
                await stream.send_eof()
            await trio.sleep(20)
            assert cluster.nodes["n1"].statuses()["n1"] == "active"
            assert not cluster.nodes["n1"].ended.is_set()

    trio.run(attack, clock=trio.testing.MockClock(autojump_threshold=0))


def connections_of(transport):
    settings = NodeSettings(
        node_id=NodeId("n1"),
        cluster="voip",
        incarnation=Incarnation(1),
        address=Address.parse(SEED),
        nonce=b"n" * 16,
    )
    return Connections(Driver(settings), transport, Jobs())


@contextlib.asynccontextmanager
async def accepting(network, **limits):
    """An acceptor at n1 that nobody else uses."""
    listener = await network.transport("n1").listen(Address("tcp", "n1", 1))
    acceptor = Acceptor(listener, {"voip": connections_of(network.transport("n1"))}, **limits)
    async with trio.open_nursery() as nursery:
        await nursery.start(acceptor.run)
        yield acceptor, listener.address
        nursery.cancel_scope.cancel()


async def knock(network, address, host=STRANGER):
    stream = (await network.transport(host).dial(address, 1.0)).stream
    await trio.testing.wait_all_tasks_blocked()
    return stream


@pytest.mark.parametrize("limits", [(3, 9), (9, 3)])
async def test_among_strangers_the_oldest_gives_way(autojump_clock, caplog, limits):
    network = MemoryNetwork()
    total, per_host = limits
    async with accepting(network, handshakes_max=total, handshakes_per_host_max=per_host) as (
        acceptor,
        address,
    ):
        streams = [await knock(network, address) for _ in range(3)]
        assert acceptor.refused == 0  # at the limit

        streams += [await knock(network, address) for _ in range(2)]  # one past it, twice

        assert acceptor.refused == 2
        assert not await streams[0].receive_some(1)
        assert not await streams[1].receive_some(1)
        assert len(caplog.messages) == 1
        await trio.sleep(10)  # the other three run into the handshake timeout
        assert acceptor.handshakes_failed == 3
        await knock(network, address)
        assert acceptor.refused == 2


async def test_a_host_that_knocks_all_the_time_takes_no_places_of_others(autojump_clock):
    network = MemoryNetwork()
    async with accepting(network, handshakes_max=10, handshakes_per_host_max=6) as (
        acceptor,
        address,
    ):
        patient = [await knock(network, address, f"10.0.0.{number}") for number in range(4)]
        for _ in range(20):
            await knock(network, address)
        await knock(network, address, "10.0.0.9")

        for stream in patient:
            await stream.send_all(b"CLN1")
        assert acceptor.refused == 15  # all of them of the one that knocks


@pytest.mark.parametrize("limits", [(2, 9), (9, 2)])
async def test_connections_beyond_a_limit_are_closed_with_the_reason(
    autojump_clock, caplog, limits
):
    network = MemoryNetwork()
    total, per_host = limits
    async with accepting(network, connections_max=total, connections_per_host_max=per_host) as (
        acceptor,
        address,
    ):
        closes = []
        for number in range(3):
            stream = await knock(network, address)
            session = Session.dial(hello(node_id=f"s{number}"))
            await stream.send_all(session.data_to_send())
            await trio.testing.wait_all_tasks_blocked()
            if number == 2:
                closes.append(await what_comes_back(stream, session))

        assert acceptor.refused == 1
        assert closes[0].reason == CloseReason.LIMIT
        assert f"{min(limits)} connections" in closes[0].detail


async def test_one_host_of_many_that_is_full_leaves_room_for_the_others(autojump_clock):
    async with cluster_of(1) as cluster:
        assert host_of("n1") != STRANGER
        for _ in range(3):
            await dial(cluster)

        await cluster.add("n2")

        await cluster.everyone_active()
