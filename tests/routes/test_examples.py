"""The files of docs/examples, in whole agents on a network in memory."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from clusternode.config import ExecRoute
from clusternode.routes.loader import load_table
from clusternode.simulation.runner import run_in
from clusternode.simulation.scenario import load
from clusternode.testing.world.worlds import world_of
from tests.agents import Cluster, eventually

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
SCRIPTING = ROOT / "docs" / "scripting.md"


def globals_of(node):
    """Return the global names of the routes file that an agent runs."""
    handlers = node.agent.dispatcher._table.handlers
    function = next(each.function for each in handlers if not each.thread)
    return function.__globals__


async def three(nursery, *files, **options):
    """Start three agents; the last file is that of all further ones."""
    cluster = Cluster(nursery)
    nodes = []
    for number in range(3):
        file = EXAMPLES / files[min(number, len(files) - 1)]
        nodes.append(await cluster.add(f"n{number + 1}", routes=file, **options))
    await cluster.everyone_active()
    await eventually(
        lambda: all(member.channels for each in nodes for member in each.bus.members())
    )
    return nodes


async def ask(node, channel, body):
    """Ask the node's own routes, as its proxy does; return what they say."""
    async with node.bus.request(channel, node.bus.node_id, body) as replies:
        return [reply.text for reply in await replies.gather()]


async def tell(node, channel, body):
    return (await node.bus.send(channel, node.bus.node_id, body))[node.bus.node_id]


async def test_an_attacker_found_by_one_is_blocked_by_all(nursery, autojump_clock):
    first, second, third = await three(nursery, "fraud.py")
    assert await ask(second, "fraud.check", "203.0.113.9") == []
    for _ in range(5):
        assert await tell(first, "fraud.failure", "203.0.113.9") == 200

    await eventually(lambda: "203.0.113.9" in globals_of(third)["blocked"])
    for node in (first, second, third):
        assert await ask(node, "fraud.check", "203.0.113.9") == ["blocked"]
    assert await ask(first, "fraud.check", "203.0.113.10") == []


async def test_a_call_is_routed_to_the_proxy_that_knows_the_user(nursery, autojump_clock):
    first, second, _ = await three(nursery, "locate.py")
    contact = "sip:alice@192.0.2.7:5060"
    assert await tell(second, "location.update", json.dumps({"user": "alice", "contact": contact}))

    (answer,) = await ask(first, "route-call", "alice")
    assert json.loads(answer) == {"node": "n2", "contact": contact}
    (answer,) = await ask(second, "route-call", "alice")
    assert json.loads(answer)["node"] == "n2"
    async with first.bus.request("route-call", "n1", "bob") as replies:
        assert await replies.gather() == []
    assert replies.outcomes["n1"].code == 404


async def test_every_proxy_knows_who_holds_a_conference(nursery, autojump_clock):
    first, second, third = await three(nursery, "conference.py")
    assert await ask(first, "conference.where", "600") == []
    await tell(third, "conference.here", json.dumps({"room": "600", "participants": 2}))
    await eventually(lambda: "600" in globals_of(second)["holder"])

    for node in (first, second, third):
        assert await ask(node, "conference.where", "600") == ["n3"]
    globals_of(first)["holder"].clear()
    assert await ask(first, "conference.where", "600") == ["n3"]
    await third.leave()
    await eventually(lambda: not globals_of(second)["holder"])


async def test_one_node_with_a_database_answers_for_the_rest(bus, run, tmp_path, monkeypatch):
    monkeypatch.setenv("CDR_DATABASE", str(tmp_path / "cdr.sqlite"))
    async with run(load_table(EXAMPLES / "database.py")):
        records = [json.dumps({"caller": "alice", "seconds": n}) for n in (30, 12)]
        assert await bus.finished(bus.message("cdr", *records)) == [200, 200]
        assert await bus.finished(bus.request("cdr.total", "alice")) == [200]

    assert json.loads(bus.replied[0][2]) == {"caller": "alice", "calls": 2, "seconds": 42}


async def test_an_executable_answers_in_shell(bus, run, tmp_path):
    shutil.copy(EXAMPLES / "locate.sh", tmp_path)
    route = ExecRoute(
        on="request:locate", exec=("./locate.sh",), environment={"CONTACTS": "users.txt"}
    )
    async with run(load_table(None, [route], tmp_path)):
        assert await bus.finished(bus.request("locate", "alice")) == [500]
        (tmp_path / "users.txt").write_text("alice sip:alice@192.0.2.7\n")
        assert await bus.finished(bus.request("locate", "alice", "bob")) == [200, 200]
        (tmp_path / "users.txt.lock").touch()
        assert await bus.finished(bus.request("locate", "alice")) == [486]

    assert [each[2] for each in bus.replied] == [b"sip:alice@192.0.2.7\n"]


async def test_every_other_feature_does_what_its_example_says(nursery, autojump_clock):
    first, second, third = await three(nursery, "features.py", clusters=("voip", "lab"))
    notes = [globals_of(each)["notes"] for each in (first, second, third)]
    await eventually(lambda: all("ready" in each for each in notes))
    assert "up: n2" in notes[0]

    assert await tell(first, "fast", "x") == 200 and "x" in notes[0]
    assert await tell(first, "counter", "x") == 200 and notes[0][-2:] == ["first", "second"]
    assert await tell(first, "trusted", "x") == 403
    assert await tell(first, "trusted", "signed x") == 200
    assert await ask(first, "progress", "") == ["ringing", "answered"]
    assert await ask(first, "dial", "") == ["connected"]
    await eventually(lambda: "n1 200" in notes[0])
    assert (await ask(first, "ask.events", ""))[0] in ("n1", "n2", "n3")
    replies = await first.bus.broadcast_request("mine", "7", include_self=True).gather()
    assert len(replies) == 1

    await tell(first, "state", "full")
    await eventually(lambda: "full from n1" in notes[1] and "full from n1" in notes[2])
    await second.kill()
    await eventually(lambda: any(each.startswith("n2 is not_active") for each in notes[0]))
    await third.leave()
    await eventually(lambda: "bye from n3" in notes[0])


def test_an_attacker_found_in_one_half_is_blocked_in_the_other_once_it_is_back(tmp_path):
    scenario = load(EXAMPLES / "fraud.toml")
    forgetful = tmp_path / "fraud.py"
    source = (EXAMPLES / "fraud.py").read_text(encoding="utf-8")
    forgetful.write_text(source.replace('@routes.event("peer:up")', ""), encoding="utf-8")

    with world_of("agents", scenario, 1) as world:
        told = run_in(world, scenario)
    with world_of("agents", scenario, 1, routes=forgetful) as world:
        not_told = run_in(world, scenario)

    assert list(told.violations) == []
    assert {one.detail for one in not_told.violations} == {
        "n4 replied nothing, not 'blocked'",
        "n5 replied nothing, not 'blocked'",
    }


def test_the_page_shows_every_example_and_no_other_code_than_theirs():
    """Each Python block of the page is a part of a tested file, word for word."""
    page = SCRIPTING.read_text(encoding="utf-8")
    sources = [
        each.read_text(encoding="utf-8") for each in sorted(EXAMPLES.iterdir()) if each.is_file()
    ]
    blocks = re.findall(r"^```(?:python|sh)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)

    assert blocks
    for block in blocks:
        assert any(block in source for source in sources), block
    pages = "\n".join(each.read_text(encoding="utf-8") for each in SCRIPTING.parent.glob("*.md"))
    for file in EXAMPLES.iterdir():
        assert file.is_dir() or f"examples/{file.name}" in pages, file.name
