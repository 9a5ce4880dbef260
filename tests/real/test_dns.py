"""Agents that find each other by names, with a real DNS server that changes and dies."""

import socket

import pytest
import trio

from tests.system.command_line import (
    CLUSTER,
    HEALTH,
    PATIENCE,
    answers,
    clusternode,
    log_of,
    logged,
    sees,
)

pytestmark = [pytest.mark.real, pytest.mark.slow]

SERVICE = "srv://_clusternode._tcp.test"
ROUTES = """\
from clusternode import routes

@routes.event("address:unreachable")
def unreachable(event):
    print("EVENT unreachable", event.parameters["address"], event.parameters["reason"], flush=True)

@routes.event("address:reachable")
def reachable(event):
    print("EVENT reachable", event.parameters["address"], flush=True)
"""
LOOKUP_PATIENCE = 30.0
"""A look-up that nobody answers takes 5 s, and the next one waits up to redial_max, 5 s."""


@pytest.fixture
def routes(fleet):
    path = fleet.directory / "events.py"
    path.write_text(ROUTES)
    return path


def add(fleet, server, node_id, names=(SERVICE,), *, discovery=None, **options):
    """An agent that knows nothing but names, and asks our DNS server."""
    return fleet.add(
        node_id,
        cluster=CLUSTER,
        sections={
            "health": HEALTH,
            "discovery": {
                "notification_addresses": list(names),
                "nameservers": [server.nameserver],
                "refresh_interval": 1.0,
                **(discovery or {}),
            },
        },
        **options,
    )


def srv(agent, priority=10, weight=10):
    return f"srv-host=_clusternode._tcp.test,{agent.node_id}.test,{agent.port},{priority},{weight}"


def host(agent):
    return f"host-record={agent.node_id}.test,{agent.host}"


def state_of(agent, address):
    """What an agent says of one of the addresses that it should reach."""
    rows = agent.call("cluster.show")["addresses"]
    return next((row for row in rows if row["address"] == address), None)


async def start(fleet, *agents):
    for agent in agents:
        agent.start()
    for agent in agents:
        await answers(fleet, agent)


async def test_with_multi_notify_all_that_a_service_names_are_dialled(fleet, dns_server):
    multi = {"multi_notify": True}
    n1, n2 = (add(fleet, dns_server, node_id, ()) for node_id in ("n1", "n2"))
    n3 = add(fleet, dns_server, "n3", discovery=multi)
    await dns_server.start([*map(host, (n1, n2)), srv(n1, priority=20), srv(n2, priority=10)])

    await start(fleet, n1, n2, n3)

    await sees(fleet, n3, n1="active", n2="active")
    assert state_of(n3, n1.address)["state"] == "connected"
    assert state_of(n3, n2.address)["state"] == "connected"
    await sees(fleet, n1, n2="active", n3="active")  # it has brought them together


async def test_without_multi_notify_the_best_is_dialled_and_then_the_next(fleet, dns_server):
    n1, n2 = (add(fleet, dns_server, node_id, ()) for node_id in ("n1", "n2"))
    n3 = add(fleet, dns_server, "n3", discovery={"multi_notify": False})
    await dns_server.start([*map(host, (n1, n2)), srv(n1, priority=20), srv(n2, priority=10)])
    await start(fleet, n1, n2)
    await start(fleet, n3)

    await sees(fleet, n3, n2="active")
    assert state_of(n3, n1.address) is None
    assert n1.statuses() == {}

    n2.kill()
    await fleet.wait(lambda: n3.statuses().get("n1") == "active", "n3 finds n1", PATIENCE)
    assert state_of(n3, n1.address)["state"] == "connected"


async def test_within_a_priority_the_weight_decides(fleet, dns_server):
    n1, n2 = (add(fleet, dns_server, node_id, ()) for node_id in ("n1", "n2"))
    n3 = add(fleet, dns_server, "n3")
    await dns_server.start([*map(host, (n1, n2)), srv(n1, weight=0), srv(n2, weight=65535)])

    await start(fleet, n1, n2)
    await start(fleet, n3)

    await sees(fleet, n3, n2="active")
    assert state_of(n3, n1.address) is None


async def test_one_name_can_list_every_node_itself_too(fleet, dns_server):
    hosts = ("127.0.0.11", "127.0.0.12", "127.0.0.13")
    name = "tcp://bus.test:5062"
    agents = [
        add(
            fleet,
            dns_server,
            f"n{number}",
            [name],
            discovery={"multi_notify": True},
            host=ip,
            port=5062,
        )
        for number, ip in enumerate(hosts, 1)
    ]
    await dns_server.start([f"host-record=bus.test,{ip}" for ip in hosts])

    await fleet.start()

    for agent in agents:
        own = state_of(agent, agent.address)
        await fleet.wait(
            lambda agent=agent: state_of(agent, agent.address)["state"] == "self", "finds itself"
        )
        assert own["error"] == ""
        listed = await clusternode("nodes", "list", "-c", str(agent.config))
        assert "not re" not in listed.output  # neither reached nor resolved
        # As root it warns of that; and those started one by one may find nobody there yet.
        log = [line for line in log_of(agent).splitlines() if "as root" not in line]
        assert not any("WARNING" in line and "refused" not in line for line in log)


async def test_a_name_can_have_an_ipv6_address(fleet, dns_server):
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"the kernel has no IPv6 loopback: {error}")
    n1 = add(fleet, dns_server, "n1", (), host="::1")
    n2 = add(fleet, dns_server, "n2", [f"tcp://six.test:{n1.port}"])
    n3 = add(fleet, dns_server, "n3", [f"tcp://both.test:{n1.port}"], host="::1")
    await dns_server.start(["host-record=six.test,::1", "host-record=both.test,127.0.0.99,::1"])

    await start(fleet, n1, n2, n3)

    # n3 tries 127.0.0.99 first, where nobody is, and then ::1.
    await sees(fleet, n3, n1="active", n2="active")
    await sees(fleet, n2, n1="active", n3="active")
    assert state_of(n2, n1.address)["state"] == "connected"


async def test_a_changed_answer_brings_a_new_node_in(fleet, dns_server):
    multi = {"multi_notify": True}
    n1 = add(fleet, dns_server, "n1", discovery=multi)
    n2 = add(fleet, dns_server, "n2", discovery=multi)
    n3 = add(fleet, dns_server, "n3", ())  # knows nobody
    records = [*map(host, (n1, n2, n3)), srv(n1)]
    await dns_server.start(records)
    await start(fleet, n1, n2, n3)
    await sees(fleet, n1, n2="active")
    assert n3.statuses() == {}

    await dns_server.start([*records, srv(n3)])

    await sees(fleet, n3, n1="active", n2="active")
    await sees(fleet, n2, n1="active", n3="active")


async def test_a_dead_dns_server_does_not_hurt_a_running_cluster(fleet, dns_server, routes):
    n1, n2 = (add(fleet, dns_server, node_id, routes=routes) for node_id in ("n1", "n2"))
    await dns_server.start([*map(host, (n1, n2)), srv(n1)])
    await start(fleet, n1)
    await fleet.start()

    dns_server.kill()
    await fleet.wait(
        lambda: bool(state_of(n2, SERVICE)["error"]), "n2 notes the failure", LOOKUP_PATIENCE
    )

    assert (n1.statuses(), n2.statuses()) == ({"n2": "active"}, {"n1": "active"})
    listed = await clusternode("nodes", "list", "-c", str(n2.config))
    assert f"{SERVICE}: not resolved" in listed.output
    assert "no answer within" in listed.output or "no name server" in listed.output
    assert "EVENT unreachable" not in log_of(n2)  # what the name stood for is known and answers

    n1.kill()
    await logged(fleet, n2, f"EVENT unreachable {SERVICE}")
    n1.start()
    await sees(fleet, n2, n1="active")
    await logged(fleet, n2, f"EVENT reachable {SERVICE}")

    await dns_server.start([*map(host, (n1, n2)), srv(n1)])
    await fleet.wait(
        lambda: state_of(n2, SERVICE)["error"] == "", "n2 has looked it up", LOOKUP_PATIENCE
    )


async def test_a_dead_dns_server_does_not_hang_the_start(fleet, dns_server, routes):
    n1 = add(fleet, dns_server, "n1", ())
    n2 = add(fleet, dns_server, "n2", routes=routes)
    n1.start()
    began = trio.current_time()

    await start(fleet, n2)

    assert trio.current_time() - began < 4.0  # less than a look-up that nobody answers
    await fleet.wait(
        lambda: state_of(n2, SERVICE)["state"] == "unresolved", "it is shown", LOOKUP_PATIENCE
    )
    listed = await clusternode("nodes", "list", "-c", str(n2.config))
    assert f"{SERVICE}: not resolved" in listed.output
    await logged(fleet, n2, f"EVENT unreachable {SERVICE}")

    await dns_server.start([host(n1), srv(n1)])

    await fleet.wait(lambda: n2.statuses() == {"n1": "active"}, "n2 joins", LOOKUP_PATIENCE)
    await logged(fleet, n2, f"EVENT reachable {SERVICE}")


async def test_a_name_that_does_not_exist_is_said_clearly(fleet, dns_server, routes):
    n1 = add(fleet, dns_server, "n1", ["srv://_typo._tcp.test", "tcp://typo.test:1"], routes=routes)
    await dns_server.start([])
    n1.start()

    await logged(fleet, n1, "EVENT unreachable srv://_typo._tcp.test _typo._tcp.test (SRV): no")
    await logged(fleet, n1, "EVENT unreachable tcp://typo.test:1 typo.test (A): no such name")

    listed = await clusternode("nodes", "list", "-c", str(n1.config))
    assert "srv://_typo._tcp.test: not resolved" in listed.output
    assert "tcp://typo.test:1: not resolved" in listed.output
    assert listed.output.count("no such name") == 2
