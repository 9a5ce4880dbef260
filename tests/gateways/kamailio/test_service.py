"""The gateway as a `Bus`, beside simulated Kamailios on a network in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import attrs
import pytest
import trio

from clusternode.bus.interface import Arrivals
from clusternode.core.effects import Outcome
from clusternode.core.events import Joined, NodeStateChanged, PeerUp
from clusternode.core.sip_events import SipReplicated
from clusternode.core.types import ResultCode
from clusternode.core.wire.messages import Request
from clusternode.errors import BodyTooLarge, ConfigError, NoSuchNode
from clusternode.gateways.kamailio.codec import (
    Identity,
    SipRequest,
    encode_request,
    parse_untrusted,
)
from clusternode.gateways.kamailio.effects import Answer, Effect, Send, Source
from clusternode.gateways.kamailio.names import NAMES_MAX, Names
from clusternode.gateways.kamailio.network import Received, SendFailed
from clusternode.gateways.kamailio.peer import SimulatedKamailio
from clusternode.gateways.kamailio.service import KamailioGateway
from clusternode.gateways.kamailio.settings import KamailioSettings
from clusternode.gateways.kamailio.translate import NamedAddress, PeerAddress

OURS = PeerAddress("udp", "10.0.0.9", 5060)
KAMAILIOS = [PeerAddress("udp", f"10.0.0.{number}", 5060) for number in (1, 2, 3)]


@attrs.define(eq=False)
class MemoryNetwork:
    """Carries datagrams between one gateway and simulated Kamailios, in no time."""

    nodes: dict[str, SimulatedKamailio] = attrs.Factory(dict)
    is_broken: bool = False
    received: Received | None = None
    send_failed: SendFailed | None = None
    answers: list[bytes] = attrs.Factory(list)
    _posts: Any = None

    async def run(
        self,
        received: Received,
        send_failed: SendFailed,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        self.received, self.send_failed = received, send_failed
        self._posts, posts = trio.open_memory_channel[Any](10_000)
        task_status.started()
        async with posts, self._posts, trio.open_nursery() as nursery:
            for node in self.nodes.values():
                nursery.start_soon(self._keep_time, node)
            async for sender, to, data in posts:
                if to == OURS.host:
                    received(data, Source(sender, 5060))
                elif to in self.nodes:
                    node = self.nodes[to]
                    self.carry(to, node.receive(trio.current_time(), data, Source(sender, 5060)))

    async def _keep_time(self, node: SimulatedKamailio) -> None:
        self.carry(node.own.host, node.start(trio.current_time()))
        while self.nodes.get(node.own.host) is node:
            await trio.sleep_until(max(node.next_deadline(), trio.current_time() + 0.01))
            if self.nodes.get(node.own.host) is node:
                self.carry(node.own.host, node.tick(trio.current_time()))

    def carry(self, host: str, wanted: list[Effect]) -> None:
        for effect in wanted:
            if isinstance(effect, Send):
                self._posts.send_nowait((host, effect.address.host, effect.data))
            elif isinstance(effect, Answer):
                self._posts.send_nowait((host, effect.to.host, effect.data))

    def send(self, address: PeerAddress, data: bytes, branch: str) -> None:
        if self.is_broken:
            assert self.send_failed is not None
            self.send_failed(branch)
        else:
            self._posts.send_nowait((OURS.host, address.host, data))

    def answer(self, to: Source, data: bytes) -> None:
        self.answers.append(data)
        self._posts.send_nowait((OURS.host, to.host, data))


class NamesResolver:
    async def resolve(self, name: Any) -> Any:
        raise AssertionError("no names here")


@attrs.define(eq=False)
class Taker:
    messages: list[Any] = attrs.Factory(list)
    events: list[Any] = attrs.Factory(list)
    code: ResultCode = ResultCode.OK

    def arrived(self, arrivals: Arrivals) -> None:
        for ticket, message in arrivals.items:
            self.messages.append((arrivals.origin, message))
            if isinstance(message, Request):
                arrivals.bus.reply(arrivals.origin, message.tag, b"answer")
            arrivals.finish([(ticket, self.code)])

    def observed(self, bus: Any, event: Any) -> None:
        self.events.append(event)


@asynccontextmanager
async def running(**more: Any) -> AsyncIterator[tuple[KamailioGateway, MemoryNetwork, Taker]]:
    network = MemoryNetwork()
    for address in KAMAILIOS:
        seeds = () if address == KAMAILIOS[0] else (KAMAILIOS[0],)
        now = trio.current_time()
        network.nodes[address.host] = SimulatedKamailio(
            address, seeds, now, Random(address.host), channels=("chan", "replies", "htable")
        )
    settings = KamailioSettings(
        server_address=OURS,
        notification_address=(NamedAddress("udp", KAMAILIOS[0].host, 5060),),
        htables={"ht": 60},
        **more,
    )
    gateway = KamailioGateway("kamailio", settings, NamesResolver(), network=network)
    taker = Taker()
    gateway.bus.attach(taker)
    gateway.bus.set_channels(["chan"])
    async with trio.open_nursery() as nursery:
        await nursery.start(gateway.run)
        await trio.sleep(12)
        yield gateway, network, taker
        nursery.cancel_scope.cancel()


def kdmq(channel: str, body: bytes, content_type: str = "text/plain") -> bytes:
    """A message of the first Kamailio to us."""
    return encode_request(
        Identity(KAMAILIOS[0].host, 5060, "udp", "test"),
        channel=channel,
        to=OURS.target,
        branch=f"z9hG4bK{hash((channel, body)) & 0xFFFFFF:x}",
        tag="t",
        call_id=f"{hash(body)}",
        max_forwards=1,
        content_type=content_type,
        body=body,
    )


async def test_members_events_and_rows(autojump_clock):
    async with running() as (gateway, _, taker):
        bus = gateway.bus
        rows = bus.members()

        assert [row.node_id for row in rows] == [
            OURS.node_id, *(each.node_id for each in KAMAILIOS),
        ]  # fmt: skip
        assert {row.status for row in rows} == {"active"}
        assert [row.notification for row in rows] == [False, True, False, False]
        assert sum(isinstance(event, PeerUp) for event in taker.events) == 3
        assert sum(isinstance(event, Joined) for event in taker.events) == 1
        assert bus.rank("chan") == (3, 4) and bus.rank("other") is None
        assert bus.is_from_node("10.0.0.2:999") and not bus.is_from_node("10.0.0.9")
        snapshot = bus.snapshot()
        assert snapshot.addresses[0].state == "connected"
        assert snapshot.addresses[0].address == KAMAILIOS[0].uri
        assert snapshot.addresses[0].failures is None  # nobody counts them
        assert snapshot.counters["malformed"] == 0


async def test_broadcast_send_and_requests(autojump_clock):
    async with running() as (gateway, network, _):
        bus = gateway.bus
        seen: list[tuple[str, ResultCode]] = []

        results = await bus.broadcast(
            "chan", "x", except_=["10.0.0.3:5060"], on_result=lambda *each: seen.append(each)
        )
        missing = await bus.broadcast("nobody", b"x")
        own = await bus.send("chan", OURS.node_id, "to myself")
        replies = bus.broadcast_request("nobody", "x")
        found = await replies.gather()

        assert results == {"10.0.0.1:5060": 200, "10.0.0.2:5060": 200}
        assert sorted(seen) == sorted(results.items())
        assert set(missing.values()) == {ResultCode.NOT_FOUND} and len(missing) == 3
        assert own == {OURS.node_id: ResultCode.OK}
        assert [(reply.code, reply.reason) for reply in found] == [(404, "User Not Found")] * 3
        assert {each.outcome for each in replies.outcomes.values()} == {Outcome.FAILED}
        assert network.nodes["10.0.0.1"].received[-1][1:] == ("chan", b"x")
        assert await bus.broadcast("chan", "x", except_=[each.node_id for each in KAMAILIOS]) == {}


async def test_what_cannot_be_sent_is_refused(autojump_clock):
    async with running() as (gateway, _, _):
        bus = gateway.bus

        with pytest.raises(ConfigError, match="notification"):
            bus.broadcast("notification_peer", "sip:x")
        with pytest.raises(ConfigError):
            bus.broadcast("no name", "x")
        with pytest.raises(BodyTooLarge):
            bus.broadcast("chan", b"x" * 64_501)
        with pytest.raises(ConfigError):
            bus.broadcast("chan", "x", content_type="a\r\nb")
        with pytest.raises(ConfigError):
            bus.htable("unknown")
        with pytest.raises(NoSuchNode):
            bus.remove("10.0.0.77:5060")
        with pytest.raises(ConfigError):
            bus.change_status("10.0.0.1:5060", "asleep")
        with pytest.raises(ConfigError):
            bus.add("tcp://name:1")


async def test_a_killed_node_goes_and_returns(autojump_clock, caplog):
    caplog.set_level("INFO")
    async with running() as (gateway, network, taker):
        killed = network.nodes.pop("10.0.0.3")
        late = gateway.bus.send("chan", "10.0.0.3:5060", "x")
        await trio.sleep(10)
        code = await gateway.bus.send("chan", "10.0.0.3:5060", "x")
        await trio.sleep(20)

        statuses = [
            event.status
            for event in taker.events
            if isinstance(event, NodeStateChanged) and event.node_id == "10.0.0.3:5060"
        ]
        assert statuses == ["active", "not_active", "disabled", "removed"]
        assert "10.0.0.3:5060: active -> not_active" in caplog.text
        assert await late == {"10.0.0.3:5060": ResultCode.TIMEOUT}
        assert code == {"10.0.0.3:5060": ResultCode.UNAVAILABLE}
        network.nodes["10.0.0.3"] = killed
        gateway.bus.add("sip:10.0.0.3:5060")
        await trio.sleep(1)
        assert "10.0.0.3:5060" in [member.node_id for member in gateway.bus.members()]


async def test_what_the_kernel_does_not_take_fails_as_a_node_that_is_gone(autojump_clock):
    async with running() as (gateway, network, _):
        network.is_broken = True
        result = await gateway.bus.send("chan", "10.0.0.2:5060", "x")
        await trio.sleep(10)

        assert result == {"10.0.0.2:5060": ResultCode.UNAVAILABLE}  # it never left this host
        assert {m.status for m in gateway.bus.members() if not m.local} <= {
            "not_active", "disabled",
        }  # fmt: skip
        assert gateway.bus.snapshot().counters["send_errors"] > 0


async def test_a_script_asks_and_is_answered_on_its_channel(autojump_clock):
    async with running() as (gateway, network, _):
        assert network.received is not None
        data = kdmq("chan", b"tag1 replies\nquestion", "text/x-clusternode-request")
        network.received(data, Source("10.0.0.1", 5060))
        await trio.sleep(1)
        network.received(data, Source("10.0.0.1", 5060))  # a copy

        heard = [each[1:] for each in network.nodes["10.0.0.1"].received]
        assert [each for each in heard if each[0] == "replies"] == [
            ("replies", b"tag1 200\nanswer")
        ]
        late = await gateway.bus.reply("10.0.0.1:5060", "other", "x")
        assert late == {"10.0.0.1:5060": ResultCode.NOT_FOUND}


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (ResultCode.OK, b"SIP/2.0 200 OK"),
        (ResultCode.QUEUED, b"SIP/2.0 202 Accepted"),
        (ResultCode.BUSY, b"SIP/2.0 486 Busy Here"),
        (ResultCode.TIMEOUT, b"SIP/2.0 500 Server Internal Error"),
    ],
)
async def test_the_result_of_the_handler_is_the_answer_without_a_body(autojump_clock, code, line):
    async with running() as (_, network, taker):
        taker.code = code
        assert network.received is not None
        network.received(kdmq("chan", b"x"), Source("10.0.0.1", 5060))

        assert network.answers[-1].startswith(line)
        assert network.answers[-1].endswith(b"Content-Length: 0\r\n\r\n")


async def test_strangers_are_refused_and_copies_of_nodes_are_events(autojump_clock):
    register = (
        b"REGISTER sip:example.org SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.1;branch=z9hG4bK77\r\n"
        b"From: <sip:a@b>;tag=1\r\nTo: <sip:a@b>\r\nCall-ID: r\r\nCSeq: 1 REGISTER\r\n\r\n"
    )
    async with running() as (_, network, taker):
        assert network.received is not None
        network.received(kdmq("chan", b"spoofed"), Source("192.0.2.1", 5060))
        assert network.answers[-1].startswith(b"SIP/2.0 403")
        network.received(register, Source("192.0.2.1", 5060))
        assert network.answers[-1].startswith(b"SIP/2.0 403")
        network.received(register.replace(b"77", b"78"), Source("10.0.0.1", 5060))
        assert network.answers[-1].startswith(b"SIP/2.0 200")

        assert [event.method for event in taker.events if isinstance(event, SipReplicated)] == [
            "REGISTER"
        ]
        assert taker.messages == []


async def test_a_table_is_written_to_all_and_dumped_for_who_asks(autojump_clock):
    async with running() as (gateway, network, _):
        table = gateway.bus.htable("ht")
        results = await table.set("k", "v", expire=30)
        assert set(results.values()) == {ResultCode.OK}
        assert dict(table) == {"k": "v"} and len(table) == 1
        assert network.received is not None
        network.received(kdmq("htable", b'{"action":1}'), Source("10.0.0.1", 5060))
        await trio.sleep(0.1)

        dumped = json.loads(network.nodes["10.0.0.1"].received[-1][2])
        assert [(cell["cname"], cell["strval"]) for cell in dumped["cells"]] == [("k", "v")]
        network.received(kdmq("htable", b"nonsense"), Source("10.0.0.1", 5060))
        assert network.answers[-1].startswith(b"SIP/2.0 400")
        await trio.sleep(31)
        assert "k" not in table


async def test_leaving_tells_each_node_and_answers_no_ping_any_more(autojump_clock):
    async with running() as (gateway, network, _):
        await gateway.leave()
        network.answers.clear()
        await trio.sleep(4)

        assert {node.statuses[OURS] for node in network.nodes.values()} == {"disabled"}
        assert network.answers == []
        assert (await gateway.bus.broadcast("chan", "x")) == {
            each.node_id: ResultCode.UNAVAILABLE for each in KAMAILIOS
        }


async def test_removed_and_changed_by_hand_a_node_returns(autojump_clock):
    async with running() as (gateway, _, _):
        bus = gateway.bus
        bus.remove("10.0.0.2:5060")
        assert "10.0.0.2:5060" not in [member.node_id for member in bus.members()]
        bus.change_status("10.0.0.3:5060", "disabled")
        await trio.sleep(11)

        assert [member.status for member in bus.members()] == ["active"] * 4


def test_a_recorded_request_has_a_key_of_its_own():
    request = parse_untrusted(kdmq("chan", b"x"))

    assert isinstance(request, SipRequest)
    assert request.key == (request.via.value, request.call_id, "10 KDMQ")


async def test_a_forged_goodbye_lasts_until_the_next_answer(autojump_clock):
    async with running() as (gateway, network, _):
        assert network.received is not None
        line = f"{KAMAILIOS[0].uri};status=disabled\r\n".encode()
        network.received(kdmq("notification_peer", line), Source("10.0.0.1", 5060))
        assert gateway.bus.members()[1].status == "left"
        await trio.sleep(0.1)

        assert gateway.bus.members()[1].status == "active"


def test_names_of_strangers_do_not_push_out_those_that_work_nor_flood_the_dns():
    wanted: list[Effect] = []
    settings = KamailioSettings(server_address=OURS)
    names = Names("kamailio", settings, wanted, lambda now, address: None)
    known = NamedAddress("udp", "kam.example.org", 5060)
    names.address_of(0.0, known)
    names.resolved(0.0, known, [KAMAILIOS[1]])
    for number in range(500):
        assert names.address_of(0.0, NamedAddress("udp", f"x{number}.example.org", 5060)) is None

    assert len(wanted) <= NAMES_MAX
    names.tick(5.0)
    late = NamedAddress("udp", "late.example.org", 5060)
    names.address_of(5.0, late)
    names.resolved(5.0, late, [KAMAILIOS[2]])
    assert names.address_of(5.0, late) == KAMAILIOS[2]
    assert names.address_of(5.0, known) == KAMAILIOS[1]


async def test_a_callback_that_wants_to_exit_ends_nothing(autojump_clock):
    def leave(*_: object) -> None:
        raise SystemExit(3)

    async with running() as (gateway, _, _):
        first = await gateway.bus.broadcast("chan", "x", on_result=leave)

        assert set(first.values()) == {ResultCode.OK}
        assert set((await gateway.bus.broadcast("chan", "y")).values()) == {ResultCode.OK}


async def test_a_copy_is_never_replicated_again(autojump_clock):
    async with running() as (gateway, _, _):
        bus = gateway.bus

        assert bus.replicate("chan", "x", replicated=True, skip_loop_test=True) is None
        assert bus.replicate("chan", "x", source="10.0.0.1") is None
        original = bus.replicate("chan", "x", source="10.0.0.1", skip_loop_test=True)

        assert original is not None and set((await original).values()) == {ResultCode.OK}
