"""Who does not know the secret stays outside, and is not heard of twice a minute."""

import attrs
import pytest
import trio

from clusternode.core.types import Address, Incarnation, NodeId
from clusternode.core.wire.codec import encode
from clusternode.core.wire.messages import CloseReason, Hello, Ping, Resume
from clusternode.core.wire.session import Session
from clusternode.errors import ConfigError
from tests.agents import SEED, Cluster, cluster_of

OLD, NEW = "the-old-secret-of-ours", "the-new-secret-of-ours"
STRANGER = "10.0.0.66"


def counter(running, name):
    return running.bus.snapshot().counters[name]


def hello(**changes):
    return attrs.evolve(
        Hello(
            "voip",
            NodeId("stranger"),
            Incarnation(1),
            bytes(16),
            1,
            1,
            f"tcp://{STRANGER}:1",
            1024,
            65536,
        ),
        **changes,
    )


async def test_nodes_that_share_a_secret_find_each_other(autojump_clock):
    async with cluster_of(3, secret=[OLD], insecure=False) as cluster:
        await cluster.everyone_active()
        assert counter(cluster.nodes["n1"], "authentications_failed") == 0


@pytest.mark.parametrize("secret", [[NEW], []])
async def test_a_node_with_another_secret_or_none_stays_alone(autojump_clock, caplog, secret):
    async with cluster_of(2, secret=[OLD]) as cluster:
        other = await cluster.add("n3", secret=secret)
        await trio.sleep(50)

        assert other.statuses() == {"n3": "active"}
        assert "n3" not in cluster.nodes["n1"].statuses()
        assert counter(other, "authentications_failed") > 2
        assert counter(other, "dials") < 200  # it backs off
        assert counter(cluster.nodes["n1"], "authentications_failed") > 2
        lines = [line for line in caplog.messages if "secret" in line]
        assert any(line.startswith("handshake with 10.0.0.3") for line in lines), lines
        assert any(line.startswith(f"dialled {SEED}") for line in lines), lines
        assert len(lines) <= 6
        del cluster.nodes["n3"]
        await cluster.everyone_active()


async def test_a_stranger_is_told_why_and_nothing_else(autojump_clock):
    async with cluster_of(1, secret=[OLD]) as cluster:
        stream = (await cluster.network.transport(STRANGER).dial(Address.parse(SEED), 5.0)).stream
        session = Session.dial(hello(challenge=bytes(16)), [b"guessed" * 4])
        await stream.send_all(session.data_to_send())
        with trio.fail_after(30):
            while not session.peer_close:
                session.receive_data_untrusted(bytes(await stream.receive_some(4096)))
                await stream.send_all(session.data_to_send() or encode(Resume(0, 1)))

        assert session.peer_close.reason == CloseReason.AUTHENTICATION
        assert session.peer is None


async def test_no_message_is_read_before_the_proof(autojump_clock):
    async with cluster_of(2, secret=[OLD]) as cluster:
        stream = (await cluster.network.transport(STRANGER).dial(Address.parse(SEED), 5.0)).stream
        await stream.send_all(
            encode(hello(challenge=bytes(16))) + encode(Resume(0, 1)) + encode(Ping(1, 7))
        )
        with trio.fail_after(30):
            while await stream.receive_some(4096):
                pass

        assert "stranger" not in cluster.nodes["n1"].statuses()
        assert counter(cluster.nodes["n1"], "connections_opened") < 10


async def test_a_secret_is_rotated_without_dropping_a_connection(autojump_clock, tmp_path):
    path = tmp_path / "secret"
    path.write_text(OLD)
    path.chmod(0o600)
    async with trio.open_nursery() as nursery:
        cluster = Cluster(nursery)
        for node_id in ("n1", "n2"):
            await cluster.add(node_id, secret_file=path)
        await cluster.everyone_active()
        lost = {name: counter(node, "connections_lost") for name, node in cluster.nodes.items()}

        for step in (f"{OLD}\n{NEW}\n", f"{NEW}\n{OLD}\n", f"{NEW}\n"):
            path.write_text(step)
            for node in cluster.nodes.values():
                await node.agent.reload()
            await cluster.everyone_active()
        await cluster.add("n3", secret=[NEW])
        await cluster.everyone_active()

        assert lost == {
            name: counter(cluster.nodes[name], "connections_lost") for name in ("n1", "n2")
        }
        nursery.cancel_scope.cancel()


async def test_a_reload_with_a_bad_secret_file_changes_nothing(autojump_clock, tmp_path):
    path = tmp_path / "secret"
    path.write_text(OLD)
    path.chmod(0o600)
    async with cluster_of(1, secret_file=path) as cluster:
        running = cluster.nodes["n1"]
        path.chmod(0o644)

        with pytest.raises(ConfigError, match="0644"):
            await running.agent.reload()

        await cluster.add("n2", secret=[OLD])
        await cluster.everyone_active()
        assert counter(running, "authentications_failed") == 0
