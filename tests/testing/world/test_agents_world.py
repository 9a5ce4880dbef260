"""Whole agents in the simulator's world: what differs from nodes of the core alone."""

from __future__ import annotations

import pytest

from clusternode.errors import ScenarioError
from clusternode.simulation.runner import run_in
from clusternode.simulation.scenario import from_mapping
from clusternode.testing.world.worlds import check_routes, why_not, world_of


@pytest.fixture
def lived(tmp_path):
    """Live through a story of two or more agents with some routes; return the result."""

    def live(routes, *steps, nodes=2, **values):
        file = tmp_path / "routes.py"
        file.write_text("from clusternode import routes\n" + routes)
        story = {
            "title": "A story",
            "nodes": nodes,
            "duration": 30.0,
            "step": list(steps),
            **values,
        }
        scenario = from_mapping(story, name="story")
        with world_of("agents", scenario, 1, routes=file) as world:
            return run_in(world, scenario)

    return live


def broken(result):
    return sorted({one.invariant for one in result.violations})


def test_a_route_that_raises_is_named(lived):
    failing = """
@routes.message("fraud")
def heard(message):
    raise KeyError(message.text)
"""

    result = lived(failing, {"at": 10.0, "broadcast": "n1", "channel": "fraud", "body": "x"})

    assert [one.detail for one in result.violations] == ["n2: message:fraud heard: KeyError: 'x'"]


def test_routes_for_threads_run_in_their_turn_while_time_stands_still(lived):
    asking = """
@routes.request("database", thread=True)
def look_up(request):
    return request.text.upper()
"""
    step = {"at": 10.0, "request": "n1", "channel": "database", "body": "alice"}

    assert lived(asking, step | {"all_reply": "ALICE"}).ok
    assert broken(lived(asking, step | {"all_reply": "BOB"})) == ["replies-as-wanted"]


def test_load_on_a_channel_of_the_user_is_followed_to_its_handlers(lived):
    routes = """
@routes.message("news")
async def heard(message):
    pass

@routes.request("news")
async def asked(request):
    return "here"
"""
    load = {"at": 5.0, "load": ["broadcast", "request"], "rate": 20.0, "for": 10.0}

    assert lived(routes, load).ok


def test_what_a_script_sends_itself_need_not_be_text(lived):
    chatty = """
@routes.event("peer:up")
def greet(event):
    event.bus.send("fraud", event.node_id, bytes([0xFF, 0xFE]))

@routes.message("fraud")
def heard(message):
    assert message.body == bytes([0xFF, 0xFE])
"""

    assert lived(chatty).ok


def test_back_ends_outside_of_the_agents_are_refused(lived):
    result = lived('routes.subscribe_event("peer:up", "flatstore:/var/log/peers.log")\n')

    assert broken(result) == ["no-node-fails"]
    assert "subscribe_event: flatstore:/var/log/peers.log" in result.violations[0].detail


def test_routes_that_cannot_be_loaded_are_a_wrong_story(tmp_path):
    file = tmp_path / "routes.py"
    file.write_text("nonsense")

    with pytest.raises(ScenarioError, match="NameError"):
        check_routes(file)


def test_a_story_for_routes_needs_whole_agents():
    step = {"at": 1.0, "broadcast": "n1", "body": "x"}
    story = from_mapping({"title": "A story", "nodes": 2, "step": [step]}, name="story")

    assert why_not("agents", story) == ""
    assert why_not("model", story) == "what it sends is for event routes"
