"""What the bus refuses, and what it says to the node; the rest is shown by tests/test_agent.py."""

from collections.abc import Mapping
from types import MappingProxyType

import pytest

from clusternode.bus.interface import Bus
from clusternode.bus.mesh import MeshBus
from clusternode.core.inputs import Connected, FramesReceived
from clusternode.core.settings import MessagingSettings, NodeSettings
from clusternode.core.types import Address, ConnectionId, Incarnation, NodeId, ResultCode
from clusternode.core.wire.messages import Resume
from clusternode.errors import BodyTooLarge, ConfigError, NoSuchNode, Overloaded
from clusternode.runtime.driver import Driver, Surroundings
from clusternode.runtime.jobs import Jobs
from clusternode.testing.fakes import FakeResolver, NotingReceiver
from tests.core.harness import hello_of

ME = NodeId("n1")


class NoLinks:
    counters: Mapping[str, int] = MappingProxyType({})

    def dial(self, address): ...
    def output_ready(self, effect): ...
    def write(self, effect): ...
    def write_each(self, effect): ...
    def disconnect(self, effect): ...
    def measure(self, effect): ...


@pytest.fixture
async def bus(autojump_clock):
    settings = NodeSettings(
        node_id=ME,
        cluster="voip",
        incarnation=Incarnation(1),
        address=Address.parse("tcp://10.0.0.1:5062"),
        messaging=MessagingSettings(body_size_max=100, open_requests_max=3),
    )
    driver = Driver(settings)
    bus = MeshBus(driver)
    driver.attach(Surroundings(NoLinks(), bus, FakeResolver(), Jobs(), None))
    driver.start()
    return bus


async def test_a_mesh_is_a_bus(bus):
    interface: Bus = bus

    assert (interface.name, interface.node_id) == ("voip", "n1")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda bus: bus.broadcast("no spaces", b""), ConfigError),
        (lambda bus: bus.broadcast("c" * 65, b""), ConfigError),
        (lambda bus: bus.broadcast("c", b"x" * 101), BodyTooLarge),
        (lambda bus: bus.broadcast("c", "é" * 51), BodyTooLarge),
        (lambda bus: bus.broadcast("c", 5), ConfigError),
        (lambda bus: bus.broadcast("c", b"", content_type="x" * 1000), ConfigError),
        (lambda bus: bus.broadcast("c", b"", content_type="näive"), ConfigError),
        (lambda bus: bus.broadcast("c", b"", max_forwards=-1), ConfigError),
        (lambda bus: bus.broadcast("c", b"", max_forwards=256), ConfigError),
        (lambda bus: bus.send("c", "no node", b""), ConfigError),
        (lambda bus: bus.request("c", "n1", b"", timeout=0), ConfigError),
        (lambda bus: bus.request("c", "n1", b"", timeout=float("nan")), ConfigError),
        (lambda bus: bus.request("c", "n1", b"", tag=""), ConfigError),
        (lambda bus: bus.reply("n1", "", b""), ConfigError),
        (lambda bus: bus.reply("n1", "t", b"", code=-1), ConfigError),
        (lambda bus: bus.set_channels(["no spaces"]), ConfigError),
        (lambda bus: bus.add("nowhere"), ConfigError),
        (lambda bus: bus.remove("n1"), NoSuchNode),
        (lambda bus: bus.remove("n9"), NoSuchNode),
        (lambda bus: bus.change_status("n9", "active"), NoSuchNode),
        (lambda bus: bus.change_status("n9", "asleep"), ConfigError),
    ],
)
async def test_what_cannot_be_sent_is_refused_at_once(bus, call, error):
    with pytest.raises(error):
        call(bus)


async def test_a_broadcast_to_nobody_is_complete_at_once(bus):
    delivery = bus.broadcast("c", b"x")

    assert delivery.is_complete
    assert await delivery == {}


async def test_an_unknown_node_is_480(bus):
    delivery = bus.send("c", "n9", b"x")

    assert await delivery == {"n9": ResultCode.UNAVAILABLE}


@pytest.mark.parametrize(
    "error", [ValueError("a bug of the user"), SystemExit("a bug of the user")]
)
async def test_a_callback_that_raises_is_logged_and_hurts_nobody(bus, caplog, error):
    def raises(node_id, code):
        raise error

    delivery = bus.send("c", "n9", b"x", on_result=raises)

    assert await delivery == {"n9": ResultCode.UNAVAILABLE}
    assert "a bug of the user" in caplog.text


async def test_a_message_to_oneself_takes_the_same_path(bus):
    receiver = NotingReceiver()
    bus.attach(receiver)

    delivery = bus.send("c", "n1", "me")

    assert await delivery == {"n1": ResultCode.OK}
    assert [message.body for _, message in receiver.messages] == [b"me"]


async def test_nobody_listens_before_a_receiver_is_attached(bus):
    assert await bus.send("c", "n1", "me") == {"n1": ResultCode.NOT_FOUND}


async def test_open_requests_are_bounded_and_tags_are_used_once(bus):
    bus.attach(NotingReceiver(code=None))
    open_requests = [bus.request("c", "n1", b"", tag=f"t{number}") for number in range(2)]
    with pytest.raises(ConfigError, match="tag"):
        bus.request("c", "n1", b"", tag="t1")
    open_requests.append(bus.request("c", "n1", b""))

    with pytest.raises(Overloaded):
        bus.request("c", "n1", b"")

    open_requests[1].close()
    assert bus.request("c", "n1", b"", tag="t1").asked == ["n1"]


async def test_tags_that_are_made_differ(bus):
    tags = {bus.broadcast_request("c", b"").tag for _ in range(100)}

    assert len(tags) == 100


async def test_a_copy_is_never_replicated_again(bus):
    assert bus.replicate("c", b"x") is not None
    assert bus.replicate("c", b"x", replicated=True) is None
    assert bus.replicate("c", b"x", replicated=True, skip_loop_test=True) is None


@pytest.mark.parametrize("source", ["n2", "10.9.9.9", "10.0.0.2:5062"])
async def test_what_comes_from_a_member_is_replicated_only_without_the_loop_test(bus, source):
    assert bus.replicate("c", b"x", source=source) is not None
    hello = hello_of("n2", address="tcp://10.0.0.2:5062")
    bus.driver.feed(Connected(ConnectionId(1), hello, None, "10.9.9.9:4711"))
    bus.driver.feed(FramesReceived(ConnectionId(1), [Resume(0, 1)]))

    assert bus.replicate("c", b"x", source=source) is None
    assert bus.replicate("c", b"x", source=source, skip_loop_test=True) is not None
    assert bus.replicate("c", b"x", source="n1") is not None


@pytest.mark.parametrize("address", ["10.0.0.1", "10.0.0.1:5060", "[::1]:5", "nonsense", ""])
async def test_an_address_of_nobody_else_is_not_from_a_node(bus, address):
    assert not bus.is_from_node(address)


async def test_channels_are_told_once(bus):
    bus.set_channels(["b", "a", "b"])
    version = bus.members()[0].version

    bus.set_channels(["a", "b"])

    assert bus.members()[0].channels == ("a", "b")
    assert bus.members()[0].version == version
    assert bus.rank("a") == (0, 1)
    assert bus.rank("c") is None
