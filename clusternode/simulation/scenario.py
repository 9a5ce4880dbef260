"""Stories in TOML: who is there, what happens when, what must hold. See docs/simulation.md."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from clusternode.core.types import Address, NodeId, Seconds
from clusternode.errors import ScenarioError
from clusternode.simulation.faults import (
    STEP_KINDS,
    Action,
    answer_of,
    behaviour_of,
    quality_of,
)
from clusternode.simulation.fidelity import WIRES
from clusternode.simulation.invariants import ALWAYS, EVENTUALLY
from clusternode.simulation.resolver import Answer
from clusternode.simulation.settings import settings_of
from clusternode.simulation.tables import NODES_MAX, REQUIRED, Table, suggest
from clusternode.simulation.world import WorldPlan, address_of

WORLDS = ("model", "agents")
"""Nodes of the core alone, or whole agents."""
ROUTE_KEYS = ("body", "all_reply")
"""Keys of steps that mean something to the routes of a user only."""
NEEDS_ROUTES = "what it sends is for event routes"
DEFAULT_SPREAD: Seconds = 1.0
"""Nodes that run from the start are started within so many seconds."""


@attrs.frozen
class Step:
    """One thing that happens."""

    at: Seconds
    kind: str
    action: Action
    detail: str
    """What else the story says of it, in one line."""


@attrs.frozen
class Hope:
    """What must hold at one moment."""

    by: Seconds
    holds: Sequence[str]


@attrs.frozen(kw_only=True)
class Scenario:
    """A story that was read and checked."""

    name: str
    title: str
    file: Path | None
    seed: int
    plan: WorldPlan
    initial: Sequence[NodeId]
    """Who is started at the beginning, within `spread` seconds."""
    spread: Seconds
    names: Mapping[str, Answer]
    """What the resolver knows at the beginning."""
    steps: Sequence[Step]
    always: Sequence[str]
    eventually: Sequence[Hope]
    duration: Seconds
    is_slow: bool
    """Whether it takes long enough that a quick test run leaves it out."""
    worlds: Sequence[str]
    """In which worlds it makes sense."""
    because: str
    """Why not in the others."""
    routes: Path | None
    """The event routes of a user, which run on every node; for whole agents only."""


def load(path: Path, *, nodes: int | None = None) -> Scenario:
    """Read a scenario file.

    Args:
        path: The file.
        nodes: Instead of the number of nodes in the file.

    Raises:
        ScenarioError: It cannot be read, or something in it is wrong.
    """
    return from_mapping(read(path), name=path.stem, file=path, nodes=nodes)


def read(path: Path) -> dict[str, Any]:
    """Return what a scenario file says, unchecked.

    Raises:
        ScenarioError: It cannot be read, or is not TOML.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: not TOML: {error}") from error


def from_mapping(
    values: Mapping[str, Any], *, name: str, file: Path | None = None, nodes: int | None = None
) -> Scenario:
    """Check a story that was read, or made.

    Raises:
        ScenarioError: Something in it is wrong.
    """
    table = Table(str(file) if file else name, values)
    count = table.whole("nodes", REQUIRED, at_least=1) if nodes is None else nodes
    table.taken["nodes"] = None
    if not 1 <= count <= NODES_MAX:
        raise table.error("nodes", f"{count}: expected 1 to {NODES_MAX}")
    table.node_ids = [NodeId(f"n{number}") for number in range(1, count + 1)]
    steps = sorted((_step(one) for one in table.tables("step")), key=lambda step: step.at)
    always, eventually = _expectations(table.table("expect"))
    has_routes = "routes" in values or any(
        key in step for step in values.get("step", ()) for key in ROUTE_KEYS
    )
    last = max([step.at for step in steps] + [hope.by for hope in eventually], default=0.0)
    scenario = Scenario(
        name=name,
        title=table.text("title", REQUIRED),
        file=file,
        seed=table.whole("seed", 1),
        plan=_plan(table),
        initial=table.nodes("start", "*"),
        spread=table.number("spread", DEFAULT_SPREAD),
        names=_names(table.table("dns")),
        steps=steps,
        always=always,
        eventually=eventually,
        duration=table.number("duration", last),
        is_slow=table.flag("slow"),
        worlds=table.names("worlds", WORLDS, ["agents"] if has_routes else list(WORLDS)),
        because=table.text("because", NEEDS_ROUTES if has_routes else ""),
        routes=_routes(table, file),
    )
    table.finish()
    if len(scenario.worlds) < len(WORLDS) and not scenario.because:
        raise table.error("because", "is missing: why not in the other world?")
    if scenario.duration < last:
        raise table.error("duration", f"{scenario.duration:g}: expected at least {last:g}")
    if not scenario.duration:
        raise table.error("duration", "is missing: nothing else says how long it takes")
    return scenario


def _routes(table: Table, file: Path | None) -> Path | None:
    """Read `routes`, a file beside the story."""
    name = table.text("routes")
    if not name:
        return None
    return Path(name) if file is None else file.parent / name


def _plan(table: Table) -> WorldPlan:
    addresses = {node_id: address_of(index) for index, node_id in enumerate(table.node_ids)}
    texts = table.take("notification", list, "nodes or addresses", ["n1"])
    settings = settings_of(table.table("settings"))
    network, handlers = table.table("network"), table.table("handlers")
    nodes = table.table("node")
    plan = WorldPlan(
        node_ids=table.node_ids,
        notification=[table.address("notification", text, addresses) for text in texts],
        health=settings.health,
        discovery=settings.discovery,
        messaging=settings.messaging,
        channels=settings.channels,
        quality=quality_of(network),
        behaviour=behaviour_of(handlers),
        notification_of=_notification_of(nodes, addresses),
        id_of=_twins(nodes),
        fidelity=table.names("fidelity", WIRES, "messages")[0],
    )
    for part in (network, handlers):
        part.finish()
    return plan


def _notification_of(
    nodes: Table, addresses: Mapping[NodeId, Address]
) -> dict[NodeId, list[Address]]:
    """Read `[node."n3..n5"]`: what some nodes have instead of the common settings."""
    found: dict[NodeId, list[Address]] = {}
    for pattern in nodes.values:
        one = nodes.table(pattern)
        one.taken["id"] = None  # read by `_twins`
        default = [] if one.has("id") else REQUIRED
        texts = one.take("notification", list, "nodes or addresses", default)
        notification = [one.address("notification", text, addresses) for text in texts]
        if notification:
            for node_id in nodes.expand(pattern, pattern):
                found[node_id] = notification
        one.finish()
    return found


def _twins(nodes: Table) -> dict[NodeId, NodeId]:
    """Read `[node."n5"] id = "n3"`: a host that claims the node id of another one."""
    found: dict[NodeId, NodeId] = {}
    for pattern, values in nodes.values.items():
        if isinstance(values, dict) and "id" in values:
            (claimed,) = nodes.table(pattern).nodes("id")
            for node_id in nodes.expand(pattern, pattern):
                found[node_id] = claimed
    return found


def _names(dns: Table) -> dict[str, Answer]:
    """Read `[dns."cluster.example"]`."""
    answers = {}
    for name in dns.values:
        one = dns.table(name)
        answers[name] = answer_of(one)
        one.finish()
    return answers


def _step(table: Table) -> Step:
    at = table.number("at", REQUIRED)
    kinds = [key for key in table.values if key in STEP_KINDS]
    if len(kinds) != 1:
        others = [key for key in table.values if key not in (*STEP_KINDS, "at")]
        if not kinds and others:
            raise table.error(others[0], f"unknown step; {suggest(others[0], STEP_KINDS)}")
        problem = f"has {len(kinds)} kinds; expected one of {', '.join(sorted(STEP_KINDS))}"
        raise table.error("step", problem)
    table.taken[kinds[0]] = None
    action = STEP_KINDS[kinds[0]](table)
    table.finish()
    return Step(at, kinds[0], action, _detail(table.values, kinds[0]))


def _detail(values: Mapping[str, Any], kind: str) -> str:
    """Say whom a step is about and how, as the story does."""
    about = "" if values[kind] is True else _words(values[kind])
    rest = [f"{key} {_words(value)}" for key, value in values.items() if key not in (kind, "at")]
    return ", ".join(part for part in (about, *rest) if part)


def _words(value: Any) -> str:  # noqa: ANN401  # what TOML holds
    if isinstance(value, list):
        mark = " | " if any(isinstance(one, list) for one in value) else " "
        return mark.join(map(_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _expectations(table: Table) -> tuple[list[str], list[Hope]]:
    always = table.names("always", ALWAYS, list(ALWAYS))
    value = table.take("eventually", (dict, list), "a table with by and holds, or several", [])
    hopes = []
    for number, values in enumerate(value if isinstance(value, list) else [value], 1):
        if not isinstance(values, dict):
            raise table.error("eventually", f"{values!r}: expected a table with by and holds")
        one = Table(f"{table.where}: eventually {number}", values, table.node_ids)
        hopes.append(Hope(one.number("by", REQUIRED), one.names("holds", EVENTUALLY)))
        one.finish()
    table.finish()
    return always, sorted(hopes, key=lambda hope: hope.by)
