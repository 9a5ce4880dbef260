"""The control socket: who may listen, what is answered, and that nothing hurts it."""

from __future__ import annotations

import json
import socket
import stat
import tempfile
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from clusternode.bus.interface import Reply
from clusternode.control import calls as calls_module
from clusternode.control.requests import CALLS, LINE_BYTES_MAX, TOO_SLOW
from clusternode.control.server import ControlServer, parse_line_untrusted
from clusternode.core.effects import Outcome
from clusternode.core.events import PeerUp
from clusternode.core.types import NodeId, ResultCode
from clusternode.errors import AddressInUse, ControlError, StateError
from tests.control.conftest import RawClient
from tests.fakes.bus import FakeControlled


async def test_the_socket_is_for_its_user_only(server):
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.path.parent.stat().st_mode) == 0o700


async def test_info_says_who_answers(client):
    result = (await client.ask("agent.info"))["result"]

    assert result["node_id"] == "n1"
    assert result["clusters"] == ["voip", "billing", "opensips"]
    assert result["pid"] > 0
    assert result["control"]["clients"] == 1


async def test_the_socket_of_a_live_agent_is_not_taken(server, controlled):
    with pytest.raises(AddressInUse, match=r"agent n1 \(pid \d+\)"):
        await ControlServer(controlled, server.path).run()


async def test_the_socket_of_a_dead_agent_is_taken_over(controlled, tmp_path, nursery):
    path = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    await nursery.start(ControlServer(controlled, path).run)

    async with await trio.open_unix_socket(str(path)) as stream:
        assert (await RawClient(stream).ask("agent.info"))["result"]["node_id"] == "n1"


async def test_a_file_that_is_no_socket_is_left_alone(controlled, tmp_path):
    path = tmp_path / "precious"
    path.write_text("text")

    with pytest.raises(StateError, match="no socket"):
        await ControlServer(controlled, path).run()

    assert path.read_text() == "text"


async def test_a_directory_that_cannot_be_made_is_named(controlled, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r"n1\.sock"):
        await ControlServer(controlled, tmp_path / "file" / "n1.sock").run()


async def test_the_socket_goes_with_the_agent(controlled, tmp_path):
    path = tmp_path / "n1.sock"
    async with trio.open_nursery() as nursery:
        await nursery.start(ControlServer(controlled, path).run)
        assert path.exists()
        nursery.cancel_scope.cancel()

    assert not path.exists()


async def test_members_are_listed_in_our_words_and_in_kamailios(client):
    ours = (await client.ask("cluster.list"))["result"]
    theirs = (await client.ask("dmq.list_nodes", []))["result"]

    assert [row["node_id"] for row in ours] == ["n1", "n2", "n3"]
    assert ours[1]["round_trip_ms"] == 1.5
    assert theirs[1]["host"] == "n2.example"
    assert theirs[1]["port"] == 5062
    assert theirs[1]["resolved_ip"] == "192.0.2.7"
    assert (theirs[0]["local"], theirs[1]["local"]) == (1, 0)


async def test_show_has_counters_and_routes(client):
    shown = (await client.ask("cluster.show", {"cluster": "billing"}))["result"]

    assert shown["cluster"] == "billing"
    assert shown["counters"] == {"pings_opened": 3}
    assert shown["digest"] == "00000000000000ff"
    assert shown["routes"][0]["route"] == "request:locate"


async def test_broadcast_gives_one_result_per_node(client, controlled):
    controlled.voip.results = {"n2": ResultCode.OK, "n3": ResultCode.UNAVAILABLE}
    params = {"channel": "fraud", "body_base64": "/w==", "except": ["n4"]}

    result = (await client.ask("cluster.broadcast", params))["result"]

    assert result["n2"] == {"code": 200, "definite": False, "text": "ok"}
    assert result["n3"] == {"code": 480, "definite": True, "text": "unavailable"}
    call, given_, options = controlled.voip.calls[0]
    assert (call, given_, options["except_"]) == ("broadcast", ("fraud", b"\xff"), ["n4"])


async def test_a_node_can_be_named_by_its_address(client, controlled):
    await client.ask("cluster.send", ["fraud", "tcp://n2.example:5062", "x"])
    removed = await client.ask("dmq.remove", {"node": "n2.example:5062"})

    assert controlled.voip.calls[0][1] == ("fraud", "n2", "x")
    assert removed["result"] == {"removed": "n2"}


async def test_a_request_streams_its_replies_and_then_the_summary(client, controlled):
    controlled.voip.answers = [
        Reply(NodeId("n2"), b"here", round_trip_s=0.001),
        Reply(NodeId("n2"), b"\xff"),
    ]
    controlled.voip.outcomes = {
        "n2": (Outcome.REPLIED, ResultCode.OK),
        "n3": (Outcome.FAILED, ResultCode.UNAVAILABLE),
        "n4": (Outcome.UNANSWERED, ResultCode.TIMEOUT),
        "n5": (Outcome.NOTHING, ResultCode.OK),
    }

    first = await client.ask("cluster.request", {"channel": "locate", "body": "alice"}, "q")
    second, summary = await client.line(), await client.line()

    assert first["method"] == "cluster.request"
    assert first["params"]["call"] == "q"
    assert first["params"]["item"]["body"] == "here"
    assert second["params"]["item"]["body_base64"] == "/w=="
    assert summary["result"] == {
        "summary": True,
        "tag": "t1",
        "asked": ["n2", "n3", "n4", "n5"],
        "replied": ["n2"],
        "nothing": ["n5"],
        "failed": {"n3": {"code": 480, "definite": True, "text": "unavailable"}},
        "unanswered": ["n4"],
    }


async def test_topology_is_a_matrix_and_names_who_is_silent(client, controlled):
    view = {"node_id": "n2", "digest": "aa", "members": [["n1", "active", "direct", 2.5, 0]]}
    controlled.voip.answers = [Reply(NodeId("n2"), json.dumps(view).encode())]
    controlled.voip.outcomes = {
        "n2": (Outcome.REPLIED, ResultCode.OK),
        "n3": (Outcome.FAILED, ResultCode.UNAVAILABLE),
    }

    result = (await client.ask("cluster.topology"))["result"]

    assert result["nodes"] == ["n1", "n2", "n3"]
    assert result["views"]["n1"]["n3"]["status"] == "not_active"
    assert result["views"]["n2"]["n1"]["round_trip_ms"] == 2.5
    assert result["unanswered"] == {"n3": "480 unavailable"}


async def test_the_topology_of_a_cluster_that_floods_it_is_not_asked_for(client, controlled):
    result = (await client.ask("cluster.topology", {"cluster": "opensips"}))["result"]

    assert result["nodes"] == ["1", "2", "3"] and list(result["views"]) == ["1", "2"]
    assert result["views"]["1"]["2"]["round_trip_ms"] == 1.0
    assert list(result["unanswered"]) == ["3"] and controlled.foreign.calls == []


async def test_a_gateway_is_asked_for_what_its_own_tools_have(client, controlled):
    async def ask(call, **values):
        return await client.ask(call, {"cluster": "opensips", **values})

    listed = await ask("gateway.operations")
    taken = await ask("gateway.call", command="take", arguments=["vip"])
    wrong = await ask("gateway.call", command="give")
    ours = await client.ask("gateway.operations", {"cluster": "voip"})

    assert [each["name"] for each in listed["result"]] == ["list_tags", "take"]
    assert taken["result"] == {"taken": ["vip"]}
    assert wrong["error"]["code"] == ours["error"]["code"] == -32602


async def test_garbage_for_a_view_is_named(client, controlled):
    controlled.voip.answers = [Reply(NodeId("n2"), b"[[[")]
    controlled.voip.outcomes = {"n2": (Outcome.REPLIED, ResultCode.OK)}

    result = (await client.ask("cluster.topology"))["result"]

    assert result["unanswered"]["n2"] == "its answer is no view"


async def test_events_are_watched_by_patterns(client, controlled):
    await client.stream.send_all(
        b'{"id":9,"method":"agent.watch","params":[["peer:*","E_*","E_SITE"]]}\n'
    )
    assert (await client.ask("agent.info"))["result"]

    controlled.events.publish(controlled.billing, PeerUp("billing", "n2", "tcp://n2:1"))
    controlled.events.raise_event("E_SITE", {"site": "fra"})

    first, second = await client.line(), await client.line()
    assert first["params"]["item"] == {
        "cluster": "billing",
        "event": "E_CLUSTERNODE_PEER_UP",
        "alias": "peer:up",
        "parameters": {"cluster_id": "billing", "node_id": "n2", "address": "tcp://n2:1"},
    }
    assert second["params"]["item"]["parameters"] == {"site": "fra"}


async def test_a_watcher_that_does_not_read_is_ended_and_counted(client, server, controlled):
    await client.stream.send_all(b'{"id":9,"method":"agent.watch"}\n')
    assert (await client.ask("agent.info"))["result"]

    for number in range(calls_module.WATCH_BACKLOG + 2):  # one goes straight to the reader
        controlled.events.raise_event("E_FLOOD", {"number": number})

    while "method" in (line := await client.line()):
        pass
    assert line["error"]["code"] == TOO_SLOW
    assert server.counters.slow_watchers == 1


async def test_a_client_that_hangs_up_leaves_nothing_behind(server, controlled, autojump_clock):
    stream = await trio.open_unix_socket(str(server.path))
    await stream.send_all(b'{"id":9,"method":"agent.watch"}\n')
    await trio.testing.wait_all_tasks_blocked()

    await stream.aclose()
    await trio.testing.wait_all_tasks_blocked(0.01)

    assert server.counters.clients == 0


async def test_a_client_that_only_stops_writing_gets_its_answers(server):
    async with await trio.open_unix_socket(str(server.path)) as stream:
        await stream.send_all(b'{"id":1,"method":"agent.info"}')
        stream.socket.shutdown(socket.SHUT_WR)

        assert (await RawClient(stream).line())["result"]["node_id"] == "n1"


async def test_events_are_listed_and_raised(client):
    raised = await client.ask("event.raise", {"name": "E_SITE", "parameters": {"a": [1]}})
    listed = (await client.ask("event.list"))["result"]
    refused = await client.ask("event.raise", {"name": "peer:up"})

    assert raised["result"] == {"raised": "E_SITE", "subscribers": 0, "statuses": []}
    assert {"peer:up", "node:state"} <= {event["alias"] for event in listed}
    assert "E_SITE" in [event["event"] for event in listed]
    assert refused["error"]["code"] == -32602


async def test_reload_tells_what_was_loaded_or_why_not(client, controlled):
    assert (await client.ask("agent.reload"))["result"] == {"detail": "3 routes"}
    controlled.reload_error = "routes.py line 3"
    assert (await client.ask("agent.reload"))["error"]["message"] == "routes.py line 3"


async def test_stop_is_answered_before_the_agent_stops(client, controlled):
    assert (await client.ask("agent.stop"))["result"] == {"stopping": True}
    await controlled.stopped.wait()


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        (b"nonsense\n", -32700, "JSON"),
        (b"\xff\n", -32700, "UTF-8"),
        (b"[" * 100_000 + b"\n", -32700, "JSON"),
        (b"[]\n", -32600, "batches"),
        (b"1\n", -32600, "object"),
        (b"{}\n", -32600, "method"),
        (b'{"id":[],"method":"agent.info"}\n', -32600, "`id`"),
        (b'{"id":1,"jsonrpc":"1.0","method":"agent.info"}\n', -32600, "2.0"),
        (b'{"id":1,"method":"agent.inf"}\n', -32601, "did you mean agent.info?"),
        (b'{"id":1,"method":"cluster.list","params":{"clutser":"a"}}\n', -32602, "cluster?"),
        (b'{"id":1,"method":"cluster.list","params":[1,2]}\n', -32602, "at most 1"),
        (b'{"id":1,"method":"cluster.list","params":"x"}\n', -32602, "object or an array"),
        (b'{"id":1,"method":"cluster.list","params":{"cluster":"x"}}\n', -32001, "voip"),
        (b'{"id":1,"method":"cluster.send","params":{"channel":"a"}}\n', -32602, "node is missing"),
        (b'{"id":1,"method":"dmq.remove","params":{"node":"n9"}}\n', -32002, "members: n1"),
        (b'{"id":1,"method":"dmq.remove","params":{"node":"n1"}}\n', -32002, "this node"),
        (b'{"id":1,"method":"dmq.add","params":["x"]}\n', -32602, "tcp://"),
        (b'{"id":1,"method":"dmq.change_status","params":["n2","up"]}\n', -32602, "one of active"),
        (b'{"id":1,"method":"cluster.broadcast","params":["a b","x"]}\n', -32602, "channel"),
        (b'{"id":1,"method":"cluster.broadcast","params":["a",1]}\n', -32602, "body must be"),
        (b'{"id":1,"method":"cluster.broadcast","params":["a",null,"%"]}\n', -32602, "base64"),
        (b'{"id":1,"method":"cluster.broadcast","params":["a","\\ud800"]}\n', -32700, "surrogates"),
        (
            b'{"id":1,"method":"cluster.request","params":{"channel":"a","timeout":0}}\n',
            -32602,
            "timeout",
        ),
        (b'{"method":"agent.watch"}\n', -32600, "needs an `id`"),
        (b'{"id":1,"method":"agent.watch","params":[["a b"]]}\n', -32602, "event"),
    ],
)
async def test_what_is_wrong_is_answered_with_what_to_do(client, line, code, text):
    error = (await client.say(line))["error"]

    assert error["code"] == code
    assert text in error["message"]
    assert (await client.ask("agent.info"))["result"]["node_id"] == "n1"


async def test_a_body_that_is_too_large_is_refused(client):
    answer = await client.ask("cluster.broadcast", {"channel": "a", "body": "x" * 2000})

    assert answer["error"]["code"] == -32003


@pytest.mark.slow
async def test_a_line_without_end_closes_the_connection(client, server):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_pour, client.stream)
        answer = await client.line()
        nursery.cancel_scope.cancel()

    assert "at most" in answer["error"]["message"]
    async with await trio.open_unix_socket(str(server.path)) as stream:
        assert (await RawClient(stream).ask("agent.info"))["result"]


async def _pour(stream):
    try:
        while True:
            await stream.send_all(b"x" * 1024 * 1024)
    except trio.BrokenResourceError:
        return


async def test_a_notification_gets_no_answer(client, controlled):
    await client.stream.send_all(b'{"method":"dmq.add","params":["tcp://n9:1"]}\n')

    assert (await client.ask("agent.info"))["id"] == 1
    assert controlled.voip.calls[0][:2] == ("add", ("tcp://n9:1",))


@given(st.binary(max_size=100))
def test_any_line_is_a_request_or_an_error(line):
    try:
        assert set(parse_line_untrusted(line)) == {"id", "method", "params"}
    except ControlError as error:
        assert error.code in (-32700, -32600)  # noqa: PT017  # both ends are fine


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
NAMES = [call.name for call in CALLS if call.name not in ("agent.stop", "agent.watch")]
PARAMETERS = sorted({parameter.name for call in CALLS for parameter in call.parameters})
requests = st.fixed_dictionaries(
    {"id": st.just(1), "method": st.sampled_from(NAMES)},
    optional={
        "params": json_values
        | st.dictionaries(st.sampled_from(PARAMETERS), json_values, max_size=5)
    },
)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60) | requests, max_size=8))
async def test_no_lines_disturb_the_server(lines):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "n1.sock"
        async with trio.open_nursery() as nursery:
            await nursery.start(ControlServer(FakeControlled(), path).run)
            await say_lines(path, lines)
            nursery.cancel_scope.cancel()


async def say_lines(path, lines):
    async with await trio.open_unix_socket(str(path)) as stream:
        client = RawClient(stream)
        for line in lines:
            data = line if isinstance(line, bytes) else json.dumps(line).encode()
            await stream.send_all(data.replace(b"\n", b" ") + b"\n")
        await stream.send_all(b'{"id":"last","method":"agent.info"}\n')
        with trio.fail_after(10):
            while (answer := await client.line())["id"] != "last":
                assert "result" in answer or "error" in answer
    assert answer["result"]["node_id"] == "n1"


def test_a_line_may_carry_the_largest_body():
    assert LINE_BYTES_MAX > 16 * 1024 * 1024 * 4 // 3
