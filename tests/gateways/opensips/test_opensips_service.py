"""The gateway as a `Bus`: two and three of them on loopback, over TCP and TLS."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from clusternode.agent import Agent
from clusternode.bus.interface import Arrivals
from clusternode.config import load_settings
from clusternode.core.effects import Outcome
from clusternode.core.events import PeerMisbehaved, SharingTagChanged
from clusternode.core.sip_events import (
    CacheReplicated,
    CommandReceived,
    LocationReplicated,
    PacketReceived,
)
from clusternode.core.types import ResultCode
from clusternode.core.wire.messages import Message, Reply, Request
from clusternode.errors import AddressInUse, BodyTooLarge, ConfigError, NoSuchNode, ResolveError
from clusternode.gateways.opensips.codec import FrameReader, decode_untrusted, encode
from clusternode.gateways.opensips.messages import CACHE, CONTACTS, Generic, Ping, UnknownId
from clusternode.gateways.opensips.service import OpenSipsGateway
from clusternode.gateways.opensips.settings import (
    BinUrl,
    MyNodeInfo,
    Neighbour,
    OpenSipsSettings,
)
from clusternode.testing.memory_transport import MemoryNetwork
from tests.agents import start
from tests.certificates import Pki

PATIENCE = 20.0
CHECK = Path(__file__).parents[3] / "docs" / "examples" / "opensips" / "check.py"


class NoNames:
    async def resolve(self, name: Any) -> Any:
        raise AssertionError("no names here")


@attrs.define(eq=False)
class Taker:
    """Answers requests, and keeps what came."""

    gateway: OpenSipsGateway
    messages: list[Any] = attrs.Factory(list)
    events: list[Any] = attrs.Factory(list)

    def arrived(self, arrivals: Arrivals) -> None:
        for _, message in arrivals.items:
            self.messages.append((arrivals.origin, message))
            if isinstance(message, Request) and message.body.startswith(b"Q:"):
                arrivals.bus.reply(arrivals.origin, message.tag, b"A:" + message.body)

    def observed(self, bus: Any, event: Any) -> None:
        self.events.append(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def bus(self) -> Any:
        return self.gateway.bus


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110  # real sockets: nobody tells when all have read
            await trio.sleep(0.002)


def ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for number, each in enumerate(sockets, start=1):
        each.bind((f"127.0.62.{number}", 0))
    found = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return found


@asynccontextmanager
async def running(count: int = 2, scheme: str = "bin", **more: Any) -> AsyncIterator[list[Taker]]:
    """Gateways 1 to `count`, each up with each; number 1 is everybody's neighbour."""
    urls = [
        BinUrl(scheme, f"127.0.62.{number}", port)
        for number, port in enumerate(ports(count), start=1)
    ]
    takers = []
    async with trio.open_nursery() as nursery:
        for number, url in enumerate(urls, start=1):
            settings = OpenSipsSettings(
                cluster_id=1,
                my_node_id=number,
                my_node_info=MyNodeInfo(url),
                neighbor_node_info=(Neighbour(1, urls[0]),) if number > 1 else (),
                **{"ping_interval": 0.3, "ping_timeout": 0.1, "node_timeout": 0.3, **more},
            )
            gateway = OpenSipsGateway("opensips", settings, NoNames())
            takers.append(Taker(gateway))
            gateway.bus.attach(takers[-1])
            await nursery.start(gateway.run)
        everybody = [str(number) for number in range(1, count + 1)]
        await until(
            lambda: all(
                sorted(row.node_id for row in each.bus.members() if row.link in ("self", "direct"))
                == everybody
                for each in takers
            )
        )
        yield takers
        nursery.cancel_scope.cancel()


async def test_rows_requests_messages_and_results():
    async with running(3) as (one, two, three):
        rows = one.bus.members()
        assert [row.status for row in rows] == ["active"] * 3
        assert [row.tags for row in rows] == [{}, {"link": "Up"}, {"link": "Up"}]
        assert one.bus.is_from_node("127.0.62.3:999") and not one.bus.is_from_node("127.0.62.1")
        (neighbour,) = two.bus.snapshot().addresses
        assert (neighbour.state, neighbour.failures) == ("connected", None)
        assert str(neighbour.address) == str(one.gateway.node.context.settings.my_node_info.url)

        replies = two.bus.broadcast_request("generic", "Q:who", timeout=PATIENCE)
        found = await replies.gather()
        results = await two.bus.broadcast("generic", b"no question", except_=["3"])
        missing = await two.bus.send("generic", "77", b"x")

        assert sorted((r.node_id, r.text) for r in found) == [("1", "A:Q:who"), ("3", "A:Q:who")]
        assert replies.tag.startswith("1-2-") and len(replies.tag) == 28
        assert {each.outcome for each in replies.outcomes.values()} == {Outcome.REPLIED}
        assert results == {"1": ResultCode.QUEUED}
        assert missing == {"77": ResultCode.UNAVAILABLE}
        await until(lambda: len(one.messages) == 4)
        assert [type(each) for _, each in one.messages] == [Request, Message] * 2
        assert [type(each) for _, each in two.messages] == [Reply] * 2
        assert len(three.messages) == 2


async def test_a_request_to_oneself_needs_no_network():
    async with running() as (one, _):
        replies = one.bus.request("generic", "1", "Q:me", timeout=PATIENCE)
        assert [each.text for each in await replies.gather()] == ["A:Q:me"]
        one.bus.set_channels(["generic"])
        assert one.bus.rank("generic") == (0, 2) and one.bus.rank("other") is None


async def test_a_cancelled_request_is_forgotten():
    async with running() as (one, _):
        async with one.bus.broadcast_request("generic", "unanswered", timeout=PATIENCE):
            pass
        assert one.gateway.node.scripts.next_deadline() is None


async def test_what_cannot_be_sent_is_refused():
    async with running() as (one, _):
        bus = one.bus
        with pytest.raises(ConfigError, match="channel"):
            bus.broadcast("calls", "x")
        with pytest.raises(ConfigError, match="no other has requests"):
            bus.broadcast_request(CACHE, "x")
        with pytest.raises(ConfigError, match="JSON form"):
            bus.broadcast(CACHE, "x")
        with pytest.raises(BodyTooLarge):
            bus.broadcast("generic", b"x" * 65_001)
        with pytest.raises(ConfigError):
            bus.add("tcp://1.2.3.4:5")
        with pytest.raises(ConfigError):
            bus.change_status("2", "not_active")
        with pytest.raises(NoSuchNode):
            bus.remove("9")
        with pytest.raises(ConfigError):
            bus.reply("2", "two\nlines", b"x")


async def test_a_request_without_a_tag_is_heard_and_answered_without_one():
    async with running(2) as (one, two):
        node = two.gateway.node
        ask = partial(node.send, Generic(node.trailer(1), True, "", b"Q:?"))
        two.gateway.perform(node.perform(trio.current_time(), ask))
        await until(lambda: two.messages)
        assert [(each.tag, each.body) for _, each in two.messages] == [("", b"A:Q:?")]
        assert one.messages


async def test_a_name_that_nobody_knows_is_asked_for_again_and_complained_of_once(caplog):
    class Nobody(NoNames):
        asked = 0

        async def resolve(self, name: Any) -> Any:
            self.asked += 1
            raise ResolveError(f"{name.host}: no such name")

    resolver, (port,) = Nobody(), ports(1)
    settings = OpenSipsSettings(
        cluster_id=1,
        my_node_id=1,
        my_node_info=MyNodeInfo(BinUrl("bin", "127.0.62.1", port)),
        neighbor_node_info=(Neighbour(2, BinUrl("bin", "nobody.example.org", 5555)),),
        ping_timeout=0.01,
        node_timeout=0.01,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(OpenSipsGateway("opensips", settings, resolver).run)
        await until(lambda: resolver.asked > 3)
        nursery.cancel_scope.cancel()
    assert len([line for line in caplog.messages if "no such name" in line]) == 1


async def test_a_disabled_node_is_shown_so_and_a_removed_one_not_at_all(caplog):
    caplog.set_level("INFO")
    async with running(3) as (one, two, three):
        one.bus.change_status("3", "disabled")
        assert [row.status for row in one.bus.members()] == ["active", "active", "disabled"]
        one.bus.change_status("3", "active")
        await until(lambda: one.bus.members()[2].link == "direct")
        one.bus.remove("3")
        await until(lambda: [row.node_id for row in two.bus.members()] == ["2", "1"])
        await until(lambda: three.bus.members()[0].status == "disabled")
        assert "cluster opensips: 3: active -> disabled (removed by node 1)" in caplog.messages
        assert [row.node_id for row in one.bus.members()] == ["1", "2"]
        assert [str(row.address) for row in two.bus.snapshot().addresses] != []
        two.bus.remove("1")
        assert two.bus.snapshot().addresses == ()


async def test_a_cache_is_synced_written_and_heard():
    async with running(2, cache_collections=("c1",)) as (one, two):
        one.bus.set_channels([CACHE])
        await until(lambda: two.gateway.node.membership.links.is_up(1))

        one.bus.cache("c1").set("k", "v", ttl=60)
        await until(lambda: two.bus.cache("c1").get("k") == b"v")
        form = {"action": "insert", "collection": "c1", "key": "k2", "value": "v2", "ttl": 0}
        results = await two.bus.broadcast(CACHE, json.dumps(form))
        await until(lambda: one.bus.cache("c1").get("k2") == b"v2")

        assert results == {"1": ResultCode.QUEUED} and two.bus.cache("c1")["k2"] == b"v2"
        assert [event.key for event in one.of(CacheReplicated)] == ["k2"]
        ((origin, message),) = one.messages
        assert origin == "2" and message.channel == CACHE and json.loads(message.body) == form
        with pytest.raises(ConfigError):
            one.bus.cache("c2")


async def test_contacts_are_published_heard_and_shown():
    async with running(2, usrloc=True) as (one, two):
        await until(lambda: two.gateway.node.membership.links.is_up(1))
        form = {"action": "insert", "domain": "location", "aor": "bob", "contact": "sip:b@c"}

        results = await two.bus.broadcast(CONTACTS, json.dumps(form))
        await until(lambda: one.bus.contacts("bob"))

        assert results == {"1": ResultCode.QUEUED}
        assert one.bus.contacts("bob") == two.bus.contacts("bob")
        (event,) = one.of(LocationReplicated)
        assert (event.action, event.aor, event.contact["contact"]) == ("insert", "bob", "sip:b@c")
    async with running(1) as (alone,):
        with pytest.raises(ConfigError, match="usrloc"):
            alone.bus.contacts("bob")


async def test_a_capability_of_a_script_carries_its_bytes_with_type_and_version():
    async with running(2, capabilities=("ours",)) as (one, two):
        one.bus.set_channels(["ours"])
        await until(lambda: two.gateway.node.capability_state(1, "ours") is not None)

        kind = "application/x-opensips-packet;type=7;version=3"
        results = await two.bus.send("ours", "1", b"\0bytes", content_type=kind)
        await until(lambda: one.messages)

        assert results == {"1": ResultCode.QUEUED}
        ((_, message),) = one.messages
        assert (message.body, message.content_type) == (b"\0bytes", kind)
        (event,) = one.of(PacketReceived)
        assert (event.capability, event.type, event.version) == ("ours", 7, 3)


async def test_tags_and_commands_go_round():
    more: dict[str, Any] = {"sharing_tags": (("vip", False),), "mi_allow": ("reload",)}
    async with running(2, **more) as (one, two):
        one.bus.operate("shtag_set_active", ["vip"])
        one.bus.operate("send_mi", ["2", "reload", "now"])
        one.bus.operate("send_mi", ["2", "kill"])
        await until(lambda: two.of(CommandReceived))
        await until(lambda: two.gateway.node.context.counters.get("commands_refused"))
        two.bus.operate("shtag_set_active", ["vip"])
        await until(lambda: len(one.of(SharingTagChanged)) == 2)

        assert [event.state for event in one.of(SharingTagChanged)] == ["active", "backup"]
        assert [(e.command, e.parameters) for e in two.of(CommandReceived)] == [
            ("reload", ("now",))
        ]
        assert one.bus.operate("list_shtags", []) == [
            {"tag": "vip", "state": "backup", "holder": "2"}
        ]


async def test_a_slow_handler_does_not_delay_pongs_that_are_answered_in_the_reader():
    async with running(2) as (one, two):
        for _ in range(20):
            one.bus.broadcast("generic", b"x" * 60_000)
        with trio.fail_after(PATIENCE):
            await one.bus.broadcast("generic", b"last")
        assert [row.tags["link"] for row in two.bus.members()[1:]] == ["Up"]


async def test_who_leaves_is_seen_to_leave():
    async with running(3) as (one, two, three):
        await three.gateway.leave()
        await until(lambda: two.bus.members()[2].status == "not_active")
        await until(lambda: one.bus.members()[2].status == "not_active")


async def test_a_taken_port_is_said():
    async with running(1) as (one,):
        settings = one.gateway.node.context.settings
        with pytest.raises(BaseExceptionGroup) as caught:
            await OpenSipsGateway("opensips", settings, NoNames()).run()
        assert caught.group_contains(AddressInUse)


async def test_strangers_get_an_answer_on_their_connection_and_nonsense_closes_it():
    async with running(1) as (one,):
        url = one.gateway.node.context.settings.my_node_info.url
        async with await trio.open_tcp_stream(url.host, url.port) as stream:
            frame = encode(Ping(1, 9, True))
            for start in range(0, len(frame), 5):
                await stream.send_all(frame[start : start + 5])
            with trio.fail_after(PATIENCE):
                data = await stream.receive_some(1000)
                frames = FrameReader().receive_data_untrusted(bytes(data))
                assert [decode_untrusted(each) for each in frames] == [UnknownId(1, 1)]
                await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
                with pytest.raises((trio.BrokenResourceError, AssertionError)):
                    assert await stream.receive_some(1000) != b""
        (told,) = one.of(PeerMisbehaved)
        assert told.address == "127.0.0.1" and "marker b'GET '" in told.reason
        assert one.bus.snapshot().counters["malformed"] == 1


async def test_over_tls_both_sides_show_a_certificate(tmp_path: Path):
    pki = Pki(tmp_path)
    section = pki.node("node")
    files = {
        "tls_certificate": section.certificate,
        "tls_key": section.key,
        "tls_ca": section.ca,
    }
    async with running(2, "bins", **files) as (one, two):
        results = await two.bus.broadcast("generic", b"secret")
        await until(lambda: one.messages)
        assert results == {"1": ResultCode.QUEUED}


async def test_every_operation_has_its_arguments_checked():
    async with running(2, cache_collections=("c1",)) as (one, _):
        bus = one.bus

        def neighbours() -> list[object]:
            return [row["neighbours"] for row in bus.operate("list_topology", [])]

        await until(lambda: neighbours() == [[2], [1]])  # the second's is told, not seen
        assert bus.operate("list", [])[0]["link_state"] == "Up"
        assert bus.operate("set_cap_status", [CACHE, "0"]) == {
            "capability": CACHE,
            "enabled": False,
        }
        assert bus.operate("list_cap", [])[0]["node_id"] == 1
        for name, arguments in (
            ("nothing", []),
            ("list", ["x"]),
            ("remove_node", ["x"]),
            ("remove_node", ["77"]),
            ("set_status", ["2", "2"]),
            ("set_cap_status", ["no", "1"]),
            ("cap_sync", ["no"]),
            ("send_mi", ["2"]),
        ):
            with pytest.raises(ConfigError):
                bus.operate(name, arguments)
        assert bus.operate("set_status", ["0"]) == {"node_id": 1, "state": "Disabled"}
        assert bus.survey()["1"]["2"].status == "not_active"
        assert {each.name for each in bus.operations()} >= {"send_mi", "shtag_set_active"}


async def test_a_route_of_a_whole_agent_answers_a_script(tmp_path: Path, nursery: trio.Nursery):
    (tmp_path / "routes.py").write_text(
        "from clusternode import routes\n"
        "@routes.request('generic', via='opensips')\n"
        "def find(request):\n"
        "    return 'found ' + request.text + ' for ' + request.origin\n"
    )
    async with running(1) as (one,):
        own = one.gateway.node.context.settings.my_node_info.url
        (_, port) = ports(2)
        (tmp_path / "node.toml").write_text(
            f"""
            node.id = "n9"
            node.address = "tcp://10.0.0.1:5062"
            node.state_dir = "{tmp_path}"
            node.insecure = true
            routes.file = "routes.py"
            [gateway.opensips]
            cluster_id = 1
            my_node_id = 9
            my_node_info = "cluster_id=1, url=bin:127.0.62.2:{port}"
            neighbor_node_info = ["node_id=1, url={own}"]
            ping_interval = 0.3
            ping_timeout = 0.1
            """
        )
        settings = load_settings(tmp_path / "node.toml", environ={}, overrides={})
        transport = MemoryNetwork().transport("10.0.0.1")
        agent = Agent(settings, transport=transport, has_control=False)
        running_agent = await start(nursery, agent)
        await until(lambda: [row.link for row in one.bus.members()] == ["self", "direct"])

        replies = one.bus.broadcast_request("generic", "alice", timeout=PATIENCE)

        assert [each.text for each in await replies.gather()] == ["found alice for 1"]
        await running_agent.leave()
        await until(lambda: one.bus.members()[1].status == "not_active")


@pytest.mark.slow
async def test_an_operator_tries_his_cluster_in_one_command():
    async with running(1) as (one,):
        own = one.gateway.node.context.settings.my_node_info.url
        (_, port) = ports(2)
        command = [
            sys.executable, str(CHECK), "--cluster", "1", "--node", "9", "--text", "Q:there",
            "--url", f"bin:127.0.62.2:{port}", "--neighbour", f"1={own}", "--seconds", "2",
        ]  # fmt: skip
        with trio.fail_after(PATIENCE):
            ran = await trio.run_process(command, capture_stdout=True)

    assert b"replied in" in ran.stdout and b": A:Q:there" in ran.stdout
    assert ran.stdout.endswith(b"all well\n")
