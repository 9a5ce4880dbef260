"""Who may publish to a channel and ask it."""

import attrs
import pytest

from clusternode.config import ChannelSection
from clusternode.core.types import ChannelName, NodeId
from clusternode.routes.permissions import rule_of
from tests.agents import Cluster, agent_settings, cluster_of, eventually

ROUTES = """
from clusternode import routes

@routes.message("fraud")
def fraud(message): pass

@routes.request("locate")
async def locate(request):
    await request.reply(b"here")
"""


@pytest.fixture
def routes(tmp_path):
    path = tmp_path / "routes.py"
    path.write_text(ROUTES)
    return path


@pytest.mark.parametrize(
    ("entries", "node_id", "tags", "allowed"),
    [
        (("n2",), "n2", {}, True),
        (("n2",), "n22", {}, False),
        (("role=registrar",), "n9", {"role": "registrar"}, True),
        (("role=registrar",), "n9", {"role": "registrar2"}, False),
        (("role=registrar",), "role=registrar", {}, False),
        (("role=",), "n9", {"role": ""}, True),
        (("a=b=c",), "n9", {"a": "b=c"}, True),
        (("n2", "site=fra"), "n9", {"site": "fra"}, True),
        ((), "n2", {"role": "registrar"}, False),
    ],
)
def test_a_rule_is_about_ids_and_tags(entries, node_id, tags, allowed):
    rule = rule_of(entries)

    assert rule is not None and rule.allows(NodeId(node_id), lambda: tags) is allowed


def test_a_star_is_no_rule():
    assert rule_of(("*",)) is rule_of(("n1", "*")) is None


async def cluster_with(cluster: Cluster, routes, **rules):
    """n1 has the rules; n2 is a registrar, n3 is nothing."""
    channel = ChannelSection(**rules)
    await cluster.add(
        "n1",
        routes=routes,
        channels={ChannelName("fraud"): channel, ChannelName("locate"): channel},
    )
    await cluster.add("n2", tags={"role": "registrar"})
    await cluster.add("n3")
    await cluster.everyone_active()


async def ask(running):
    replies = running.bus.request("locate", "n1", b"alice", timeout=5.0)
    async with replies:
        await replies.gather()
    return int(replies.outcomes[NodeId("n1")].code)


async def send(running):
    return int((await running.bus.send("fraud", "n1", b"x"))["n1"])


async def test_a_node_that_may_not_gets_403_and_is_counted_and_logged_once(
    autojump_clock, routes, caplog
):
    async with cluster_of(0) as cluster:
        await cluster_with(cluster, routes, publish=("role=registrar",), ask=("n3",))
        n1, n2, n3 = (cluster.nodes[name] for name in ("n1", "n2", "n3"))

        assert (await send(n2), await send(n3), await send(n3)) == (200, 403, 403)
        assert (await ask(n2), await ask(n3)) == (403, 200)
        assert await send(n1) == 200  # to itself a node may always send
        assert n1.bus.snapshot().counters["messages_forbidden"] == 3
        lines = [line for line in caplog.messages if "may not" in line]
        assert len(lines) == 2
        assert any("node n3 may not publish to channel fraud" in line for line in lines)


async def test_everyone_may_by_default_and_nobody_where_the_list_is_empty(autojump_clock, routes):
    async with cluster_of(0) as cluster:
        await cluster_with(cluster, routes, ask=())

        assert await send(cluster.nodes["n3"]) == 200
        assert await ask(cluster.nodes["n3"]) == 403


async def test_a_changed_tag_counts_at_once(autojump_clock, routes):
    async with cluster_of(0) as cluster:
        await cluster_with(cluster, routes, publish=("role=registrar",))
        n3 = cluster.nodes["n3"]
        assert await send(n3) == 403

        settings = n3.agent.settings
        sections = {
            name: attrs.evolve(section, tags={"role": "registrar"})
            for name, section in settings.clusters.items()
        }
        n3.agent.settings = attrs.evolve(settings, clusters=sections)
        await n3.agent.reload()
        await eventually(
            lambda: any(
                member.node_id == "n3" and member.tags
                for member in cluster.nodes["n1"].bus.members()
            )
        )

        assert await send(n3) == 200


async def test_permissions_are_taken_up_by_a_reload(autojump_clock, routes):
    async with cluster_of(0) as cluster:
        await cluster_with(cluster, routes)
        n1, n3 = cluster.nodes["n1"], cluster.nodes["n3"]
        assert await send(n3) == 200

        closed = {ChannelName("fraud"): ChannelSection(publish=("n2",))}
        n1.agent.settings = attrs.evolve(n1.agent.settings, channels=closed)
        await n1.agent.reload()

        assert await send(n3) == 403


def test_the_settings_of_an_agent_let_everyone():
    assert agent_settings("n1", "tcp://127.0.0.1:1").channels == {}
    assert ChannelSection().publish == ChannelSection().ask == ("*",)
