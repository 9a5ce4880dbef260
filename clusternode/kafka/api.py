"""What a script says: `kafka.publish("main", "topic", value)` from inside a handler."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

from clusternode.errors import NoSuchConnection
from clusternode.kafka.records import Headers, Placed, Report

if TYPE_CHECKING:
    from clusternode.kafka.connections import Connection, KafkaConnections


class HasConnections(Protocol):
    """The agent, which loads its connections when somebody asks for them."""

    @property
    def connections(self) -> KafkaConnections: ...


kafka_of_agent: ContextVar[HasConnections | None] = ContextVar("kafka_of_agent", default=None)


def connections_of_agent() -> KafkaConnections | None:
    """Return the connections of the agent that runs this task, if one does."""
    kafka = kafka_of_agent.get()
    return None if kafka is None else kafka.connections


def connection(name: str) -> Connection:
    """Return a named connection of this agent. Only from inside a handler.

    Raises:
        NoSuchConnection: There is no `[kafka.NAME]`, or no handler is running.
    """
    connections = connections_of_agent()
    if connections is None:
        raise NoSuchConnection(f"kafka {name}: only a handler that the agent runs can use it")
    return connections.get(name)


async def publish(
    name: str,
    topic: str | None,
    value: bytes | str | None,
    *,
    key: bytes | str | None = None,
    headers: Headers | None = None,
) -> Placed:
    """Publish a record and wait until the broker has it; `topic` None: the connection's.

    Raises:
        NoSuchConnection, KafkaNotInstalled: As they say.
        KafkaError: It was not delivered; see `retriable` and `definite`.
    """
    return await connection(name).publish(topic, value, key=key, headers=headers)


def send(
    name: str,
    topic: str | None,
    value: bytes | str | None,
    *,
    key: bytes | str | None = None,
    headers: Headers | None = None,
    report: Callable[[Report], object] | None = None,
) -> None:
    """Hand a record over and go on; `report`, if given, is called once with what became of it.

    Raises:
        Overloaded: Too many records are in flight; nothing was taken.
        NoSuchConnection, KafkaNotInstalled, KafkaError: As `publish`; nothing was taken.
    """
    connection(name).send(topic, value, key=key, headers=headers, report=report)


def kafka_publish(
    broker_id: str,
    message: bytes | str,
    key: bytes | str | None = None,
    report_route: Callable[[Report], object] | None = None,
) -> None:
    """Publish to the topic of a connection, as OpenSIPS's script function of this name.

    Raises:
        As `send`.
    """
    send(broker_id, None, message, key=key, report=report_route)
