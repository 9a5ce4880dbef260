"""What only processes can show: signals, ports, sockets, files and restarts."""

import os
import signal
import subprocess
import sys

import pytest
import trio

from clusternode.cli.local.story import ROUTES
from tests.system.command_line import (
    CLUSTER,
    HEALTH,
    SLACK,
    answers,
    call,
    clusternode,
    counter,
    exit_status,
    log_of,
    logged,
    sees,
)

pytestmark = pytest.mark.slow


def add(fleet, node_id, sections=None, **options):
    return fleet.add(
        node_id, cluster=CLUSTER, sections={"health": HEALTH, **(sections or {})}, **options
    )


async def test_sigterm_leaves_politely_within_a_second(fleet):
    n1, n2 = (add(fleet, node_id) for node_id in ("n1", "n2"))
    await fleet.start()
    began = trio.current_time()

    n2.terminate()
    status = await exit_status(n2)

    assert status == 0
    assert trio.current_time() - began < 1.0 + SLACK
    await sees(fleet, n1, n2="left")


async def test_a_killed_process_is_known_at_once_and_comes_back(fleet):
    slow = {"health": {"ping_interval": 10.0}}  # no ping can have found it out
    n1, n2 = (add(fleet, node_id, slow) for node_id in ("n1", "n2"))
    await fleet.start()
    before = n1.members()[1]["incarnation"]
    began = trio.current_time()

    n2.kill()
    await sees(fleet, n1, n2="not_active")

    assert trio.current_time() - began < 0.5 + SLACK
    n2.start()
    await sees(fleet, n1, n2="active")
    assert n1.members()[1]["incarnation"] > before


async def test_the_younger_of_two_with_one_node_id_withdraws(fleet):
    n1, n2 = (add(fleet, node_id) for node_id in ("n1", "n2"))
    await fleet.start()
    incarnation = n1.members()[1]["incarnation"]
    double = add(fleet, "double", {"node": {"id": "n2", "state_dir": "double.state"}})
    double.start()

    status = await exit_status(double)

    assert status == 1
    assert "another live node of cluster voip is called n2: n1 (127.0" in log_of(double)
    assert f"it answers at {n2.address}" in log_of(double)
    assert "n2" in log_of(n1)
    assert n1.members()[1]["incarnation"] == incarnation
    assert (n1.statuses(), n2.statuses()) == ({"n2": "active"}, {"n1": "active"})


async def test_who_finds_its_port_taken_names_the_process(lone_fleet, lone):
    other = add(lone_fleet, "n2", {"node": {"address": lone.address}})
    other.start()

    status = await exit_status(other)

    assert status == 1
    assert f"cannot listen on {lone.address}: process {lone.pid} (" in log_of(other)
    assert lone.answers()


async def test_the_control_socket_of_a_dead_agent_is_taken_over(fleet):
    n1 = add(fleet, "n1")
    n1.start()
    await answers(fleet, n1)
    n1.kill()
    assert n1.control_socket.exists()

    n1.start()
    await answers(fleet, n1)

    assert n1.call("agent.info")["pid"] == n1.pid


async def test_the_control_socket_of_a_live_agent_is_not_taken_over(lone_fleet, lone):
    other = add(lone_fleet, "n3", {"node": {"control_socket": lone.control_socket.name}})
    other.start()

    status = await exit_status(other)

    assert status == 1
    assert f"{lone.control_socket}" in log_of(other)
    assert str(lone.pid) in log_of(other)
    assert lone.call("agent.info")["pid"] == lone.pid


async def test_a_corrupt_state_file_is_set_aside(fleet):
    n1 = add(fleet, "n1")
    state = fleet.directory / "n1.state"
    state.mkdir()
    (state / f"cluster-{CLUSTER}.json").write_text('{"format": 1, "members": [')

    n1.start()
    await answers(fleet, n1)

    assert "cannot be read" in log_of(n1)
    assert "set aside as" in log_of(n1)
    kept = [path.read_text() for path in state.glob("*.corrupt-*")]
    assert kept == ['{"format": 1, "members": [']


async def test_routes_with_an_error_leave_the_old_ones_in_place(fleet):
    routes = fleet.directory / "routes.py"
    routes.write_text(ROUTES.read_text())
    n2 = add(fleet, "n2", routes=routes)
    n2.start()
    await answers(fleet, n2)
    routes.write_text("from clusternode import routes\n\nraise RuntimeError('typing mistake')\n")

    reloaded = await clusternode("reload", "-c", str(n2.config))

    assert reloaded.status == 1
    assert "typing mistake" in reloaded.error
    assert f"{routes}" in reloaded.error
    asked = await clusternode(
        "request", "locate", "where is alice?", "--include-self", "-c", str(n2.config)
    )
    assert asked.status == 0
    assert "sip:alice@n2.example.net" in asked.output


async def test_a_node_comes_back_although_its_notification_address_is_gone(fleet):
    n1, n2, n3 = (add(fleet, node_id) for node_id in ("n1", "n2", "n3"))
    await fleet.start()
    n3.terminate()
    assert await exit_status(n3) == 0
    n1.kill()

    n3.start()

    await fleet.wait(lambda: n3.statuses().get("n2") == "active", "n3 finds n2 again")
    await fleet.wait(lambda: n2.statuses().get("n3") == "active", "n2 sees n3 again")
    listed = await clusternode("nodes", "list", "-c", str(n3.config))
    assert f"{n1.address}: not reached" in listed.output


async def test_one_process_can_be_a_node_of_two_clusters(fleet):
    n1 = fleet.add("n1", cluster="a", sections={"health": HEALTH})
    text = n1.config.read_text().replace('[cluster]\nname = "a"', "[cluster.a]\n\n[cluster.b]")
    n1.config.write_text(text)
    n2 = fleet.add("n2", cluster="a", sections={"health": HEALTH})
    n3 = fleet.add("n3", cluster="b", sections={"health": HEALTH})
    for agent in (n1, n2, n3):
        agent.start()

    await sees(fleet, n2, n1="active")
    await sees(fleet, n3, n1="active")

    for cluster, expected in (("a", ["n1", "n2"]), ("b", ["n1", "n3"])):
        listed = n1.call("cluster.list", cluster=cluster)
        assert [row["node_id"] for row in listed] == expected
    wrong = await clusternode("nodes", "list", "--cluster", "c", "-c", str(n1.config))
    assert wrong.status == 2
    assert "a, b" in wrong.error


async def test_a_body_over_the_limit_is_refused_at_the_sender(fleet):
    n1 = add(fleet, "n1")
    n2 = add(fleet, "n2", {"messaging": {"body_size_max": 1000}}, routes=ROUTES)
    await fleet.start()
    received = counter(n2, "bytes_read")

    results = await call(n1, "cluster.send", channel="fraud", node="n2", body="x" * 100_000)
    refused = await clusternode("broadcast", "fraud", "x" * 1001, "-c", str(n2.config))

    assert results == {"n2": {"code": 413, "definite": True, "text": "too large"}}
    assert counter(n2, "bytes_read") - received < 100_000
    assert refused.status == 1
    assert "1001" in refused.error
    assert "1000" in refused.error


async def test_nodes_of_other_clusters_are_turned_away_and_both_sides_say_so(lone_fleet, lone):
    stranger = lone_fleet.add("n4", cluster="other", sections={"health": HEALTH})
    stranger.start()

    await logged(lone_fleet, lone, "cluster other, which we are not in")
    await logged(lone_fleet, stranger, "WRONG_CLUSTER")

    assert counter(lone, "handshakes_failed") > 0
    assert "127.0.0.1" in log_of(lone)
    listed = await clusternode("nodes", "list", "-c", str(stranger.config))
    assert f"{lone.address}: not reached" in listed.output
    assert "WRONG_CLUSTER" in listed.output
    assert lone.statuses() == {}
    stranger.kill()


async def test_the_demo_ends_by_itself_and_well(fleet):
    with trio.fail_after(30.0):
        ended = await clusternode("demo")

    assert (ended.status, ended.error) == (0, "")
    for text in ("n2 answers sip:alice@n2", "n3: 200 ok", "n2 sees n3: removed", "status 0"):
        assert text in ended.output


@pytest.mark.parametrize(("is_interrupted", "status"), [(True, 130), (False, 0)])
async def test_a_demo_that_is_interrupted_or_no_longer_read_ends_quietly(
    fleet, is_interrupted, status
):
    command = [sys.executable, "-m", "clusternode", "demo"]
    pipe = subprocess.PIPE
    process = await trio.lowlevel.open_process(command, stdout=pipe, stderr=pipe)
    assert process.stdout is not None
    assert process.stderr is not None

    with trio.fail_after(30.0):
        await process.stdout.receive_some()  # its first line
        if is_interrupted:
            process.send_signal(signal.SIGINT)
        else:
            await process.stdout.aclose()
        error = await process.stderr.receive_some()
        await process.wait()

    assert (process.returncode, error) == (status, b"")


async def test_an_agent_warns_exactly_when_it_runs_as_root(fleet):
    n1 = add(fleet, "n1")

    n1.start()
    await answers(fleet, n1)

    assert ("running as root" in log_of(n1)) is (os.geteuid() == 0)
