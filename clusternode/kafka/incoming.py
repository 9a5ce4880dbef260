"""One record as the handler of a route gets it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clusternode.kafka.records import Record
from clusternode.routes.contexts import AgentContext, Services

if TYPE_CHECKING:
    from clusternode.kafka.connections import Connection


class IncomingRecord(AgentContext):
    """One record of a topic; the argument of a route for Kafka."""

    __slots__ = ("_connection", "failure", "record")

    def __init__(self, services: Services, connection: Connection, record: Record) -> None:
        super().__init__(services)
        self._connection = connection
        self.record = record
        self.failure: BaseException | None = None
        """Why the handler failed, once it has."""

    @property
    def connection(self) -> Connection:
        """Where it came from; publish by `record.connection.publish(…)`."""
        return self._connection

    @property
    def topic(self) -> str:
        return self.record.topic

    @property
    def partition(self) -> int:
        return self.record.partition

    @property
    def offset(self) -> int:
        return self.record.offset

    @property
    def key(self) -> bytes | None:
        return self.record.key

    @property
    def payload(self) -> bytes | None:
        """The value; None is a tombstone."""
        return self.record.value

    @property
    def text(self) -> str:
        """The value as UTF-8; what is not UTF-8 becomes U+FFFD."""
        return (self.record.value or b"").decode("utf-8", "replace")

    def json(self) -> Any:  # noqa: ANN401  # whatever the value says
        """Read the value as JSON.

        Raises:
            ValueError: It is none.
        """
        return json.loads(self.record.value or b"")

    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]:
        return self.record.headers

    def header(self, name: str) -> bytes | None:
        return self.record.header(name)

    @property
    def timestamp_ms(self) -> int:
        return self.record.timestamp_ms

    def take_failure(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error

    def __repr__(self) -> str:
        return f"<record {self.topic}/{self.partition} offset {self.offset}>"
