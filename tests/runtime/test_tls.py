"""TLS between agents, on memory streams and a virtual clock; tests/real has OpenSSL itself."""

import os
import ssl
import stat
from datetime import UTC, datetime, timedelta

import attrs
import pytest
import trio

from clusternode.core.types import Address, NodeId
from clusternode.core.wire.session import Session
from clusternode.errors import ConfigError, RouteError
from clusternode.runtime import tls
from clusternode.runtime.exposure import check_exposure, check_files
from clusternode.runtime.handshake import HandshakeError, shake_hands
from clusternode.runtime.renewal import CHECK_INTERVAL, Renewal
from clusternode.runtime.tls import Credentials, TlsTransport
from clusternode.testing.memory_transport import MemoryNetwork
from tests.agents import Cluster, agent_settings, eventually
from tests.certificates import Pki

SECRET = "a-secret-for-all-of-us"


@pytest.fixture
def pki(tmp_path):
    return Pki(tmp_path / "pki")


def counter(running, name):
    return running.bus.snapshot().counters[name]


async def test_agents_with_certificates_find_each_other(autojump_clock, pki):
    async with trio.open_nursery() as nursery:
        cluster = Cluster(nursery)
        for node_id in ("n1", "n2", "n3"):
            await cluster.add(node_id, tls=pki.node(node_id), insecure=False)
        await cluster.everyone_active()

        delivery = cluster.nodes["n1"].bus.send("c", "n2", b"x" * 300_000)
        assert int((await delivery)["n2"]) == 404  # it was there: nobody listens
        for member in cluster.nodes["n1"].bus.members():
            assert member.address.startswith("tls://")
            until = datetime.fromisoformat(member.certificate_expires)
            assert timedelta(days=88) < until - datetime.now(UTC) < timedelta(days=91)
        nursery.cancel_scope.cancel()


async def test_secret_and_certificates_go_together(autojump_clock, pki, caplog):
    async with trio.open_nursery() as nursery:
        cluster = Cluster(nursery)
        for node_id in ("n1", "n2"):
            await cluster.add(node_id, tls=pki.node(node_id), secret=[SECRET])
        await cluster.everyone_active()
        other = await cluster.add("n3", tls=pki.node("n3"), secret=["quite-another-secret"])
        await trio.sleep(20)

        assert other.statuses() == {"n3": "active"}
        assert "another cluster secret" in caplog.text
        nursery.cancel_scope.cancel()


async def outsider(cluster, caplog, **options):
    """Add an agent that must not get in; return what the first node logged about it."""
    other = await cluster.add("n3", **options)
    await eventually(lambda: counter(cluster.nodes["n1"], "authentications_failed") > 0)
    await trio.sleep(10)
    assert other.statuses() == {"n3": "active"}
    assert "n3" not in cluster.nodes["n1"].statuses()
    assert counter(other, "authentications_failed") > 0
    lines = [line for line in caplog.messages if line.startswith("handshake with 10.0.0.3")]
    dials = [line for line in caplog.messages if line.startswith("dialled tls://10.0.0.1")]
    assert len(lines) == 1
    assert dials
    return lines[0]


async def test_a_certificate_of_another_authority_is_refused(autojump_clock, pki, tmp_path, caplog):
    async with trio.open_nursery() as nursery:
        cluster = Cluster(nursery)
        await cluster.add("n1", tls=pki.node("n1"))

        line = await outsider(cluster, caplog, tls=Pki(tmp_path / "other").node("n3"))

        assert "TLS" in line
        nursery.cancel_scope.cancel()


async def test_a_node_that_uses_the_id_of_another_is_refused(autojump_clock, pki, caplog):
    """A node of the cluster that has been taken over says that it is another one."""
    async with trio.open_nursery() as nursery:
        cluster = Cluster(nursery)
        await cluster.add("n1", tls=pki.node("n1"))
        thief = TlsTransport(
            cluster.network.transport("10.0.0.66"), Credentials(pki.node("n2"), NodeId("n2"))
        )
        hello = cluster.nodes["n1"].bus.driver.node.hello()
        session = Session.dial(attrs.evolve(hello, node_id=NodeId("n3"), nonce=bytes(16)))

        wire = await thief.dial(Address.parse("tls://10.0.0.1:5062"), 5.0)
        with pytest.raises(HandshakeError, match="AUTHENTICATION"):
            await shake_hands(wire.stream, session, 5.0)

        await eventually(lambda: "node n3 has a certificate that names n2" in caplog.text)
        assert counter(cluster.nodes["n1"], "authentications_failed") == 1
        nursery.cancel_scope.cancel()


async def test_clear_text_gets_nothing_from_a_listener_with_tls(autojump_clock, pki, caplog):
    async with trio.open_nursery() as nursery:
        cluster = Cluster(nursery)
        await cluster.add("n1", tls=pki.node("n1"))
        other = await cluster.add("n3")  # on tcp://
        await trio.sleep(30)

        assert other.statuses() == {"n3": "active"}
        assert "it does not speak TLS" in caplog.text
        nursery.cancel_scope.cancel()


async def test_a_cluster_with_tls_dials_nobody_in_clear_text(autojump_clock, pki):
    async with trio.open_nursery() as nursery:
        cluster = Cluster(nursery)
        await cluster.add("n1")  # tcp:// only
        other = await cluster.add("n2", tls=pki.node("n2"), seeds=["tcp://10.0.0.1:5062"])
        await trio.sleep(30)

        assert other.statuses() == {"n2": "active"}
        assert cluster.nodes["n1"].statuses() == {"n1": "active"}
        nursery.cancel_scope.cancel()


async def test_without_client_certificates_the_secret_decides(autojump_clock, pki):
    async with trio.open_nursery() as nursery:
        cluster = Cluster(nursery)
        for node_id in ("n1", "n2"):
            section = attrs.evolve(pki.node(node_id), mutual=False)
            await cluster.add(node_id, tls=section, secret=[SECRET], insecure=False)
        await cluster.everyone_active()
        nursery.cancel_scope.cancel()


def test_tls_without_client_certificates_and_without_a_secret_is_exposed(pki):
    section = attrs.evolve(pki.node("n1"), mutual=False)
    options = {"tls": section, "insecure": False}

    with pytest.raises(ConfigError, match="Three ways out"):
        check_exposure(agent_settings("n1", "tls://10.0.0.1:1", **options))
    check_exposure(agent_settings("n1", "tls://10.0.0.1:1", **options, secret=[SECRET]))
    check_exposure(agent_settings("n1", "tls://10.0.0.1:1", tls=pki.node("n1"), insecure=False))


# --- files ----------------------------------------------------------------------------------------


def test_a_certificate_must_name_this_node(pki):
    with pytest.raises(ConfigError, match=r"names node n1 .*; it names n2"):
        Credentials(pki.node("n1", named="n2"), NodeId("n1"))


def test_an_expired_certificate_is_refused_at_the_start(pki):
    pki.node("n1")

    with pytest.raises(ConfigError, match="certificate has expired"):
        Credentials(pki.expire("n1"), NodeId("n1"))


def test_a_certificate_of_another_authority_is_refused_at_the_start(pki, tmp_path):
    section = attrs.evolve(pki.node("n1"), ca=Pki(tmp_path / "other").ca)

    with pytest.raises(ConfigError, match=r"tls\.certificate.*authority"):
        Credentials(section, NodeId("n1"))


@pytest.mark.parametrize("name", ["certificate", "key", "ca"])
def test_a_file_that_is_not_there_is_named(pki, tmp_path, name):
    section = attrs.evolve(pki.node("n1"), **{name: tmp_path / "nowhere"})
    settings = agent_settings("n1", "tls://127.0.0.1:1", tls=section)

    with pytest.raises(ConfigError, match=r"tls\."):
        check_files(settings)


def test_a_key_that_others_can_read_is_refused(pki):
    section = pki.node("n1")
    section.key.chmod(0o644)

    with pytest.raises(ConfigError, match="chmod 600"):
        Credentials(section, NodeId("n1"))


def test_keys_are_written_for_their_owner_alone(pki):
    section = pki.node("n1")

    for path in (section.key, pki.directory / "ca.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not [name for name in os.listdir(pki.directory) if name.endswith(".new")]


# --- renewal --------------------------------------------------------------------------------------


async def test_a_renewed_certificate_is_taken_up_and_no_connection_is_dropped(autojump_clock, pki):
    async with trio.open_nursery() as nursery:
        cluster = Cluster(nursery)
        for node_id in ("n1", "n2"):
            await cluster.add(node_id, tls=pki.node(node_id, days=31))
        await cluster.everyone_active()
        lost = [counter(node, "connections_lost") for node in cluster.nodes.values()]

        pki.node("n1", days=300)
        await trio.sleep(CHECK_INTERVAL * 1.5)  # nobody says reload
        pki.node("n2", days=300)
        await cluster.nodes["n2"].agent.reload()

        for node_id in ("n1", "n2"):
            own = cluster.nodes[node_id].bus.members()[0].certificate_expires
            assert datetime.fromisoformat(own) - datetime.now(UTC) > timedelta(days=290)
        await cluster.add("n3", tls=pki.node("n3"))
        await cluster.everyone_active()
        seen = {one.node_id: one for one in cluster.nodes["n3"].bus.members()}
        assert datetime.fromisoformat(seen["n1"].certificate_expires) - datetime.now(
            UTC
        ) > timedelta(days=290)
        now_lost = [counter(cluster.nodes[name], "connections_lost") for name in ("n1", "n2")]
        assert now_lost == lost
        nursery.cancel_scope.cancel()


async def test_half_renewed_files_change_nothing(autojump_clock, pki, caplog):
    section = pki.node("n1")
    credentials = Credentials(section, NodeId("n1"))
    before = credentials.server
    section.certificate.write_text("half of a certi")

    Renewal(credentials, lambda days, until: None).check()

    assert credentials.server is before
    assert "the old certificate goes on" in caplog.text


@pytest.mark.parametrize(("left", "is_warned"), [(31, False), (29, True), (-1, True)])
async def test_a_certificate_that_expires_soon_is_warned_of_once_a_day(
    autojump_clock, pki, left, is_warned
):
    credentials = Credentials(pki.node("n1"), NodeId("n1"))
    now = credentials.own.not_after - timedelta(days=left, hours=1)
    warned = []
    renewal = Renewal(credentials, lambda days, until: warned.append(days), lambda: now)

    for _ in range(3):
        renewal.check()
    await trio.sleep(86400)
    renewal.check()

    assert warned == ([left, left] if is_warned else [])


async def test_the_warning_is_an_event_and_a_line_in_the_log(autojump_clock, pki, caplog):
    async with trio.open_nursery() as nursery:
        cluster = Cluster(nursery)
        node = await cluster.add("n1", tls=pki.node("n1", days=20))
        async with node.agent.events.expect("certificate:expires") as waiter:
            await trio.sleep(86400 + 60)
            event = await waiter.get(1.0)

        assert event.parameters["days"] in (19, 20)
        assert [line for line in caplog.messages if "expires in" in line]
        nursery.cancel_scope.cancel()


# --- the transport --------------------------------------------------------------------------------


async def test_what_is_not_tls_passes_through(autojump_clock, pki):
    network = MemoryNetwork()
    credentials = Credentials(pki.node("n1"), NodeId("n1"))
    transport = TlsTransport(network.transport("10.0.0.1"), credentials)

    listener = await transport.listen(Address("tcp", "10.0.0.1", 7))
    wire = await transport.dial(listener.address, 1.0)

    assert listener.address.scheme == "tcp"
    assert not isinstance(wire.stream, trio.SSLStream)
    assert await tls.begin(wire.stream) is None
    assert tls.below(wire.stream) is wire.stream
    assert tls.alert_of(wire.stream) == b""
    await listener.aclose()


def test_errors_of_openssl_are_said_in_words():
    error = ssl.SSLError(1, "x")
    error.reason = "PEER_DID_NOT_RETURN_A_CERTIFICATE"
    assert tls.describe_error(error) == "it showed no certificate"
    error.reason = "SOMETHING_ELSE"
    assert tls.describe_error(error) == "something else"


async def test_a_reload_whose_routes_are_wrong_leaves_the_old_certificate(
    autojump_clock, pki, tmp_path
):
    second = Pki(tmp_path / "second")
    routes = tmp_path / "routes.py"
    routes.write_text("")
    async with trio.open_nursery() as nursery:
        cluster = Cluster(nursery)
        agent = (await cluster.add("n1", tls=pki.node("n1"), routes=routes)).agent

        routes.write_text("nonsense(")
        agent.settings = attrs.evolve(agent.settings, tls=second.node("n1"))
        with pytest.raises(RouteError):
            await agent.reload()
        await cluster.add("n2", tls=pki.node("n2"))

        await cluster.everyone_active()
        nursery.cancel_scope.cancel()


async def test_a_reload_takes_other_files_up(autojump_clock, pki, tmp_path):
    second = Pki(tmp_path / "second")
    async with trio.open_nursery() as nursery:
        cluster = Cluster(nursery)
        agent = (await cluster.add("n1", tls=pki.node("n1"))).agent

        agent.settings = attrs.evolve(agent.settings, tls=second.node("n1"))
        await agent.reload()
        await cluster.add("n2", tls=second.node("n2"))

        await cluster.everyone_active()
        nursery.cancel_scope.cancel()
