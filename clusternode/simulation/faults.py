"""What can happen in a story: one function per kind of step.

Each reads its step, refuses what is wrong with it, and returns what it does to a world. Adding
one: a function, registered under the key that stands in the step. Documented in
docs/simulation.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import attrs

from clusternode.core.types import Address, ChannelName, NodeId, Seconds
from clusternode.simulation.network import DISTRIBUTIONS, LinkQuality
from clusternode.simulation.resolver import ANSWER_DELAY, Answer
from clusternode.simulation.surroundings import Behaviour
from clusternode.simulation.tables import REQUIRED, Table
from clusternode.simulation.world import World, address_of

Action: TypeAlias = Callable[[World], None]
Prepare: TypeAlias = Callable[[Table], Action]

STEP_KINDS: dict[str, Prepare] = {}
CLOCK_RATE_MIN = 0.5
"""No oscillator is worse by far."""
LOAD_KINDS = ("broadcast", "send", "request", "ask")
TIMES_MAX = 100_000
"""So often one step does its thing; more takes hours and gigabytes, and is a slip of the pen."""


def step(kind: str) -> Callable[[Prepare], Prepare]:
    """Register a kind of step under its key."""
    return lambda prepare: STEP_KINDS.setdefault(kind, prepare)


def _each(nodes: Sequence[NodeId], act: Callable[[World, NodeId], None]) -> Action:
    def action(world: World) -> None:
        for node_id in nodes:
            act(world, node_id)

    return action


# Processes and hosts.


@step("start")
def start(table: Table) -> Action:
    """Start nodes that do not run; `within` spreads them over so many seconds."""
    nodes, within = table.nodes("start"), table.number("within")

    def action(world: World) -> None:
        for node_id in nodes:
            if within:
                world.after(world.rng.uniform(0, within), world.start, node_id)
            else:
                world.start(node_id)

    return action


@step("stop")
def stop(table: Table) -> Action:
    """Let nodes leave the cluster cleanly."""
    return _each(table.nodes("stop"), World.stop)


@step("kill")
def kill(table: Table) -> Action:
    """Kill processes on hosts that live on (SIGKILL)."""
    return _each(table.nodes("kill"), World.kill)


@step("power_off")
def power_off(table: Table) -> Action:
    """Take hosts off the network without a word; `start` brings them back."""
    return _each(table.nodes("power_off"), World.power_off)


@step("restart")
def restart(table: Table) -> Action:
    """Kill processes and start them again `after` some seconds."""
    nodes, after = table.nodes("restart"), table.number("after", 0.5)

    def act(world: World, node_id: NodeId) -> None:
        world.kill(node_id)
        world.after(after, world.start, node_id)

    return _each(nodes, act)


@step("pause")
def pause(table: Table) -> Action:
    """Hold processes still (SIGSTOP), until `resume` or for so many seconds."""
    nodes, seconds = table.nodes("pause"), table.number("for")

    def act(world: World, node_id: NodeId) -> None:
        world.pause(node_id)
        if seconds:
            world.after(seconds, world.resume, node_id)

    return _each(nodes, act)


@step("resume")
def resume(table: Table) -> Action:
    """Let paused processes go on."""
    return _each(table.nodes("resume"), World.resume)


@step("remove")
def remove(table: Table) -> Action:
    """Take nodes off the member list `at_nodes` (dmq.remove)."""
    nodes, places = table.nodes("remove"), table.nodes("at_nodes", "*")

    def act(world: World, node_id: NodeId) -> None:
        world.remove(node_id, places)

    return _each(nodes, act)


# Links.


@step("partition")
def partition(table: Table) -> Action:
    """Let nothing through between groups of nodes, both ways."""
    groups = table.groups("partition")

    def action(world: World) -> None:
        for one in groups:
            for other in groups:
                if one is not other:
                    world.block(one, other)

    return action


@step("block")
def block(table: Table) -> Action:
    """Let nothing through one way: from the first group to the second."""
    sources, targets = table.groups("block")[:2]
    return lambda world: world.block(sources, targets)


@step("cut")
def cut(table: Table) -> Action:
    """Cut the link between two nodes, or two groups, both ways."""
    one, other = table.groups("cut")[:2]

    def action(world: World) -> None:
        world.block(one, other)
        world.block(other, one)

    return action


@step("heal")
def heal(table: Table) -> Action:
    """Mend all links (`true`), or those between two groups."""
    if table.values["heal"] is True:
        table.flag("heal")
        return lambda world: world.heal()
    one, other = table.groups("heal")[:2]
    return lambda world: world.heal([(a, b) for a in one for b in other])


@step("reset")
def reset(table: Table) -> Action:
    """Break connections: between all of some nodes, or a `share` of them; they are lost at once.

    With `rate`, so many a second `for` so many seconds, between pairs that the seed draws.
    """
    nodes, share = table.nodes("reset"), table.share("share", 1.0)
    rate, seconds = _rate_and_time(table, 0.0, 10.0)
    pairs = [(a, b) for index, a in enumerate(nodes) for b in nodes[index + 1 :]]

    def once(world: World) -> None:
        world.reset([pair for pair in pairs if share >= 1 or world.rng.random() < share])

    def one_of_many(world: World, until: float) -> None:
        world.reset([world.rng.choice(pairs)])
        _repeat(world, rate, until, one_of_many)

    def action(world: World) -> None:
        if rate:
            one_of_many(world, world.now + seconds)
        else:
            once(world)

    return action if pairs else lambda world: None


@step("link")
def link(table: Table) -> Action:
    """Change how good the links between groups of nodes are, both ways."""
    groups = table.groups("link")
    quality = quality_of(table)

    def action(world: World) -> None:
        world.set_quality(groups[0], groups[1], quality)

    return action


def quality_of(table: Table) -> LinkQuality:
    """Read latency, loss and bandwidth."""
    low, high = table.span("latency", (0.0002, 0.002))
    bandwidth = table.number("bandwidth", at_least=0.0)
    distribution = table.names("distribution", DISTRIBUTIONS, "uniform")[0]
    return LinkQuality(low, high, table.share("loss"), bandwidth or None, distribution)


@step("stall")
def stall(table: Table) -> Action:
    """Hold what is between two nodes, or two groups, `for` some seconds, and let it go on."""
    one, other = table.groups("stall")[:2]
    seconds = table.number("for", REQUIRED)
    return lambda world: world.stall(one, other, seconds)


@step("uplink")
def uplink(table: Table) -> Action:
    """Let all that hosts send share one `bandwidth`; without it there is no limit."""
    nodes, bandwidth = table.nodes("uplink"), table.number("bandwidth")
    return lambda world: world.set_uplink(nodes, bandwidth or None)


# Names.


@step("dns")
def dns(table: Table) -> Action:
    """Change what a name resolves to: `answers`, or `error`, after `delay` seconds."""
    name, answer = table.text("dns", REQUIRED), answer_of(table)
    return lambda world: world.resolver.script(name, answer)


def answer_of(table: Table) -> Answer:
    """Read an answer of the resolver."""
    texts = table.take("answers", list, "nodes or addresses", [])
    addresses = {node_id: address_of(index) for index, node_id in enumerate(table.node_ids)}
    found: list[Address] = [table.address("answers", text, addresses) for text in texts]
    error = table.text("error") or None
    if not found and error is None:
        error = "no addresses"
    return Answer(found, error, table.number("delay", ANSWER_DELAY))


# Disks and clocks.


@step("disk")
def disk(table: Table) -> Action:
    """Let writing the state fail with an `error`, or not; `wiped` loses what was written."""
    nodes, error, is_wiped = table.nodes("disk"), table.text("error"), table.flag("wiped")

    def act(world: World, node_id: NodeId) -> None:
        host = world.hosts[node_id]
        host.disk_error = error
        if is_wiped:
            host.incarnation, host.known = 0, (world.now, ())

    return _each(nodes, act)


@step("clock")
def clock(table: Table) -> Action:
    """Set how wrong the wall clock is from the next start on, and how fast timers run from then."""
    nodes, rate = table.nodes("clock"), table.number("rate", 1.0, at_least=CLOCK_RATE_MIN)
    offset = float(table.take("offset", (int, float), "seconds, before or after", 0.0))

    def act(world: World, node_id: NodeId) -> None:
        world.hosts[node_id].clock_offset = offset
        world.hosts[node_id].clock_rate = rate

    return _each(nodes, act)


# What the hosts do.


@step("handlers")
def handlers(table: Table) -> Action:
    """Change how the handlers of nodes behave."""
    nodes, behaviour = table.nodes("handlers"), behaviour_of(table)
    return _each(nodes, lambda world, node_id: world.set_behaviour(node_id, behaviour))


def behaviour_of(table: Table) -> Behaviour:
    """Read how handlers behave."""
    low, high = table.span("handling", (0.0, 0.001))
    return Behaviour(
        handling_min=low,
        handling_max=high,
        reply_share=table.share("replies", 0.5),
        failure_share=table.share("failures"),
        queue_size=table.whole("queue_size", 10_000, at_least=1),
        requests_max=table.whole("requests_max", 100, at_least=1),
    )


@attrs.frozen
class Load:
    """Who sends what, how often."""

    kind: str
    nodes: Sequence[NodeId]
    channel: ChannelName
    rate: float
    timeout: Seconds
    body_size: int
    include_self: bool = False
    text: str = ""
    """The body, for routes of the user; empty: one by which it is known again."""
    wanted: str | None = None
    """What every node has to reply."""

    def send_one(self, world: World) -> None:
        """Let one of the nodes that can send something."""
        able = [
            process
            for node_id in self.nodes
            if (process := world.hosts[node_id].process) is not None and process.can_send
        ]
        if not able:
            return
        process = world.rng.choice(able)
        if self.kind == "broadcast":
            world.traffic.publish(process, self.channel, None, self.body_size, self.text)
        elif self.kind == "request":
            world.traffic.ask(
                process,
                self.channel,
                self.timeout,
                None,
                text=self.text,
                wanted=self.wanted,
                include_self=self.include_self,
            )
        else:
            other = world.rng.choice([n for n in world.hosts if n != process.node_id])
            if self.kind == "send":
                world.traffic.publish(process, self.channel, [other], self.body_size)
            else:
                world.traffic.ask(process, self.channel, self.timeout, [other])


@step("load")
def load(table: Table) -> Action:
    """Send for some time: broadcast, send (to one), request (to all) or ask (one), or a mix."""
    kinds = table.names("load", LOAD_KINDS)
    rate, seconds = _rate_and_time(table, REQUIRED, REQUIRED, at_least=0.001)
    loads = [_load(table, kind, rate / len(kinds)) for kind in kinds]

    def action(world: World) -> None:
        for one in loads:
            _next(world, one, world.now + seconds)

    def _next(world: World, one: Load, until: float) -> None:
        def again(world: World, until: float) -> None:
            one.send_one(world)
            _next(world, one, until)

        _repeat(world, one.rate, until, again)

    return action


def _load(table: Table, kind: str, rate: float) -> Load:
    return Load(
        kind=kind,
        nodes=table.nodes("from", "*"),
        channel=table.channel("channel", "news"),
        rate=rate,
        timeout=table.number("timeout", 5.0),
        body_size=table.whole("body_size"),
    )


def _rate_and_time(
    table: Table, rate: object, seconds: object, *, at_least: float = 0.0
) -> tuple[float, Seconds]:
    """Read `rate` and `for`, with their defaults: how many a second, for how many seconds."""
    a_second, time = table.number("rate", rate, at_least=at_least), table.number("for", seconds)
    if a_second * time > TIMES_MAX:
        problem = f"{a_second:g} a second for {time:g} s: expected at most {TIMES_MAX} times"
        raise table.error("rate", problem)
    return a_second, time


def _repeat(world: World, rate: float, until: float, act: Callable[[World, float], None]) -> None:
    """Do something again after a time drawn for `rate` a second, until then."""
    at = world.now + world.rng.expovariate(rate)
    if at <= until:
        world.at(at, act, world, until)


@step("broadcast")
def broadcast(table: Table) -> Action:
    """Send to every member: from one node or several, `count` times each."""
    return _send_from(table, "broadcast")


@step("request")
def request(table: Table) -> Action:
    """Ask every member: from one node or several, `count` times each."""
    return _send_from(table, "request")


def _send_from(table: Table, kind: str) -> Action:
    nodes, count = table.nodes(kind), table.whole("count", 1, at_least=1)
    if count * len(nodes) > TIMES_MAX:
        each = TIMES_MAX // len(nodes)
        raise table.error("count", f"{count}: expected at most {each} from {len(nodes)} nodes")
    channel, timeout = table.channel("channel", "news"), table.number("timeout", 5.0)
    one = Load(
        kind,
        (),
        channel,
        1.0,
        timeout,
        table.whole("body_size"),
        table.flag("include_self"),
        table.text("body"),
        table.text("all_reply") if table.has("all_reply") else None,
    )

    def act(world: World, node_id: NodeId) -> None:
        for _ in range(count):
            attrs.evolve(one, nodes=[node_id]).send_one(world)

    return _each(nodes, act)
