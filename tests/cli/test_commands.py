"""Every command that talks to an agent: what it prints and its exit status."""

from __future__ import annotations

import json

import attrs
import pytest
import trio

from clusternode.bus.interface import Reply
from clusternode.cli.commands.run import root_advice
from clusternode.cli.main import main
from clusternode.core.effects import Outcome
from clusternode.core.types import NodeId, ResultCode
from tests.fakes.bus import unreached


async def test_nodes_list_is_a_table_with_what_cannot_be_reached_below(command, controlled):
    controlled.voip.addresses = (unreached("tcp://n9.example:5062"),)

    ran = await command("nodes", "list")

    assert ran.status == 0
    lines = ran.out.splitlines()
    assert lines[0].split()[:3] == ["NODE", "STATUS", "ADDRESS"]
    assert lines[1].startswith("n1*")
    assert "not_active" in lines[3]
    assert lines[-1] == ("tcp://n9.example:5062: not reached, 3 attempts: refused; next in 2.0 s")


async def test_attempts_that_nobody_counts_are_not_shown(command, controlled):
    url = "bin:10.0.0.9:5555"
    row = attrs.evolve(unreached("tcp://n9.example:1"), address=url, error="", failures=None)
    controlled.voip.addresses = (attrs.evolve(row, retry_in_s=None),)

    ran = await command("nodes", "list")

    assert ran.out.splitlines()[-1] == "bin:10.0.0.9:5555: not reached"


async def test_nodes_list_json_is_an_array(command):
    ran = await command("nodes", "list", "--json")

    rows = json.loads(ran.out)
    needed = "node_id address status fail_count incarnation last_seen_s tags channels local"
    assert all(set(needed.split()) <= set(row) for row in rows)
    assert [row["local"] for row in rows] == [True, False, False]


async def test_nodes_show_shows_the_agent_or_one_member(command):
    agent = await command("nodes", "show")
    one = await command("nodes", "show", "n2", "--json")
    missing = await command("nodes", "show", "n9")

    assert "pings_opened" in agent.out
    assert "request:locate" in agent.out
    assert agent.out.splitlines()[-1].split() == ["request:locate", "3", "0.000"]
    assert "members      3" in agent.out.splitlines()
    assert json.loads(one.out)["node_id"] == "n2"
    assert missing.status == 1
    assert "members: n1, n2, n3" in missing.err


async def test_members_are_added_removed_and_set(command, controlled):
    assert (await command("nodes", "add", "tcp://n9:1")).status == 0
    assert (await command("nodes", "remove", "n2")).out == "n2 was removed here\n"
    assert (await command("nodes", "set-status", "n2", "disabled", "--json")).status == 0
    assert [call[0] for call in controlled.voip.calls] == ["add", "remove", "change_status"]


async def test_an_unknown_cluster_is_a_usage_error(command):
    ran = await command("nodes", "list", "--cluster", "x")

    assert ran.status == 2
    assert "voip, billing" in ran.err


async def test_broadcast_tells_each_result(command, controlled):
    well = await command("broadcast", "fraud", "203.0.113.7")
    controlled.voip.results = {"n2": ResultCode.OK, "n3": ResultCode.TIMEOUT}
    badly = await command("broadcast", "fraud", "x", "--except", "n4")
    as_json = await command("broadcast", "fraud", "x", "--json")
    controlled.voip.results = {}
    alone = await command("broadcast", "fraud", "x")

    assert (well.status, badly.status, alone.status) == (0, 1, 0)
    assert "may have been handled" in badly.out
    assert json.loads(as_json.out)["n3"] == {"code": 408, "definite": False, "text": "timeout"}
    assert "no other members" in alone.err
    assert controlled.voip.calls[0][1] == ("fraud", "203.0.113.7")


async def test_a_body_comes_from_standard_input_or_a_file(command, controlled, stdin, tmp_path):
    stdin(b"\xff\x00")
    (tmp_path / "body").write_text("from file")

    await command("broadcast", "fraud", "-")
    await command("send", "fraud", "n2", f"@{tmp_path / 'body'}")
    missing = await command("send", "fraud", "n2", "@/does/not/exist")

    assert controlled.voip.calls[0][1] == ("fraud", b"\xff\x00")
    assert controlled.voip.calls[1][1] == ("fraud", "n2", "from file")
    assert missing.status == 2


async def test_send_to_nobody_names_the_members(command):
    ran = await command("send", "fraud", "n9", "x")

    assert ran.status == 1
    assert "members: n1, n2, n3" in ran.err


async def test_request_prints_replies_and_a_closing_summary(command, controlled):
    controlled.voip.answers = [Reply(NodeId("n2"), b"here", round_trip_s=0.001)]
    controlled.voip.outcomes = {
        "n2": (Outcome.REPLIED, ResultCode.OK),
        "n3": (Outcome.NOTHING, ResultCode.OK),
    }

    people = await command("request", "locate", "alice")
    programs = await command("request", "locate", "alice", "--json", "--include-self")

    assert people.out == "n2 (1.0 ms): here\n"
    assert people.err == "2 asked; 1 replied; nothing to say: n3\n"
    reply, summary = map(json.loads, programs.out.splitlines())
    assert (reply["node_id"], reply["code"], reply["body"]) == ("n2", 200, "here")
    assert reply["round_trip_ms"] == 1.0
    assert summary["summary"] is True
    assert summary["nothing"] == ["n3"]
    assert programs.status == 0


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.UNANSWERED])
async def test_a_request_that_some_node_does_not_answer_ends_with_1(command, controlled, outcome):
    controlled.voip.outcomes = {"n2": (outcome, ResultCode.TIMEOUT)}

    assert (await command("request", "locate", "alice", "--node", "n2")).status == 1


async def test_topology_is_a_matrix(command, controlled):
    controlled.voip.outcomes = {"n2": (Outcome.UNANSWERED, ResultCode.TIMEOUT)}

    ran = await command("topology")

    assert ran.out.splitlines()[1].split() == ["n1", "·", "1.5", "ms", "not_active"]
    assert "n2: no answer in time" in ran.err
    assert ran.status == 1


async def test_bridge_status_lists_the_bridges_with_their_links(command):
    ran = await command("bridge", "status")
    json_ = await command("bridge", "status", "--json")

    lines = ran.out.splitlines()
    assert lines[0].split()[:3] == ["BRIDGE", "STATE", "RELAYED"]
    assert lines[1].split()[:3] == ["fraud", "standby", "0"]
    assert lines[2] == "fraud: channel:fraud@voip → channel:fraud@billing"
    assert json.loads(json_.out)[0]["links"] == ["channel:fraud@voip → channel:fraud@billing"]


async def test_the_commands_of_a_gateway_are_listed_and_run(command):
    listed = await command("gateway", "opensips")
    shown = await command("gateway", "opensips", "list_tags")
    taken = await command("gateway", "opensips", "take", "vip", "--json")
    wrong = await command("gateway", "opensips", "give")

    assert listed.out.splitlines()[2].split() == ["take", "TAG", "Take", "one."]
    assert shown.out.splitlines()[1].split() == ["vip", "1", "2", "x:Ok"]
    assert json.loads(taken.out) == {"taken": ["vip"]}
    assert wrong.status != 0 and "list_tags or take" in wrong.err


async def test_watch_prints_one_event_a_line(command, controlled, nursery):
    async def flood() -> None:
        while True:
            controlled.events.raise_event("E_SITE", {"site": "fra\x1b"})
            await trio.lowlevel.checkpoint()

    nursery.start_soon(flood)

    programs = await command("watch", "E_SITE", "--json", "--count", "2")
    people = await command("watch", "E_SITE", "--count", "1")

    assert len(programs.out.splitlines()) == 2
    assert json.loads(programs.out.splitlines()[0])["parameters"] == {"site": "fra\x1b"}
    assert "E_SITE site=fra\\x1b" in people.out


async def test_events_are_listed_and_raised(command, controlled):
    raised = await command("events", "raise", "E_SITE", "site=fra", "calls=12")
    listed = await command("events", "list")
    wrong = await command("events", "raise", "E_SITE", "site=fra", "12")

    assert raised.out == "E_SITE was raised\n"
    assert "peer:up" in listed.out
    assert wrong.status == 2


async def test_reload_says_what_was_loaded_or_why_not(command, controlled):
    assert (await command("reload")).out == "3 routes\n"
    controlled.reload_error = "routes.py, line 3"
    ran = await command("reload")
    assert (ran.status, ran.err) == (1, "clusternode: routes.py, line 3\n")

    for_programs = await command("reload", "--json")
    assert for_programs.status == 1
    assert json.loads(for_programs.out) == {"ok": False, "detail": "routes.py, line 3"}


async def test_stop_waits_until_the_agent_has_gone(controlled, tmp_path, capsys):
    from clusternode.control.server import ControlServer

    async def serve_until_stopped(*, task_status) -> None:
        async with trio.open_nursery() as inner:
            await inner.start(ControlServer(controlled, tmp_path / "s").run)
            task_status.started()
            await controlled.stopped.wait()
            inner.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve_until_stopped)
        words = ["stop", "--socket", str(tmp_path / "s")]
        status = await trio.to_thread.run_sync(main, words)

    assert status == 0
    assert "n1 (pid" in capsys.readouterr().out


async def test_a_command_finds_its_agent_by_the_configuration(command, server, tmp_path):
    file = tmp_path / "node.toml"
    file.write_text(f'[node]\ncontrol_socket = "{server.path.name}"\n')

    assert (await command("nodes", "list", "-c", str(file), where=False)).status == 0


async def test_a_command_finds_the_only_agent_of_its_user(command, server, monkeypatch):
    from clusternode.config import places

    monkeypatch.setenv("CLUSTERNODE__NODE__CONTROL_SOCKET", str(server.path))

    assert places.SOCKET_SUFFIX == ".sock"
    assert (await command("nodes", "list", where=False)).status == 0


def test_without_an_agent_the_status_is_3(tmp_path, capsys):
    assert main(["nodes", "list", "--socket", str(tmp_path / "none")]) == 3
    assert "clusternode run" in capsys.readouterr().err


def test_running_as_root_is_warned_of_and_as_anybody_else_is_not():
    assert "running as root" in root_advice(0)[0]
    assert root_advice(1000) == ()
