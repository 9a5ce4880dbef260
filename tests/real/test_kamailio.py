"""Our agent as the fourth node of a bus of three real Kamailios."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from clusternode.bus.interface import Arrivals
from clusternode.bus.interface import Bus as ClusternodeBus
from clusternode.core.effects import Outcome
from clusternode.core.events import NodeStateChanged
from clusternode.core.sip_events import ContactReplicated, HtableReplicated, SipReplicated
from clusternode.core.types import ResultCode
from clusternode.core.wire.messages import Request
from clusternode.gateways.kamailio.bus import KamailioBus
from clusternode.gateways.kamailio.service import KamailioGateway
from clusternode.gateways.kamailio.settings import KamailioSettings
from clusternode.gateways.kamailio.translate import PeerAddress, parse_address
from tests.real.kamailio_bus import (
    Bus,
    Kamailio,
    program,
    stopped_at_the_end,
    until,
    user_agent,
)

pytestmark = pytest.mark.real

OWN = PeerAddress("udp", "127.0.5.4", 5060)
HOSTS = ("127.0.5.1", "127.0.5.2", "127.0.5.3")


def missing() -> None:
    """Skip, or fail where everything must be there, if there is no Kamailio."""
    if program() is None:
        if os.environ.get("CLUSTERNODE_CI"):
            pytest.fail("kamailio is not installed")
        pytest.skip("kamailio is not installed")


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    missing()
    made = Path(tempfile.mkdtemp(prefix="cnk-"))  # short: socket paths have 107 bytes
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def bus(directory: Path) -> Iterator[Bus]:
    nodes = [
        Kamailio(host, directory / host, seed="" if host == HOSTS[0] else f"sip:{HOSTS[0]}:5060")
        for host in HOSTS
    ]
    with stopped_at_the_end(Bus(nodes)) as bus:
        trio.run(bus.start)
        yield bus


@attrs.define(eq=False)
class Taker:
    """Takes what arrives, as the dispatcher of the routes would."""

    messages: list[tuple[str, str, bytes]] = attrs.Factory(list)  # origin, channel, body
    events: list[Any] = attrs.Factory(list)
    answer: Callable[[Arrivals, Any], ResultCode] = lambda arrivals, message: ResultCode.OK

    def arrived(self, arrivals: Arrivals) -> None:
        for ticket, message in arrivals.items:
            channel = getattr(message, "channel", "")
            self.messages.append((arrivals.origin, channel, message.body))
            arrivals.finish([(ticket, self.answer(arrivals, message))])

    def observed(self, bus: ClusternodeBus, event: Any) -> None:
        self.events.append(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@attrs.define(eq=False)
class Joined:
    """A gateway that takes part."""

    bus: KamailioBus
    gateway: KamailioGateway
    taker: Taker
    scope: trio.CancelScope


class NoResolver:
    async def resolve(self, name: Any) -> Any:
        raise AssertionError("no name here needs a look-up")


@asynccontextmanager
async def joined(
    bus: Bus, *, own: PeerAddress = OWN, leaves: bool = False, **more: Any
) -> AsyncIterator[Joined]:
    """Take part in a bus, and end as a process that is killed, or leave.

    After a clean goodbye a Kamailio takes us back with its next own ping only, which costs a test
    five seconds.
    """
    seed = parse_address(bus.seed.uri)
    more.setdefault("htables", {"ht": 3600})
    settings = KamailioSettings(server_address=own, notification_address=(seed,), **more)
    gateway = KamailioGateway("kamailio", settings, NoResolver())
    taker = Taker()
    gateway.bus.attach(taker)
    async with trio.open_nursery() as nursery:
        await nursery.start(gateway.run)
        yield Joined(gateway.bus, gateway, taker, nursery.cancel_scope)
        if leaves:
            with trio.move_on_after(3):
                await gateway.leave()
        nursery.cancel_scope.cancel()


def statuses(node: Joined) -> dict[str, str]:
    return {m.node_id.partition(":")[0]: m.status for m in node.bus.members() if not m.local}


def is_whole(bus: Bus, node: Joined) -> bool:
    """Tell whether all see all."""
    hosts = [*HOSTS, OWN.host]
    ours = statuses(node)
    return all(ours.get(host) == "active" for host in HOSTS) and all(
        each.nodes().get(host) == "active" for each in bus.nodes for host in hosts
    )


def body_of(text: str) -> str:
    return f"{text}:{hashlib.md5(text.encode()).hexdigest()}"


def is_sound(body: bytes) -> bool:
    text, _, checksum = body.decode().partition(":")
    return hashlib.md5(text.encode()).hexdigest() == checksum


def flush(bus: Bus) -> None:
    for node in bus.nodes:
        node.flush("got")


def counts(node: Kamailio) -> tuple[int, int, int]:
    return tuple(node.cell("got", key) or 0 for key in ("count", "distinct", "bad"))  # type: ignore[return-value]


async def test_we_are_active_on_every_node_within_two_seconds_and_leave_at_once(bus):
    async with joined(bus, leaves=True) as node:
        await until(lambda: is_whole(bus, node), 2.0)
    await until(
        lambda: all(each.nodes().get(OWN.host, "disabled") == "disabled" for each in bus.nodes), 1.0
    )


async def test_a_minute_of_pings_changes_nothing(bus):
    async with joined(bus) as node:
        await until(lambda: is_whole(bus, node), 15.0)
        node.taker.events.clear()
        for _ in range(30):
            await trio.sleep(2)
            assert is_whole(bus, node)
        assert node.taker.of(NodeStateChanged) == []
        assert node.bus.snapshot().counters["malformed"] == 0
        assert node.bus.snapshot().counters["send_errors"] == 0


async def test_a_thousand_broadcasts_and_unicasts_of_ours_arrive_once_each(bus):
    async with joined(bus) as node:
        await until(lambda: is_whole(bus, node), 15.0)
        flush(bus)

        broadcasts = [node.bus.broadcast("chan1", body_of(f"ours-{n}")) for n in range(1000)]
        results = Counter([code for each in broadcasts for code in (await each).values()])
        target = bus.nodes[2].node_id
        unicasts = [node.bus.send("chan1", target, body_of(f"one-{n}")) for n in range(1000)]
        answers = Counter([code for each in unicasts for code in (await each).values()])

        assert results == {ResultCode.OK: 3000}
        assert answers == {ResultCode.OK: 1000}
        assert [counts(each) for each in bus.nodes] == [
            (1000, 1000, 0),
            (1000, 1000, 0),
            (2000, 2000, 0),
        ]


async def test_a_thousand_broadcasts_and_unicasts_of_a_kamailio_arrive_once_each(bus):
    async with joined(bus) as node, user_agent() as agent:
        await until(lambda: is_whole(bus, node), 15.0)

        for n in range(10):
            assert await agent.send("MESSAGE", "many", bus.nodes[1], f"theirs{n}".encode()) == 200
            headers = {"X-Node": OWN.uri}
            code = await agent.send(
                "MESSAGE", "manyto", bus.nodes[2], f"direct{n}".encode(), headers=headers
            )
            assert code == 200
        await until(lambda: len(node.taker.messages) >= 2000, 10.0)
        await trio.sleep(1)

        bodies = Counter(body for _, channel, body in node.taker.messages if channel == "chan1")
        origins = Counter(origin for origin, _, _ in node.taker.messages)
        assert len(bodies) == 2000 and set(bodies.values()) == {1}
        assert all(map(is_sound, bodies))
        assert origins == {bus.nodes[1].node_id: 1000, bus.nodes[2].node_id: 1000}


async def test_every_code_of_a_kamailio_is_the_result(bus):
    async with joined(bus) as node:
        await until(lambda: is_whole(bus, node), 15.0)
        first = bus.nodes[0].node_id

        results = {
            channel: (await node.bus.send(channel, first, "x"))[first]
            for channel in ("chan1", "ask", "slow", "nobody")
        }

        assert results == {
            "chan1": ResultCode.OK,
            "ask": ResultCode.QUEUED,
            "slow": ResultCode.BUSY,
            "nobody": ResultCode.NOT_FOUND,
        }
        assert (await node.bus.send("chan1", "127.0.5.9:5060", "x")) == {
            "127.0.5.9:5060": ResultCode.UNAVAILABLE
        }


async def test_a_request_gets_the_sip_answer_of_each_node_as_its_one_reply(bus):
    async with joined(bus) as node:
        await until(lambda: is_whole(bus, node), 15.0)

        replies = node.bus.broadcast_request("ask", "who?", timeout=3)
        found = await replies.gather()
        refused = node.bus.request("nobody", bus.nodes[1].node_id, "who?")
        [refusal] = await refused.gather()

        assert {reply.node_id for reply in found} == {each.node_id for each in bus.nodes}
        assert {(reply.code, reply.reason, reply.body) for reply in found} == {(202, "Maybe", b"")}
        assert {each.outcome for each in replies.outcomes.values()} == {Outcome.REPLIED}
        assert refusal.code == 404
        assert [each.outcome for each in refused.outcomes.values()] == [Outcome.FAILED]


async def test_a_script_asks_us_and_gets_its_reply_on_its_channel(bus):
    def answer(arrivals: Arrivals, message: Any) -> ResultCode:
        if isinstance(message, Request):
            arrivals.bus.reply(arrivals.origin, message.tag, b"at home: " + message.body)
        return ResultCode.OK

    async with joined(bus) as node, user_agent() as agent:
        node.taker.answer = answer
        await until(lambda: is_whole(bus, node), 15.0)
        flush(bus)

        headers = {"X-Chan": "locate", "X-Node": OWN.uri, "X-CT": "text/x-clusternode-request"}
        question = b"tag-7 locate-reply\nalice"
        assert await agent.send("MESSAGE", "ucast", bus.seed, question, headers=headers) == 200

        await until(lambda: bus.seed.cell("got", "reply") is not None, 3.0)
        assert bus.seed.cell("got", "reply") == "tag-7 200\nat home: alice"


async def test_a_shared_table_is_synced_on_join_and_kept_in_step_both_ways(bus):
    async with user_agent() as agent:
        headers = {"X-K": "early"}
        await agent.send("MESSAGE", "htset", bus.nodes[1], b"before us", headers=headers)
        async with joined(bus) as node:
            await until(lambda: is_whole(bus, node), 15.0)
            table = node.bus.htable("ht")
            await until(lambda: table.get("early") == "before us", 6.0)

            await agent.send("MESSAGE", "htset", bus.nodes[2], b"later", headers={"X-K": "k1"})
            await until(lambda: table.get("k1") == "later", 2.0)
            results = await table.set("ours", 'quote " \\ é')
            assert set(results.values()) == {ResultCode.OK} and len(results) == 3
            await table.set("number", 42)
            await table.set("prefix-1", "a")
            await table.set("prefix-2", "b")
            await table.set("re-1", "a")
            assert [each.cell("ht", "ours") for each in bus.nodes] == ['quote " \\ é'] * 3
            assert [each.cell("ht", "number") for each in bus.nodes] == [42] * 3

            await table.remove_prefix("prefix-")
            await table.remove_regex("^re-[0-9]+$")
            await table.delete("number")
            await table.set("short", "x", expire=1)
            for key in ("prefix-1", "prefix-2", "re-1", "number"):
                assert [each.cell("ht", key) for each in bus.nodes] == [None] * 3, key
            assert set(table) == {"early", "k1", "ours", "short"}
            await agent.send("MESSAGE", "htdel", bus.nodes[0], headers={"X-K": "k1"})
            await agent.send("MESSAGE", "htrm", bus.nodes[0], b"^ear")
            await until(lambda: "k1" not in table and "early" not in table, 2.0)
            actions = Counter(event.action for event in node.taker.of(HtableReplicated))
            assert actions["sync"] >= 1 and actions["set"] >= 1
            assert actions["delete"] == 1 and actions["remove_regex"] == 1
            await until(lambda: "short" not in table, 3.0)

        async with joined(bus) as back:  # we have restarted
            await until(lambda: statuses(back).get(HOSTS[0]) == "active", 5.0)
            again = back.bus.htable("ht")
            await until(lambda: again.get("ours") == 'quote " \\ é', 6.0)


async def test_replicated_registers_and_contacts_are_events_and_senders_are_known(bus):
    async with joined(bus) as node, user_agent() as agent:
        await until(lambda: is_whole(bus, node), 15.0)

        contact = {"Contact": "<sip:alice@127.0.0.1:7777>", "Expires": "300"}
        assert await agent.send("REGISTER", "alice", bus.nodes[1], headers=contact) == 200
        assert (
            await agent.send("REGISTER", "bob", bus.nodes[2], from_user="store", headers=contact)
            == 200
        )
        await until(lambda: node.taker.of(SipReplicated) and node.taker.of(ContactReplicated), 3.0)

        [copy] = node.taker.of(SipReplicated)
        assert (copy.method, copy.source) == ("REGISTER", HOSTS[1])
        assert copy.headers["Contact"] == ["<sip:alice@127.0.0.1:7777>"]
        assert len(copy.headers["Via"]) == 2
        stored = node.taker.of(ContactReplicated)[0]
        assert (stored.action, stored.aor) == ("update", "bob")
        assert stored.contact["c"] == "sip:alice@127.0.0.1:7777"
        assert node.bus.is_from_node(HOSTS[0]) and node.bus.is_from_node(f"{HOSTS[1]}:1234")
        assert not node.bus.is_from_node("127.0.0.1")
        async with user_agent(OWN.host) as ours:
            assert await ours.send("MESSAGE", "isnode", bus.seed) == 200
        assert await agent.send("MESSAGE", "isnode", bus.seed) == 404


async def test_a_killed_kamailio_is_seen_and_its_return_too(bus):
    async with joined(bus) as node:
        await until(lambda: is_whole(bus, node), 15.0)
        third = bus.nodes[2]
        await node.bus.htable("ht").set("survives", "yes")

        third.kill()
        seen = await until(lambda: statuses(node)[third.host] != "active", 10.0)
        code = (await node.bus.send("chan1", third.node_id, "x"))[third.node_id]
        third.start()
        back = await until(lambda: statuses(node).get(third.host) == "active", 10.0)

        print(f"killed Kamailio seen after {seen:.1f} s, its return after {back:.1f} s")
        assert code is ResultCode.UNAVAILABLE
        await until(lambda: third.cell("ht", "survives") == "yes", 5.0)
        changes = [
            (each.previous, each.status)
            for each in node.taker.of(NodeStateChanged)
            if each.node_id == third.node_id
        ]
        assert changes[:2] == [("new", "active"), ("active", "not_active")]
        assert changes[-1][1] == "active"
        await until(lambda: is_whole(bus, node), 15.0)


async def test_a_killed_seed_stays_asked_for_and_returns(bus):
    async with joined(bus) as node:
        await until(lambda: is_whole(bus, node), 15.0)

        bus.seed.kill()
        await until(lambda: statuses(node)[bus.seed.host] == "not_active", 10.0)
        others = await node.bus.broadcast("chan1", body_of("without the seed"))
        bus.seed.start()
        await until(lambda: statuses(node)[bus.seed.host] == "active", 10.0)

        assert others[bus.seed.node_id] is ResultCode.UNAVAILABLE
        assert [others[each.node_id] for each in bus.nodes[1:]] == [ResultCode.OK] * 2
        await until(lambda: is_whole(bus, node), 15.0)


async def test_removed_by_an_operator_we_are_back_with_the_next_ping(bus):
    async with joined(bus) as node:
        await until(lambda: is_whole(bus, node), 15.0)

        bus.nodes[1].rpc("dmq.remove", OWN.uri)

        await until(lambda: bus.nodes[1].nodes().get(OWN.host) == "active", 7.0)
        assert is_whole(bus, node)


async def test_sixty_four_kilobytes_pass_both_ways(bus):
    body = ("x" * 63_990 + "0123456789").encode()
    async with joined(bus) as node, user_agent() as agent:
        await until(lambda: is_whole(bus, node), 15.0)
        flush(bus)

        results = await node.bus.broadcast("big", body, content_type="text/plain")
        assert set(results.values()) == {ResultCode.OK}
        for each in bus.nodes:
            assert each.cell("got", "big") == len(body)
            assert each.cell("got", "bigmd5") == hashlib.md5(body).hexdigest()

        headers = {"X-Node": OWN.uri}
        assert await agent.send("MESSAGE", "bigto", bus.seed, body[:60_000], headers=headers) == 200
        await until(lambda: node.taker.messages, 5.0)
        assert node.taker.messages[-1][1:] == ("big", body[:60_000])


async def test_a_flood_of_a_kamailio_is_answered_in_time_and_wedges_nobody(bus):
    seconds, rate = 10, 1000
    async with joined(bus) as node, user_agent() as agent, user_agent() as prober:
        await until(lambda: is_whole(bus, node), 15.0)
        flush(bus)
        ours = os.times()
        theirs = [each.cpu_seconds() for each in bus.nodes]
        probes: Counter[int] = Counter()

        async def probe() -> None:
            while True:
                for each in bus.nodes:
                    code = await prober.send("OPTIONS", "x", each, timeout=2)
                    probes[code] += 1
                await trio.sleep(0.2)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(probe)
            begin = trio.current_time()
            for n in range(seconds * rate // 100):
                code = await agent.send("MESSAGE", "many", bus.seed, f"flood{n}".encode())
                assert code == 200
                await trio.sleep(max(0.0, begin + (n + 1) * 100 / rate - trio.current_time()))
            await until(lambda: len(node.taker.messages) >= seconds * rate, 20.0)
            took = trio.current_time() - begin
            await trio.sleep(1)
            nursery.cancel_scope.cancel()

        bodies = Counter(body for _, _, body in node.taker.messages)
        now = os.times()
        own = now.user + now.system - ours.user - ours.system
        used = [each.cpu_seconds() - before for each, before in zip(bus.nodes, theirs, strict=True)]
        print(
            f"{seconds * rate} messages in {took:.1f} s; CPU-s per 10 000 deliveries: gateway "
            f"{own:.2f} (with the test itself), Kamailio as sender {used[0] / 3:.2f} each of "
            f"three, as receiver {used[1]:.2f} and {used[2]:.2f}; duplicates dropped "
            f"{node.gateway.node.duplicates}"
        )
        assert len(bodies) == seconds * rate and set(bodies.values()) == {1}
        assert set(probes) == {200}
        assert is_whole(bus, node)
        assert [counts(each)[1] for each in bus.nodes[1:]] == [seconds * rate] * 2
