"""An honest cluster under load while it is attacked, and what became of it.

`python -m tests.attack.siege [SECONDS] [ATTACK…]` prints a table.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import trio

from clusternode.cli.local.fleet import Fleet, LocalAgent, free_port, pss_bytes
from clusternode.core.types import NodeId
from clusternode.runtime.tls import Credentials
from tests.attack.kit import (
    CLUSTER,
    EVIL,
    INSIDERS,
    OUTSIDERS,
    SECRET,
    TLS_OUTSIDERS,
    Attack,
    Target,
)
from tests.certificates import Pki

ROUTES = Path(__file__).with_name("load_routes.py")
HEALTH = {"ping_interval": 2.0, "ping_timeout": 1.5}
HONEST = ("n1", "n2", "n3")
WATCH_INTERVAL = 0.25
KIB = 1024
DOWN = re.compile(r": (n[123]): (\S+) -> (not_active|disabled|left|removed)")


@attrs.define
class Outcome:
    """What one attack did; `lost` and `downs` must be empty."""

    attack: str
    sent: int = 0
    lost: dict[str, int] = attrs.Factory(dict)
    """Code → messages between honest nodes that ended with it instead of 200."""
    downs: list[str] = attrs.Factory(list)
    """Lines of honest logs that say that an honest node is down."""
    memory_grown: int = 0
    """Bytes that the largest honest agent has grown by, at its peak."""
    errors: list[str] = attrs.Factory(list)
    """Tracebacks in honest logs."""

    @property
    def row(self) -> str:
        lost = json.dumps(self.lost) if self.lost else "0"
        return (
            f"| {self.attack:22} | {self.sent:7} | {lost:4} | {len(self.downs):5} |"
            f" {self.memory_grown // KIB:8} | {len(self.errors):6} |"
        )


HEAD = """\
| attack                 |    sent | lost | downs | +KiB max | errors |
|---|---:|---:|---:|---:|---:|"""


@contextlib.asynccontextmanager
async def honest_cluster(*, tls: bool) -> AsyncIterator[tuple[Fleet, Target]]:
    """Three agents that share a secret, on TLS where that is asked for, and see each other."""
    with Fleet() as fleet:
        secret = fleet.directory / "secret"
        secret.write_bytes(SECRET)
        secret.chmod(0o600)
        pki = Pki(fleet.directory / "pki")
        for node_id in HONEST:
            port = free_port()
            sections: dict[str, dict[str, object]] = {
                "health": dict(HEALTH),
                "cluster": {"secret_file": str(secret)},
            }
            if tls:
                address = f"tls://127.0.0.1:{port}"
                way_in = f"tls://127.0.0.1:{fleet.agents[0].port}" if fleet.agents else address
                section = pki.node(node_id)
                sections["node"] = {"address": address}
                sections["discovery"] = {"notification_addresses": [way_in]}
                sections["tls"] = {
                    "certificate": str(section.certificate),
                    "key": str(section.key),
                    "ca": str(section.ca),
                }
            fleet.add(
                node_id,
                cluster=CLUSTER,
                routes=ROUTES,
                routes_limit=300.0,
                sections=sections,
                port=port,
            )
        await fleet.start()
        context = None
        if tls:  # the attacker has taken over a member, whose certificate is good
            context = Credentials(pki.node(EVIL), NodeId(EVIL)).client
        yield fleet, Target(fleet.agents[0].port, HONEST, context=context)


async def besiege(
    fleet: Fleet, target: Target, name: str, attack: Attack, seconds: float
) -> Outcome:
    """Attack one honest agent while all three carry load, and see what happens."""
    outcome = Outcome(name)
    offsets = {agent.node_id: agent.log_file.stat().st_size for agent in fleet.agents}
    before = {agent.node_id: memory_of(agent) for agent in fleet.agents}
    async with trio.open_nursery() as attackers:
        attackers.start_soon(attack, target)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch_memory, fleet, before, outcome)
            async with trio.open_nursery() as load:
                for agent in fleet.agents:
                    load.start_soon(_carry_load, agent, seconds, outcome)
            nursery.cancel_scope.cancel()
        attackers.cancel_scope.cancel()
    for agent in fleet.agents:
        log = agent.log_file.read_bytes()[offsets[agent.node_id] :].decode("utf-8", "replace")
        outcome.downs += [line for line in log.splitlines() if DOWN.search(line)]
        outcome.errors += [line for line in log.splitlines() if line.startswith("Traceback")]
    return outcome


async def _carry_load(agent: LocalAgent, seconds: float, outcome: Outcome) -> None:
    others = [node_id for node_id in HONEST if node_id != agent.node_id]
    order = json.dumps({"seconds": seconds, "honest": others})
    params = {"channel": "load:run", "body": order, "node": agent.node_id, "timeout": 120.0}

    def ask() -> dict[str, object]:
        with agent.client() as client:
            for is_result, value in client.stream("cluster.request", params, timeout=130.0):
                if not is_result:
                    answer: dict[str, object] = json.loads(value["body"])
                    return answer
                raise AssertionError(f"{agent.node_id} did not answer: {value}")
        raise AssertionError(f"{agent.node_id} did not answer")

    answer = await trio.to_thread.run_sync(ask)
    sent, codes = answer["sent"], answer["codes"]
    assert isinstance(sent, int) and isinstance(codes, dict)
    outcome.sent += sent
    for code, count in codes.items():
        if code != "200":
            outcome.lost[code] = outcome.lost.get(code, 0) + count
    missing = sent - sum(codes.values())
    if missing:
        outcome.lost["none"] = outcome.lost.get("none", 0) + missing


def memory_of(agent: LocalAgent) -> int:
    """Return its size.

    Raises:
        AssertionError: It has ended; with the end of its log.
    """
    try:
        return pss_bytes(agent.pid)
    except ProcessLookupError:
        raise AssertionError(f"{agent.node_id} was killed:\n{agent.last_log_lines()}") from None


async def _watch_memory(fleet: Fleet, before: dict[str, int], outcome: Outcome) -> None:
    while True:
        for agent in fleet.agents:
            grown = memory_of(agent) - before[agent.node_id]
            outcome.memory_grown = max(outcome.memory_grown, grown)
        await trio.sleep(WATCH_INTERVAL)


async def main(seconds: float, names: list[str]) -> int:
    bad = 0
    print(HEAD)
    outside = {"(nobody)": _nothing, **OUTSIDERS}
    inside = {"(nobody, TLS)": _nothing, **TLS_OUTSIDERS, **INSIDERS}
    for attacks, tls in ((outside, False), (inside, True)):
        chosen = [name for name in attacks if not names or name in names]
        if not chosen:
            continue
        async with honest_cluster(tls=tls) as (fleet, target):
            for name in chosen:
                outcome = await besiege(fleet, target, name, attacks[name], seconds)
                print(outcome.row, flush=True)
                for line in [*outcome.downs[:3], *outcome.errors[:3]]:
                    print(f"    {line}")
                bad += bool(outcome.lost or outcome.downs or outcome.errors)
    return bad


async def _nothing(target: Target) -> None:
    await trio.sleep_forever()


if __name__ == "__main__":
    sys.exit(trio.run(main, float((sys.argv[1:] or ["3"])[0]), sys.argv[2:]))
