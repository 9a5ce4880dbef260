"""The cluster secret with real processes: who is let in, and how a secret is changed."""

import pytest

from tests.system.command_line import CLUSTER, HEALTH, clusternode, counter, log_of, logged, sees

pytestmark = pytest.mark.slow

OLD, NEW = "the-old-secret-of-ours", "the-new-secret-of-ours"


def add(fleet, node_id, *secrets):
    path = fleet.directory / f"{node_id}.secret"
    write(path, *secrets)
    sections = {"health": HEALTH, "cluster": {"secret_file": path.name}}
    return fleet.add(node_id, cluster=CLUSTER, sections=sections)


def write(path, *secrets):
    path.write_text("\n".join(secrets))
    path.chmod(0o600)


async def test_another_secret_is_one_clear_line_on_each_side(fleet):
    n1, n2 = add(fleet, "n1", OLD), add(fleet, "n2", NEW)
    n1.start()
    n2.start()

    await logged(fleet, n1, "node n2 has another cluster secret")
    await logged(fleet, n2, "refused by the other side: AUTHENTICATION")

    assert counter(n1, "authentications_failed") > 0
    assert counter(n2, "authentications_failed") > 0
    await sees(fleet, n1)
    await sees(fleet, n2)
    for agent in (n1, n2):
        assert OLD not in log_of(agent) and NEW not in log_of(agent)
        lines = [line for line in log_of(agent).splitlines() if "has another" in line]
        assert len([line for line in lines if "handshake with" in line]) <= 1


async def test_a_secret_is_changed_by_reloads_without_losing_a_connection(fleet):
    agents = [add(fleet, node_id, OLD) for node_id in ("n1", "n2")]
    await fleet.start()

    for secrets in ((OLD, NEW), (NEW, OLD), (NEW,)):
        for agent in agents:
            write(fleet.directory / f"{agent.node_id}.secret", *secrets)
            assert (await clusternode("reload", "-c", str(agent.config))).status == 0

    assert [counter(agent, "connections_lost") for agent in agents] == [0, 0]
    add(fleet, "n3", NEW)
    await fleet.start()


async def test_a_secret_file_that_others_can_read_stops_the_start_and_says_how_to_mend_it(fleet):
    n1 = add(fleet, "n1", OLD)
    (fleet.directory / "n1.secret").chmod(0o644)

    for words in (("config", "check"), ("run",)):
        ended = await clusternode(*words, "-c", str(n1.config))

        assert ended.status == 2
        assert "chmod 600" in ended.error
        assert OLD not in ended.error + ended.output


async def test_an_address_that_others_reach_needs_a_secret(fleet):
    config = fleet.directory / "open.toml"
    config.write_text('[node]\nid = "n1"\naddress = "tcp://192.0.2.1:5062"\n')

    ended = await clusternode("run", "-c", str(config))

    assert ended.status == 2
    for way in ("secret_file", "tls://", "insecure = true"):
        assert way in ended.error
