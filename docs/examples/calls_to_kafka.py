"""Calls in Kafka: what must be kept goes to a topic, and what a topic orders is done here.

Needs `[kafka.main]` in the configuration; see docs/kafka.md.
"""

from __future__ import annotations

import logging

from clusternode import kafka, routes

logger = logging.getLogger(__name__)


@routes.message("cdr")
async def keep(message: routes.IncomingMessage) -> None:
    """Write a call record; its sender is told 200 when the broker has it."""
    placed = await kafka.publish("main", "cdrs", message.body, key=message.origin)
    logger.info("call record at %s/%d offset %d", placed.topic, placed.partition, placed.offset)


@routes.message("trace")
def trace(message: routes.IncomingMessage) -> None:
    """Write and go on, as OpenSIPS's kafka_publish; the report comes later."""
    kafka.kafka_publish("traces", message.body, message.origin, report)


def report(report: kafka.Report) -> None:
    if report.error is not None:
        logger.warning("%s: status %d: %s", report.connection, report.status, report.error)


@routes.kafka("main", topics="orders", group="workers", dead_letter="orders.dead")
async def orders(record: kafka.IncomingRecord) -> None:
    """Do what a record says; when it fails five times, it goes to orders.dead."""
    order = record.json()
    record.bus.broadcast("orders", order["number"])
