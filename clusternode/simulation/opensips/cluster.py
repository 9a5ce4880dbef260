"""A whole cluster in a simulated world: OpenSIPS nodes, nodes of our gateway, and what must hold.

Node N has the address 10.0.0.N. The simulated ones answer each request that begins with `Q:`, as
ours do, so that every request shows who was reached.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random
from typing import Final

import attrs

from clusternode.core.types import DeliveryId, NodeId, RequestId, Seconds, Tag
from clusternode.core.wire.messages import Request
from clusternode.gateways.opensips import effects
from clusternode.gateways.opensips.effects import Effect
from clusternode.gateways.opensips.settings import (
    BinUrl,
    MyNodeInfo,
    Neighbour,
    OpenSipsSettings,
)
from clusternode.simulation.network import LinkQuality
from clusternode.simulation.opensips.gateway import GatewayHost
from clusternode.simulation.opensips.links import Timing
from clusternode.simulation.opensips.node import SimulatedOpenSips
from clusternode.simulation.opensips.peers import Description
from clusternode.simulation.opensips.topology import Config
from clusternode.simulation.opensips.transport import V36, Quirks
from clusternode.simulation.streams import StreamWorld

PORT: Final = 5566
COLLECTION: Final = "c1"
TAG: Final = "vip"
TIMING: Final = Timing(
    ping_interval=1.0, ping_timeout=0.2, node_timeout=5.0, seed_fallback_interval=2.0
)
"""Five times as fast as the defaults, so that a story is short."""
JOIN_TIME: Final[Seconds] = 3.0
"""In which a node that has been started is up everywhere."""
LOCAL_NETWORK: Final = LinkQuality(latency_min=0.0001, latency_max=0.0005)
ASK_TIMEOUT: Final[Seconds] = 2.0


def host_of(node_id: int) -> str:
    return f"10.0.0.{node_id}"


def url_of(node_id: int) -> BinUrl:
    return BinUrl("bin", host_of(node_id), PORT)


def description_of(node_id: int) -> Description:
    return Description(str(url_of(node_id)), host_of(node_id))


@attrs.define(eq=False)
class Ours:
    """A node of our gateway, and what its routes and observers have seen."""

    gateway: GatewayHost
    node_id: int
    effects: list[Effect] = attrs.Factory(list)
    replies: dict[str, list[str]] = attrs.Factory(dict)  # request → who has answered
    asked: int = 0

    def listen(self, effect: Effect) -> None:
        self.effects.append(effect)
        match effect:
            case effects.Arrived(origin=origin, messages=messages):
                for message in messages:
                    if isinstance(message, Request) and message.body.startswith(b"Q:"):
                        self._reply(origin, message)
            case effects.Replied(request=request, node_id=node_id):
                self.replies.setdefault(str(request), []).append(node_id)

    def _reply(self, origin: NodeId, request: Request) -> None:
        self.asked += 1
        delivery, text = DeliveryId(self.asked), b"A%d:" % self.node_id + request.body
        scripts = self.gateway.node.scripts
        self.gateway.act(lambda: scripts.reply(delivery, origin, request.tag, text))

    def ask(self, text: bytes) -> str:
        """Ask everybody; return the name under which `replies` has the answers."""
        self.asked += 1
        request = RequestId(self.asked)
        tag = Tag(f"1-{self.node_id}-{self.asked:024d}")
        scripts = self.gateway.node.scripts
        self.gateway.act(
            lambda: scripts.ask(request, tag, text, ASK_TIMEOUT, None, include_self=False)
        )
        return str(request)

    def store(self, key: str, value: bytes) -> None:
        cache = self.gateway.node.cache
        assert cache is not None, "every node of ours here has one"
        self.gateway.act(lambda: cache.insert(COLLECTION, key, value))

    def up(self) -> list[int]:
        return sorted(self.gateway.node.membership.links.up())

    def cache(self) -> dict[bytes, bytes]:
        cache = self.gateway.node.cache
        assert cache is not None, "every node of ours here has one"
        values = {key: cache.get(COLLECTION, key) for key in cache.keys(COLLECTION)}  # no mapping
        return {key.encode(): value for key, value in values.items() if value is not None}


class Cluster:
    """A world with its nodes by id."""

    def __init__(
        self, seed: int, *, quirks: Quirks = V36, quality: LinkQuality = LOCAL_NETWORK
    ) -> None:
        self.world = StreamWorld(seed, quality)
        self.theirs: dict[int, SimulatedOpenSips] = {}
        self.ours: dict[int, Ours] = {}
        self.harm: list[tuple[str, str]] = []
        """Whose connections OpenSIPS nodes that are dead by now have closed, and why."""
        self.ours_ever: list[int] = []
        self._seed = seed
        self._quirks = quirks
        self._lives = 0

    # --- nodes

    def start_theirs(self, node_id: int, *, seeds: Iterable[int] = (1,)) -> SimulatedOpenSips:
        """Start an OpenSIPS; the first node of a cluster is its seed."""
        self._lives += 1
        config = Config(
            node_id=node_id,
            description=description_of(node_id),
            neighbours=tuple((each, description_of(each)) for each in seeds if each != node_id),
            timing=TIMING,
            quirks=self._quirks,
            is_seed=node_id == 1,
        )
        host = host_of(node_id)
        rng = Random(f"{self._seed}/{node_id}/{self._lives}")
        node = SimulatedOpenSips(
            config,
            self.world.machine(host),
            rng,
            collections=(COLLECTION,),
            script=lambda _, text: b"A%d:" % node_id + text if text.startswith(b"Q:") else None,
        )
        self.theirs[node_id] = node
        self.world.add(host, node)
        node.start()
        node.tags.configure(TAG, is_active=False)
        self.world.rearm(host)
        return node

    def start_ours(
        self, node_id: int, *, seeds: Iterable[int] = (1,), pace: int | None = None
    ) -> Ours:
        """Start a node of our gateway."""
        settings = OpenSipsSettings(
            cluster_id=1,
            my_node_id=node_id,
            my_node_info=MyNodeInfo(url_of(node_id), host_of(node_id)),
            neighbor_node_info=tuple(
                Neighbour(each, url_of(each)) for each in seeds if each != node_id
            ),
            ping_interval=TIMING.ping_interval,
            ping_timeout=TIMING.ping_timeout,
            node_timeout=TIMING.node_timeout,
            sync_timeout=2.0,
            cache_collections=(COLLECTION,),
            usrloc=True,
            sharing_tags=((TAG, False),),
        )
        if pace is not None:
            settings = attrs.evolve(settings, pace=pace)
        self.ours_ever.append(node_id)
        host = host_of(node_id)
        gateway = GatewayHost(settings, self.world.machine(host))
        ours = self.ours[node_id] = Ours(gateway, node_id)
        gateway.listener = ours.listen
        self.world.add(host, gateway)
        gateway.start()
        self.world.rearm(host)
        return ours

    def form(self, theirs: Iterable[int], ours: Iterable[int]) -> None:
        """Start all of them one after the other, and let each join."""
        for node_id in theirs:
            self.start_theirs(node_id)
            self.run(JOIN_TIME)
        for node_id in ours:
            self.start_ours(node_id)
            self.run(JOIN_TIME)

    def kill(self, node_id: int, *, silently: bool = False) -> None:
        node = self.theirs.pop(node_id, None)
        if node is not None:
            self.harm += node.transport.closed_for
        self.ours.pop(node_id, None)
        self.world.kill(host_of(node_id), silently=silently)

    @property
    def alive(self) -> list[int]:
        return sorted([*self.theirs, *self.ours])

    # --- the network and time

    def run(self, seconds: Seconds) -> None:
        self.world.run(self.world.now + seconds)

    def split(self, *groups: Iterable[int]) -> None:
        """Let nothing through between the groups, either way."""
        hosts = [[host_of(each) for each in group] for group in groups]
        for one in hosts:
            for other in hosts:
                if one is not other:
                    self.world.network.block(one, other)

    def heal(self) -> None:
        self.world.heal()

    def slow(self, node_id: int, seconds: Seconds) -> None:
        """Let everything between a node and the others take that long."""
        hosts = [host_of(each) for each in range(1, 129) if each != node_id]
        pairs = [(host_of(node_id), each) for each in hosts]
        pairs += [(each, host_of(node_id)) for each in hosts]
        self.world.network.set_quality(pairs, LinkQuality(seconds, seconds))

    def writes(self) -> int:
        """Return how many messages have been written since the beginning."""
        return sum(self.world.writes.values())

    # --- what must hold

    def harms(self) -> Iterator[str]:
        """Yield whatever closed a connection of ours, on either side: it may never happen.

        What real nodes do to each other is their own affair.
        """
        done = [*self.harm]
        for node in self.theirs.values():
            done += node.transport.closed_for
        hosts = [host_of(node_id) for node_id in self.ours_ever]
        for host, why in done:
            if host in hosts:
                yield f"an OpenSIPS closed a connection with {host}: {why}"
        for node_id, ours in self.ours.items():
            for why in ours.gateway.closed_for:
                yield f"we, node {node_id}, closed a connection: {why}"

    def not_up(self) -> Iterator[str]:
        """Yield the links between the living that are not up, as either end sees them."""
        for node_id, node in self.theirs.items():
            states = node.link_states()
            for other in self.alive:
                if other != node_id and states.get(other) != "Up":
                    yield f"OpenSIPS {node_id} sees {other} as {states.get(other)}"
        for node_id, ours in self.ours.items():
            missing = set(self.alive) - {node_id} - set(ours.up())
            if missing:
                yield f"we, node {node_id}, have no link to {sorted(missing)}"

    def disagreements(self, viewers: Iterable[int] | None = None) -> Iterator[str]:
        """Yield where somebody, of `viewers`, sees other neighbours of a living node than it has.

        Real nodes may keep for long what is not true.
        """
        alive = set(self.alive)
        seen: dict[int, dict[int, list[int]]] = {}  # who sees → node → neighbours
        for node_id, node in self.theirs.items():
            seen[node_id] = node.adjacency()
        for node_id, ours in self.ours.items():
            topology = ours.gateway.node.membership.topology
            lists = {each.node_id: [*each.neighbours] for each in topology}
            seen[node_id] = {**lists, node_id: [*topology.neighbours]}
            for neighbour in topology.neighbours:
                lists[neighbour].append(node_id)
        for viewer in self.alive if viewers is None else viewers:
            for node_id in self.alive:
                is_so = alive & set(seen[node_id][node_id])
                is_seen = alive & set(seen[viewer].get(node_id, ()))
                if is_seen != is_so:
                    yield f"{viewer} sees {sorted(is_seen)} beside {node_id}: {sorted(is_so)}"

    def caches_differ(self) -> Iterator[str]:
        """Yield who has not the same cache as the first."""
        caches = {node_id: node.cache.contents(COLLECTION) for node_id, node in self.theirs.items()}
        caches |= {node_id: ours.cache() for node_id, ours in self.ours.items()}
        first = min(caches)
        for node_id in sorted(caches):
            if caches[node_id] != caches[first]:
                odd = set(caches[first].items()) ^ set(caches[node_id].items())
                yield f"{node_id} and {first} differ in {len(odd)} entries: {sorted(odd)[:4]}"

    def not_synced(self) -> Iterator[str]:
        """Yield the capabilities whose data are not complete, in the eyes of their own node."""
        for node_id, node in self.theirs.items():
            for name, own in node.capabilities.own.items():
                if not own.is_synced:
                    yield f"OpenSIPS {node_id}: {name} is not synced"
        for node_id, ours in self.ours.items():
            for name, is_synced in ours.gateway.node.capabilities.ours.capabilities:
                if not is_synced:
                    yield f"we, node {node_id}: {name} is not synced"

    def unanswered(self) -> Iterator[str]:
        """Let everybody ask everybody, and yield who got no answer from whom."""
        asked = {node_id: node.broadcast_request(b"Q:?") for node_id, node in self.theirs.items()}
        ours = {node_id: each.ask(b"Q:?") for node_id, each in self.ours.items()}
        self.run(1.0)
        for node_id, tag in asked.items():
            answers = [event.source for event in self.theirs[node_id].replies(tag)]
            if sorted(answers) != [each for each in self.alive if each != node_id]:
                yield f"OpenSIPS {node_id} has answers of {sorted(answers)}"
        for node_id, request in ours.items():
            found = sorted(map(int, self.ours[node_id].replies.get(request, [])))
            if found != [each for each in self.alive if each != node_id]:
                yield f"we, node {node_id}, have answers of {found}"

    def problems(self) -> list[str]:
        """Return everything that is wrong with a cluster at rest."""
        at_rest = (self.not_up, self.disagreements, self.not_synced, self.caches_differ)
        checks = (self.harms, *at_rest, self.unanswered)
        return [problem for check in checks for problem in check()]
