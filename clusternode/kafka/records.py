"""What goes to Kafka and comes from it: values without behaviour of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import attrs

from clusternode.errors import KafkaError

HeaderValue: TypeAlias = bytes | str | None
Headers: TypeAlias = Mapping[str, HeaderValue] | Sequence[tuple[str, HeaderValue]]
"""A name may stand there several times, so a list of pairs is the complete form."""


@attrs.frozen
class Placed:
    """Where the broker has written a record: proof that it is there."""

    topic: str
    partition: int
    offset: int
    """-1 where the broker was not asked (`acks = 0`)."""
    latency_s: float = 0.0
    """From the call to the broker's answer."""


@attrs.frozen
class Report:
    """What became of one record; exactly one for each that was accepted.

    The fields have the meaning of event_kafka's report route: kafka_id, kafka_status, kafka_key
    and kafka_msg.
    """

    connection: str
    topic: str
    key: bytes | None
    value: bytes | None
    placed: Placed | None = None
    error: KafkaError | None = None

    @property
    def status(self) -> int:
        """0 delivered, -1 not (OpenSIPS: `$avp(kafka_status)`)."""
        return 0 if self.placed is not None else -1


ReportCallback: TypeAlias = Callable[[Report], object]


@attrs.frozen
class Record:
    """One record that was read."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    """None: a tombstone."""
    headers: Sequence[tuple[str, bytes | None]]
    timestamp_ms: int
    """Milliseconds since 1970; 0 where the broker keeps none."""

    def header(self, name: str) -> bytes | None:
        """Return the last header of that name, the one that counts; None: there is none."""
        for key, value in reversed(self.headers):
            if key == name:
                return value
        return None


def as_bytes(value: bytes | str | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


def header_list(headers: Headers | None) -> list[tuple[str, HeaderValue]] | None:
    if not headers:
        return None
    return list(headers.items()) if isinstance(headers, Mapping) else list(headers)
