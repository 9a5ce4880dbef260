"""Random stories: a small cluster, faults and load drawn from a seed; then everything is mended.

First break, then heal and demand convergence. What is drawn is an ordinary scenario, so that a
failure can be repeated, read, and turned into a file.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, TypeAlias

from clusternode.core.settings import DiscoverySettings
from clusternode.simulation.scenario import Scenario, from_mapping

Values: TypeAlias = dict[str, Any]

NODES_MIN, NODES_MAX = 3, 7
"""Most faults of protocols show with three to five nodes; a few more for relayed news."""
FAULTS_MIN, FAULTS_MAX = 2, 12
FAULTS_FROM, FAULTS_TO = 5.0, 60.0
"""Seconds from the start in which things break."""
PING_INTERVALS = (1.0, 2.0, 5.0)
REROUTING_SHARE = 0.9
LASTING_CUT_SHARE = 0.3
"""Of so many stories one link stays cut when all else is mended."""
PING_TIMEOUT = 1.0
SETTLED_SECONDS = 12.0
"""How long after the mending tables and links must be settled, beside four ping intervals."""
RESULT_SECONDS = 36.0
"""`result_timeout`, and room: from then on nobody may wait for a result."""


def story(seed: int) -> Values:
    """Draw a story, in the shape in which TOML would give it."""
    rng = random.Random(f"{seed}/swarm")
    count = rng.randint(NODES_MIN, NODES_MAX)
    nodes = [f"n{number}" for number in range(1, count + 1)]
    ping_interval = rng.choice(PING_INTERVALS)
    kinds = rng.sample(list(_FAULTS), rng.randint(1, len(_FAULTS)))
    steps: list[Values] = [
        {"at": round(rng.uniform(FAULTS_FROM, FAULTS_TO), 3)}
        | _FAULTS[rng.choice(kinds)](rng, nodes)
        for _ in range(rng.randint(FAULTS_MIN, FAULTS_MAX))
    ]
    mended = FAULTS_TO + 1.0
    steps += [
        {"at": 3.0, "load": ["broadcast", "send", "request", "ask"], "from": "*"}
        | {"rate": round(rng.uniform(2, 30), 1), "for": mended - 3.0},
        {"at": mended, "heal": True},
        {"at": mended, "resume": "*"},
        {"at": mended, "link": [nodes, nodes]},
        {"at": mended, "uplink": "*"},
        {"at": mended + 1.0, "start": "*"},
    ]
    is_rerouting = rng.random() < REROUTING_SHARE
    if count > NODES_MIN and is_rerouting and rng.random() < LASTING_CUT_SHARE:
        steps.append({"at": mended + 2.0} | _FAULTS["cut"](rng, nodes))
    links = "links-are-true" if "cut" in steps[-1] else "links-are-direct"
    for step in steps:
        if "rate" in step and "reset" in step:
            step["for"] = min(step["for"], round(mended - step["at"], 3))
    # The bound of the promise, from the last thing that happens to a link or a process.
    seen = steps[-1]["at"] + 2 * ping_interval + DiscoverySettings().redial_max + PING_TIMEOUT
    settled = mended + SETTLED_SECONDS + 4 * ping_interval
    return {
        "title": f"Swarm {seed}: {count} nodes, {', '.join(kinds)}; then everything is mended",
        "nodes": count,
        "seed": seed,
        "notification": rng.sample(nodes, rng.randint(1, min(3, count))),
        "fidelity": rng.choice(["messages", "bytes"]),
        "settings": {
            "health": {
                "ping_interval": ping_interval,
                "ping_timeout": PING_TIMEOUT,
                "enable_rerouting": is_rerouting,
            }
        },
        "network": {"latency": [0.0002, rng.choice([0.001, 0.02, 0.1])]},
        "handlers": {"handling": [0.0, rng.choice([0.0, 0.01, 0.3])]},
        "step": steps,
        "expect": {
            "eventually": [
                {"by": seen, "holds": "everyone-sees-everyone"},
                {"by": settled, "holds": ["everyone-sees-everyone", "converged-digests", links]},
                {
                    "by": max(settled, mended + RESULT_SECONDS),
                    "holds": ["everyone-sees-everyone", "nobody-waits"],
                },
            ]
        },
    }


def draw(seed: int) -> Scenario:
    """Draw a story and check it."""
    return from_mapping(story(seed), name="swarm")


def _one(rng: random.Random, nodes: list[str]) -> str:
    return rng.choice(nodes)


def _split(rng: random.Random, nodes: list[str]) -> list[list[str]]:
    shuffled = rng.sample(nodes, len(nodes))
    border = rng.randint(1, len(nodes) - 1)
    return [shuffled[:border], shuffled[border:]]


def _some(rng: random.Random, nodes: list[str]) -> list[list[str]]:
    """Draw one node, and up to two others."""
    one, *others = rng.sample(nodes, min(len(nodes), rng.randint(2, 3)))
    return [[one], others]


def _seconds(rng: random.Random) -> float:
    """Draw a time that is short half of the time, and long enough for a removal otherwise."""
    return round(rng.uniform(0.1, 3.0) if rng.random() < 0.5 else rng.uniform(3.0, 25.0), 3)


_FAULTS: dict[str, Callable[[random.Random, list[str]], Values]] = {
    "kill": lambda rng, nodes: {"kill": _one(rng, nodes)},
    "restart": lambda rng, nodes: {"restart": _one(rng, nodes), "after": _seconds(rng)},
    "power off": lambda rng, nodes: {"power_off": _one(rng, nodes)},
    "start": lambda rng, nodes: {"start": "*"},
    "stop": lambda rng, nodes: {"stop": _one(rng, nodes)},
    "pause": lambda rng, nodes: {"pause": _one(rng, nodes), "for": _seconds(rng)},
    "partition": lambda rng, nodes: {"partition": _split(rng, nodes)},
    "one-way partition": lambda rng, nodes: {"block": _split(rng, nodes)},
    "cut": lambda rng, nodes: {"cut": [[one] for one in rng.sample(nodes, 2)]},
    "one-way cut": lambda rng, nodes: {"block": [[one] for one in rng.sample(nodes, 2)]},
    "cuts": lambda rng, nodes: {"cut": _some(rng, nodes)},
    "heal": lambda rng, nodes: {"heal": True},
    "reset": lambda rng, nodes: {"reset": "*", "share": round(rng.random(), 2)},
    "resets": lambda rng, nodes: {"reset": "*", "rate": 5.0, "for": _seconds(rng)},
    "bad link": lambda rng, nodes: {
        "link": _split(rng, nodes),
        "latency": [0.001, 0.3],
        "loss": round(rng.uniform(0, 0.3), 2),
    },
    "narrow link": lambda rng, nodes: {"link": _split(rng, nodes), "bandwidth": 20_000.0},
    "slow handlers": lambda rng, nodes: {"handlers": _one(rng, nodes), "handling": [0.1, 2.0]},
    "raising handlers": lambda rng, nodes: {"handlers": _one(rng, nodes), "failures": 0.5},
    "stall": lambda rng, nodes: {"stall": _split(rng, nodes), "for": _seconds(rng)},
    "long tails": lambda rng, nodes: {
        "link": _split(rng, nodes),
        "latency": [0.001, 0.1],
        "distribution": "exponential",
    },
    "shared uplink": lambda rng, nodes: {"uplink": _one(rng, nodes), "bandwidth": 100_000.0},
    "full disk": lambda rng, nodes: {"disk": _one(rng, nodes), "error": "no space left on device"},
    "lost state": lambda rng, nodes: {"disk": _one(rng, nodes), "wiped": True},
    "wrong clock": lambda rng, nodes: {
        "clock": _one(rng, nodes),
        "offset": round(rng.uniform(-4000, 4000), 1),
        "rate": round(rng.uniform(0.97, 1.03), 3),
    },
    "remove": lambda rng, nodes: {"remove": _one(rng, nodes), "at_nodes": _one(rng, nodes)},
}
