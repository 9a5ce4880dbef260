"""Whole agents on a network in memory and a virtual clock."""

import os

import attrs
import pytest
import trio

from clusternode.agent import Agent
from clusternode.config import ChannelSection, ExecRoute
from clusternode.core.effects import Outcome
from clusternode.core.settings import HealthSettings
from clusternode.core.types import ChannelName, ResultCode
from clusternode.errors import (
    AddressInUse,
    ConfigError,
    DuplicateNodeId,
    NoSuchNode,
    RouteError,
    StateError,
)
from clusternode.testing.fakes import FakeResolver, NotingReceiver
from clusternode.testing.memory_transport import MemoryNetwork
from tests.agents import SEED, agent_settings, cluster_of, eventually, host_of, start

ROUTES = """
from clusternode import routes

@routes.request("locate")
async def locate(request):
    await request.reply("here")

@routes.message("news")
def news(message):
    pass
"""


def listen(running, *channels):
    receiver = NotingReceiver()
    running.bus.attach(receiver)
    running.bus.set_channels(channels)
    return receiver


async def listening_cluster_knows(cluster, channel):
    await eventually(
        lambda: all(
            channel in member.channels
            for node in cluster.nodes.values()
            for member in node.bus.members()
        )
    )


async def test_three_agents_find_each_other(autojump_clock):
    async with cluster_of(3) as cluster:
        for node in cluster.nodes.values():
            assert node.bus.members()[0].local
            assert {member.link for member in node.bus.members()} == {"self", "direct"}


async def test_a_broadcast_has_one_result_for_each_destination(autojump_clock):
    async with cluster_of(3) as cluster:
        receivers = [listen(node, "news") for node in cluster.nodes.values()]
        await listening_cluster_knows(cluster, "news")
        told = []

        results = await cluster.nodes["n1"].bus.broadcast(
            "news", "flash", on_result=lambda node_id, code: told.append((node_id, code))
        )

        assert results == {"n2": ResultCode.OK, "n3": ResultCode.OK}
        assert sorted(told) == sorted(results.items())
        assert [len(receiver.messages) for receiver in receivers] == [0, 1, 1]
        origin, message = receivers[1].messages[0]
        assert (origin, message.body, message.content_type) == ("n1", b"flash", "text/plain")


async def test_a_message_to_where_nobody_listens_is_404(autojump_clock):
    async with cluster_of(2) as cluster:
        results = await cluster.nodes["n1"].bus.send("nothing", "n2", b"x")

        assert results == {"n2": ResultCode.NOT_FOUND}


async def test_a_request_gathers_the_replies_of_all(autojump_clock):
    async with cluster_of(3) as cluster:
        for node in cluster.nodes.values():
            receiver = listen(node, "who")
            receiver.answer = lambda request, name=node.agent.node_id: (
                name.encode() if name != "n3" else None
            )
        await listening_cluster_knows(cluster, "who")

        replies = cluster.nodes["n1"].bus.broadcast_request("who", b"?", include_self=True)
        gathered = await replies.gather()

        assert sorted((reply.node_id, reply.text) for reply in gathered) == [
            ("n1", "n1"),
            ("n2", "n2"),
        ]
        assert {node_id: outcome.outcome for node_id, outcome in replies.outcomes.items()} == {
            "n1": Outcome.REPLIED,
            "n2": Outcome.REPLIED,
            "n3": Outcome.NOTHING,
        }


async def test_a_request_that_nobody_answers_ends_at_its_timeout(autojump_clock):
    async with cluster_of(2) as cluster:
        receiver = listen(cluster.nodes["n2"], "who")
        receiver.code = None
        began = trio.current_time()

        replies = cluster.nodes["n1"].bus.request("who", "n2", b"?", timeout=3.0)
        gathered = await replies.gather()

        assert gathered == []
        assert trio.current_time() - began == pytest.approx(3.0)
        assert replies.outcomes["n2"].outcome is Outcome.UNANSWERED


async def test_the_first_reply_closes_the_request(autojump_clock):
    async with cluster_of(3) as cluster:
        for name in ("n2", "n3"):
            listen(cluster.nodes[name], "who").answer = lambda request: b"me"

        bus = cluster.nodes["n1"].bus
        reply = await bus.broadcast_request("who", b"?", tag="once").first()

        assert reply is not None
        assert reply.body == b"me"
        assert await bus.broadcast_request("who", b"?", tag="once").first()  # the tag is free


async def test_a_killed_agent_is_not_active_at_once_then_removed_then_back(autojump_clock):
    async with cluster_of(3, health=HealthSettings(ping_interval=1.0, ping_timeout=0.5)) as cluster:
        n2 = cluster.nodes["n2"]
        killed_at = trio.current_time()

        await cluster.nodes.pop("n3").kill()
        await eventually(lambda: n2.statuses().get("n3") == "not_active")
        noticed_after = trio.current_time() - killed_at
        results = await n2.bus.send("news", "n3", b"x")
        await eventually(lambda: "n3" not in n2.statuses())
        await cluster.add("n3")
        await cluster.everyone_active()

        assert noticed_after < 0.5
        assert results == {"n3": ResultCode.UNAVAILABLE}


async def test_an_agent_that_stops_is_shown_as_left(autojump_clock):
    async with cluster_of(3) as cluster:
        began = trio.current_time()

        await cluster.nodes["n3"].leave()

        assert trio.current_time() - began < 1.0
        assert cluster.nodes["n1"].statuses()["n3"] == "left"
        assert cluster.nodes["n2"].statuses()["n3"] == "left"


async def test_a_connection_that_breaks_is_made_again_and_changes_nothing(autojump_clock):
    async with cluster_of(2) as cluster:
        events = listen(cluster.nodes["n1"]).events
        dialed = cluster.network.dialed

        cluster.network.reset(host_of("n1"), host_of("n2"))
        await eventually(lambda: cluster.network.dialed > dialed)
        await trio.sleep(20)

        assert cluster.nodes["n1"].statuses() == {"n1": "active", "n2": "active"}
        assert [event for event in events if event.ALIAS == "node:state"] == []


async def test_a_cut_link_is_noticed_and_heals(autojump_clock):
    async with cluster_of(2) as cluster:
        cluster.network.cut(host_of("n1"), host_of("n2"))
        await eventually(lambda: cluster.nodes["n1"].statuses()["n2"] == "not_active")

        cluster.network.heal(host_of("n1"), host_of("n2"))

        await cluster.everyone_active()


async def test_a_removed_member_that_lives_comes_back(autojump_clock):
    async with cluster_of(2) as cluster:
        bus = cluster.nodes["n1"].bus

        bus.remove("n2")

        await cluster.everyone_active()
        with pytest.raises(NoSuchNode):
            bus.remove("n1")
        with pytest.raises(NoSuchNode):
            bus.remove("stranger")


async def test_an_added_address_joins_two_clusters_of_one(autojump_clock):
    async with cluster_of(1) as cluster:
        await cluster.add("n2", seeds=[])
        assert cluster.nodes["n2"].statuses() == {"n2": "active"}

        cluster.nodes["n2"].bus.add(SEED)

        await cluster.everyone_active()


async def test_ranks_are_different_and_count_those_who_listen(autojump_clock):
    async with cluster_of(3) as cluster:
        for name in ("n1", "n3"):
            listen(cluster.nodes[name], "work")
        bus = cluster.nodes["n3"].bus
        await eventually(lambda: bus.rank("work") == (1, 2))

        assert cluster.nodes["n1"].bus.rank("work") == (0, 2)
        assert cluster.nodes["n2"].bus.rank("work") is None


async def test_several_clusters_share_one_listener(autojump_clock):
    async with cluster_of(2, clusters=("voip", "billing")) as cluster:
        billing = [node.agent.buses["billing"] for node in cluster.nodes.values()]

        await eventually(lambda: all(len(bus.members()) == 2 for bus in billing))
        results = await billing[0].broadcast("x", b"")

        assert results == {"n2": ResultCode.NOT_FOUND}


async def test_routes_answer_requests_and_are_told_to_the_others(autojump_clock, tmp_path):
    file = tmp_path / "routes.py"
    file.write_text(ROUTES)
    async with cluster_of(2, routes=file) as cluster:
        bus = cluster.nodes["n1"].bus

        reply = await bus.request("locate", "n2", "alice").first()

        assert reply is not None
        assert reply.text == "here"
        assert bus.members()[1].channels == ("locate", "news")
        assert (await bus.broadcast("news", b"x")) == {"n2": ResultCode.OK}


async def test_the_event_of_a_reply_names_the_channel_even_after_the_request_has_ended(
    autojump_clock, tmp_path
):
    file = tmp_path / "routes.py"
    file.write_text(ROUTES)
    async with cluster_of(2, routes=file) as cluster:
        agent = cluster.nodes["n1"].agent
        with agent.events.subscribe("E_CLUSTERER_RPL_RECEIVED") as stream:
            await agent.buses["voip"].request("locate", "n2", "alice", tag="t-1").gather()
            event = await stream.get()

        assert event.parameters["channel"] == "locate"
        assert event.parameters["tag"] == "t-1"


async def test_a_reload_swaps_the_routes_or_leaves_them(autojump_clock, tmp_path):
    file = tmp_path / "routes.py"
    file.write_text(ROUTES)
    async with cluster_of(1, routes=file) as cluster:
        agent = cluster.nodes["n1"].agent
        file.write_text("nonsense(")
        with pytest.raises(RouteError):
            await agent.reload()
        assert agent.buses["voip"].rank("locate") == (0, 1)

        file.write_text(ROUTES.replace("locate", "find"))
        said = await agent.reload()

        assert said == "2 routes"
        assert agent.buses["voip"].rank("find") == (0, 1)
        assert agent.buses["voip"].rank("locate") is None


async def test_a_reload_names_what_waits_for_a_restart(autojump_clock, nursery):
    first = agent_settings("n1", "tcp://10.0.0.1:5062")
    section = first.clusters["voip"]
    settings = [first]
    agent = Agent(
        first,
        transport=MemoryNetwork().transport("10.0.0.1"),
        resolver=FakeResolver(),
        reload_settings=lambda: settings[0],
        has_control=False,
    )
    running = await start(nursery, agent)
    assert await agent.reload() == "0 routes"

    slower = attrs.evolve(section, health=HealthSettings(ping_interval=7.0), tags={"role": "x"})
    channels = {ChannelName("news"): ChannelSection(publish=("n2",), queue_size=5)}
    settings[0] = attrs.evolve(
        first, priority=7, clusters={"voip": slower}, log_level="debug", channels=channels
    )
    said = await agent.reload()

    waiting = "cluster.voip.health.ping_interval, channel.news.queue_size, log.level"
    assert said == f"0 routes; a restart is needed for {waiting}"
    assert await agent.reload() == said
    assert agent.buses["voip"].members()[0].tags == {"role": "x"}
    await running.leave()


async def test_a_reload_swaps_the_executables_or_leaves_them(autojump_clock, nursery):
    settings = [agent_settings("n1", "tcp://10.0.0.1:5062")]
    agent = Agent(
        settings[0],
        transport=MemoryNetwork().transport("10.0.0.1"),
        resolver=FakeResolver(),
        reload_settings=lambda: settings[0],
        has_control=False,
    )
    running = await start(nursery, agent)

    settings[0] = attrs.evolve(
        settings[0], exec_routes=(ExecRoute(on="request:locate", exec=("true",)),)
    )
    assert await agent.reload() == "1 route"
    settings[0] = attrs.evolve(settings[0], exec_routes=(ExecRoute(on="locate", exec=("true",)),))
    with pytest.raises(RouteError):
        await agent.reload()
    settings[0] = attrs.evolve(settings[0], exec_routes=())
    assert [route["name"] for route in agent.route_stats()] == ["request:locate true"]
    assert await agent.reload() == "0 routes"
    await running.leave()


async def test_members_are_remembered_when_every_notification_address_is_gone(
    autojump_clock, tmp_path
):
    async with cluster_of(1) as cluster:
        await cluster.add("n2", state_dir=tmp_path / "n2")
        await cluster.everyone_active()
        await trio.sleep(10)
        before = cluster.nodes["n2"].bus.members()[0].incarnation
        await cluster.nodes["n2"].leave()

        again = await cluster.add("n2", seeds=[], state_dir=tmp_path / "n2")

        await cluster.everyone_active()
        assert again.bus.members()[0].incarnation > before


async def test_two_agents_cannot_share_a_state_directory(autojump_clock, tmp_path):
    async with cluster_of(1, state_dir=tmp_path) as cluster:
        twin = Agent(
            agent_settings("n2", "tcp://10.0.0.2:5062", state_dir=tmp_path),
            transport=cluster.network.transport(host_of("n2")),
            has_control=False,
        )

        with pytest.raises(StateError, match=f"is used by process {os.getpid()}"):
            await twin.run()


async def test_a_second_agent_with_the_same_node_id_says_so_and_ends(autojump_clock):
    async with cluster_of(2) as cluster:
        twin = Agent(
            agent_settings("n2", "tcp://10.0.0.9:5062", [SEED]),
            transport=cluster.network.transport("10.0.0.9"),
            resolver=cluster.resolver,
            has_control=False,
        )

        with trio.fail_after(60), pytest.raises(DuplicateNodeId, match="n2"):
            await twin.run()

        assert cluster.nodes["n1"].statuses() == {"n1": "active", "n2": "active"}


async def test_an_address_in_use_is_an_error_of_its_own(autojump_clock):
    async with cluster_of(1) as cluster:
        twin = Agent(
            agent_settings("n2", SEED),
            transport=cluster.network.transport(host_of("n1")),
            has_control=False,
        )

        with pytest.raises(AddressInUse, match=r"10\.0\.0\.1:5062"):
            await twin.run()


async def test_without_insecure_only_loopback_is_allowed():
    agent = Agent(agent_settings("n1", "tcp://0.0.0.0:5062", insecure=False), has_control=False)

    with pytest.raises(ConfigError, match=r"node\.listen.*insecure = true"):
        await agent.run()


async def test_agents_talk_over_tcp():
    def agent_at(node_id, seeds):
        settings = agent_settings(node_id, "tcp://127.0.0.1:0", seeds, insecure=False)
        return Agent(settings, has_control=False)

    async with trio.open_nursery() as nursery:
        first = await start(nursery, agent_at("n1", []))
        seed = first.bus.members()[0].address
        second = await start(nursery, agent_at("n2", [seed]))
        wanted = {"n1": "active", "n2": "active"}
        await eventually(lambda: first.statuses() == second.statuses() == wanted)
        receiver = listen(first, "news")

        results = await second.bus.broadcast("news", b"x" * 100_000)
        await second.leave()

        assert results == {"n1": ResultCode.OK}
        assert receiver.messages[0][1].body == b"x" * 100_000
        assert first.bus.is_from_node("127.0.0.1:5060")
        assert first.statuses()["n2"] == "left"
        await first.leave()
