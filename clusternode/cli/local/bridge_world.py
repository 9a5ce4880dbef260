"""What stands around the two agents of `clusternode demo --bridge`: SIP servers and a broker."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs
import trio

from clusternode.cli.local.bench_kafka import mock_broker
from clusternode.cli.local.fleet import Fleet, FleetError
from clusternode.cli.local.proxies import Proxy, make_proxies
from clusternode.kafka import library
from clusternode.kafka.connections import Connection
from clusternode.kafka.consumer import Consumer, ConsumerSettings, Handled
from clusternode.kafka.records import Record
from clusternode.kafka.settings import KafkaConnection
from clusternode.simulation.opensips.links import Timing
from clusternode.testing.opensips import PORT as BIN_PORT
from clusternode.testing.opensips import LocalOpenSips

RULES: Final = Path(__file__).with_name("bridge.toml")
CLUSTER: Final = "demo"
COLLECTION: Final = "c1"
TOPIC: Final = "fraud"
KAMAILIO_HOSTS: Final = ("127.0.66.1", "127.0.66.2", "127.0.66.3")
OPENSIPS_HOSTS: Final = ("127.0.67.1", "127.0.67.2", "127.0.67.3")
OPENSIPS_TIMING: Final = Timing(ping_interval=1.0, ping_timeout=0.5, node_timeout=5.0)
"""Quicker than the defaults, so that the demo is over soon."""
HEALTH: Final = {"ping_interval": 1.0, "ping_timeout": 0.5}
AGENTS: Final = {"bridge-1": 8, "bridge-2": 9}
"""Agent → its node id in the OpenSIPS cluster, and the last number of its hosts."""


def kamailio_host(agent: str) -> str:
    return f"127.0.66.{AGENTS[agent]}"


@attrs.define(eq=False)
class Switch:
    """An OpenSIPS that knows its own users, and answers where they are."""

    node: LocalOpenSips
    users: dict[str, str]

    @classmethod
    def make(cls, number: int) -> Switch:
        users: dict[str, str] = {}

        def answer(source: int, text: bytes) -> bytes | None:
            del source
            found = users.get(text.decode("utf-8", "replace"))
            return None if found is None else f"{text.decode()} is at {found}".encode()

        host = OPENSIPS_HOSTS[number - 1]
        neighbours = [] if number == 1 else [(1, OPENSIPS_HOSTS[0])]
        node = LocalOpenSips(number, host, neighbours, script=answer, timing=OPENSIPS_TIMING)
        return cls(node, users)

    @property
    def bans(self) -> set[str]:
        """The addresses that are banned here."""
        return self._cells("ban:")

    @property
    def table(self) -> set[str]:
        """The keys of the Kamailios' table that are here."""
        return self._cells("htable:")

    def _cells(self, prefix: str) -> set[str]:
        keys = [key.decode() for key in self.node.node.cache.contents(COLLECTION)]
        return {key.removeprefix(prefix) for key in keys if key.startswith(prefix)}

    def set_cell(self, key: str) -> None:
        """cache_store, for a key of the Kamailios' table."""
        self.node.node.store(f"htable:{key}".encode(), b"1", 60, COLLECTION)

    def register(self, user: str, contact: str) -> None:
        self.users[user] = contact
        self.node.node.add_contact(user, contact, f"{user}-1")

    def knows(self, user: str) -> bool:
        return bool(self.node.node.contacts.contacts_of(user))

    def ask(self, user: str) -> Callable[[], str]:
        """Ask everyone where a user is; the result tells the first answer, if there is one."""
        tag = self.node.node.broadcast_request(user.encode())
        return lambda: next((found.text.decode() for found in self.node.node.replies(tag)), "")


@attrs.define(eq=False)
class Topic:
    """Reads the topic of the demo from its beginning."""

    brokers: str
    values: Counter[str] = attrs.Factory(Counter)  # record → how often it is there

    async def run(self) -> None:
        settings = KafkaConnection(
            name="demo", brokers=self.brokers, auto_offset_reset="earliest", group_id="demo"
        )
        reading = ConsumerSettings(name="demo", topics=(TOPIC,), group="demo")
        await Consumer(Connection(settings), reading, self._take).run()

    async def _take(self, records: Sequence[Record], goes_on: Callable[[], bool]) -> Handled:
        del goes_on
        await trio.lowlevel.checkpoint()
        self.values.update((record.value or b"").decode() for record in records)
        return Handled(len(records))


@attrs.define(eq=False)
class World:
    """Three Kamailios, three OpenSIPS, a broker if Kafka's client is installed, two agents."""

    fleet: Fleet
    proxies: list[Proxy]
    switches: list[Switch]
    topic: Topic | None
    kinds: str
    """What the servers are, for people."""

    async def start(self, nursery: trio.Nursery) -> None:
        """Start the servers, then the agents."""
        try:
            for proxy in self.proxies:
                await nursery.start(proxy.run)
            for switch in self.switches:
                await nursery.start(switch.node.run)
        except OSError as error:
            hosts = f"{KAMAILIO_HOSTS[0]}:5060 … {OPENSIPS_HOSTS[-1]}:{BIN_PORT}"
            raise FleetError(
                f"the servers need addresses that are free: {hosts} ({error})"
            ) from None
        for agent in self.fleet.agents:
            agent.start()

    async def is_met(self) -> bool:
        """Tell whether everyone sees both agents."""
        hosts = [kamailio_host(agent) for agent in AGENTS]
        for proxy in self.proxies:
            if not await proxy.sees(hosts):
                return False
        return all(
            switch.node.node.link_states().get(number) == "Up"
            for switch in self.switches
            for number in AGENTS.values()
        )


@contextlib.contextmanager
def make_world(fleet: Fleet, brokers: str | None = None) -> Iterator[World]:
    """Prepare everything; `World.start` runs it.

    Args:
        fleet: Gets the two agents.
        brokers: A real broker, instead of the one that comes with Kafka's client.
    """
    with contextlib.ExitStack() as stack:
        kind = "a real Kafka"
        if brokers is None and library.is_installed():
            brokers, kind = stack.enter_context(mock_broker()), "a simulated Kafka"
        for agent in AGENTS:
            _add_agent(fleet, agent, brokers)
        proxies, proxy_kind = make_proxies(KAMAILIO_HOSTS, fleet.directory)
        switches = [Switch.make(number) for number in (1, 2, 3)]
        kinds = f"three {proxy_kind}, three simulated OpenSIPS"
        kinds += f", {kind}" if brokers else ", and no Kafka: its client is not installed"
        yield World(fleet, proxies, switches, Topic(brokers) if brokers else None, kinds)


def _add_agent(fleet: Fleet, agent: str, brokers: str | None) -> None:
    number = AGENTS[agent]
    seed = f"node_id=1, url=bin:{OPENSIPS_HOSTS[0]}:{BIN_PORT}"
    sections: dict[str, dict[str, object]] = {
        "health": dict(HEALTH),
        "gateway.kamailio": {
            "server_address": f"sip:{kamailio_host(agent)}:5060",
            "notification_address": [f"sip:{host}:5060" for host in KAMAILIO_HOSTS],
            "ping_interval": 1.0,
        },
        "gateway.opensips": {
            "cluster_id": 1,
            "my_node_id": number,
            "my_node_info": f"url=bin:127.0.67.{number}:{BIN_PORT}",
            "neighbor_node_info": [seed],
            "ping_interval": 1.0,
            "ping_timeout": 0.5,
            "cache_collections": [COLLECTION],
            "usrloc": True,
        },
    }
    rules = RULES.read_text()
    if brokers is None:
        sections["kafka"] = {"enabled": False}  # leaves the rules to topics out
    else:
        sections["kafka.main"] = {"brokers": brokers, "linger_ms": 0}
    fleet.add(agent, cluster=CLUSTER, sections=sections, more=rules)
