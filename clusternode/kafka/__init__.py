"""Kafka: named connections, producers, consumers, admin, bridges and notifications.

What a routes file uses is here: `from clusternode import kafka`, then `await kafka.publish(…)`.
Specified in docs/kafka.md. What connects is imported when an agent uses it
(`clusternode.integrations`), the client library where it is first used.
"""

from __future__ import annotations

from clusternode.kafka.api import connection, kafka_publish, publish, send
from clusternode.kafka.incoming import IncomingRecord
from clusternode.kafka.records import Placed, Record, Report

__all__ = [
    "IncomingRecord",
    "Placed",
    "Record",
    "Report",
    "connection",
    "kafka_publish",
    "publish",
    "send",
]
