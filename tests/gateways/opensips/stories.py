"""Random stories of mixed OpenSIPS clusters: everything breaks, then everything is mended.

`python -m tests.gateways.opensips.stories 1..40` lives through many, each tenth with up to
ten nodes, and then through the joins and two deaths in a cluster of twenty.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from random import Random

from clusternode.simulation.network import LinkQuality
from clusternode.simulation.opensips.cluster import (
    JOIN_TIME,
    LOCAL_NETWORK,
    TAG,
    TIMING,
    Cluster,
    host_of,
)
from clusternode.simulation.opensips.transport import Quirks
from clusternode.simulation.streams import Drowned

STORMLESS_FROM = 6
"""Larger clusters drown in the messages of a join: see `Quirks.takes_any_zero`."""
NODES_MAX, NODES_USUAL_MAX = 10, 6
LARGE_EVERY = 10
"""A flood costs the square of the nodes, and a join has a flood for each link."""
FAULTS_MAX = 8
MENDED = 2 * TIMING.node_timeout + JOIN_TIME
"""A node that is down is tried once in node_timeout, by either side."""
WRITES_PER_NODE_MAX = 60_000


class Story:
    """One cluster, drawn from a seed, and what happens to it."""

    def __init__(self, seed: int, nodes_max: int) -> None:
        self.rng = Random(f"{seed}/story")
        count = self.rng.randint(3, nodes_max)
        is_modern = self.rng.random() < 0.5
        quirks = Quirks(
            reordered=0.01 if is_modern else 0.0,
            burst_max=300 if is_modern else float("inf"),
            takes_any_zero=count < STORMLESS_FROM,
        )
        self.cluster = Cluster(seed, quirks=quirks)
        self.cluster.world.writes_left = WRITES_PER_NODE_MAX * count
        ids = list(range(1, count + 1))
        self.is_ours = {each: each > 1 and self.rng.random() < 0.5 for each in ids}
        self.is_ours[count] = True
        self.told: list[str] = []
        self.faults: list[str] = []
        self.killed: list[int] = []

    def live(self) -> list[str]:
        """Return what is wrong at the end, with the story before it."""
        cluster, rng = self.cluster, self.rng
        for node_id in self.is_ours:
            self.start(node_id)
            is_large = len(self.is_ours) > NODES_USUAL_MAX
            cluster.run(JOIN_TIME if is_large else rng.choice([0.0, 0.5, JOIN_TIME]))
        cluster.run(JOIN_TIME)
        for _ in range(rng.randint(1, FAULTS_MAX)):
            fault = rng.choice(FAULTS)
            self.told.append(f"{cluster.world.now:.2f} {fault.__name__}")
            self.faults.append(fault.__name__)
            fault(self)
            cluster.run(rng.choice([0.0, 0.1, 1.0, 5.0]))
        self.mend()
        harms = list(cluster.harms())
        if "pause" in self.faults:  # what all others sent meanwhile comes at once: nobody's fault
            harms = [harm for harm in harms if "burst" not in harm]
        problems = [*harms, *cluster.not_up(), *cluster.unanswered()]
        problems += cluster.disagreements(cluster.ours)
        return [*self.told, *problems] if problems else []

    def start(self, node_id: int) -> None:
        seeds = (1, 2) if node_id > 1 else (2,)
        if self.is_ours[node_id]:
            self.cluster.start_ours(node_id, seeds=seeds)
        else:
            self.cluster.start_theirs(node_id, seeds=seeds).tags.configure(TAG, is_active=False)

    def mend(self) -> None:
        cluster = self.cluster
        cluster.world.network.quality = LOCAL_NETWORK
        cluster.world.network.set_quality(
            [(host_of(a), host_of(b)) for a in self.is_ours for b in self.is_ours], LOCAL_NETWORK
        )
        cluster.heal()
        for node_id in cluster.alive:
            cluster.world.resume(host_of(node_id))
        for node_id in self.killed:
            self.start(node_id)
        cluster.run(MENDED)

    # --- what happens

    def one(self) -> int:
        return self.rng.choice(self.cluster.alive)


def kill(story: Story) -> None:
    if len(story.cluster.alive) > 2:
        node_id = story.one()
        story.killed.append(node_id)
        story.cluster.kill(node_id, silently=story.rng.random() < 0.5)


def restart(story: Story) -> None:
    node_id = story.one()
    story.cluster.kill(node_id, silently=story.rng.random() < 0.5)
    story.cluster.run(story.rng.choice([1.1, 3.0]))  # the same second is not told apart
    story.start(node_id)


def split(story: Story) -> None:
    ids = list(story.is_ours)
    story.rng.shuffle(ids)
    border = story.rng.randint(1, len(ids) - 1)
    story.cluster.split(ids[:border], ids[border:])


def block(story: Story) -> None:
    one, other = story.rng.sample(list(story.is_ours), 2)
    story.cluster.split([one], [other])


def heal(story: Story) -> None:
    story.cluster.heal()


def slow(story: Story) -> None:
    story.cluster.slow(story.one(), story.rng.choice([0.05, TIMING.ping_timeout]))


def lossy(story: Story) -> None:
    if "burst" in story.faults:
        return
    story.cluster.world.network.quality = LinkQuality(0.0001, 0.01, loss=0.03)


def pause(story: Story) -> None:
    host = host_of(story.one())
    story.cluster.world.pause(host)
    story.cluster.run(story.rng.choice([0.1, 1.0, 4.0]))
    if host in story.cluster.world.nodes:
        story.cluster.world.resume(host)


def burst(story: Story) -> None:
    if "lossy" in story.faults or "block" in story.faults or "split" in story.faults:
        return  # what a stall holds up arrives at once; on real TCP the network's limit stops that
    for number in range(400):
        for node_id, ours in story.cluster.ours.items():
            ours.store(f"{node_id}-{number % 50}", b"value")


def writes(story: Story) -> None:
    for number in range(50):
        for node in story.cluster.theirs.values():
            node.store(b"%d-%d" % (node.config.node_id, number), b"value")
        story.cluster.run(0.01)


def tag(story: Story) -> None:
    node_id = story.one()
    if node_id in story.cluster.theirs:
        story.cluster.theirs[node_id].activate_tag(TAG)
    else:
        ours = story.cluster.ours[node_id].gateway
        ours.act(lambda: ours.node.tags.activate(TAG, "story"))


FAULTS: list[Callable[[Story], None]] = [
    kill, restart, split, block, heal, slow, lossy, pause, burst, writes, tag,
]  # fmt: skip


def problems_of(seed: int, nodes_max: int) -> list[str]:
    """Live through the story of a seed."""
    story = Story(seed, nodes_max)
    try:
        return story.live()
    except Drowned as drowned:
        return [*story.told, str(drowned)]


def twenty() -> list[str]:
    """Let ten of theirs and ten of ours join, and one of each die; return what is wrong then."""
    cluster = Cluster(20, quirks=Quirks(takes_any_zero=False))
    for node_id in range(1, 21):
        if node_id % 2:
            cluster.start_theirs(node_id)
        else:
            cluster.start_ours(node_id)
        cluster.run(JOIN_TIME)
    cluster.kill(20)
    cluster.kill(19)
    cluster.run(JOIN_TIME)
    return cluster.problems()


def main(text: str) -> int:
    first, _, last = text.partition("..")
    failed = 0
    for seed in range(int(first), int(last or first) + 1):
        problems = problems_of(seed, NODES_MAX if seed % LARGE_EVERY == 0 else NODES_USUAL_MAX)
        failed += bool(problems)
        print(f"{seed}: {'; '.join(problems) or 'all well'}", flush=True)
    problems = twenty()
    failed += bool(problems)
    print(f"twenty: {'; '.join(problems) or 'all well'}")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
