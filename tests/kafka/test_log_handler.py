"""Log records as notifications."""

from __future__ import annotations

import logging

import trio

from clusternode.kafka.connections import KafkaConnections
from clusternode.kafka.notifications import LoggingNotificationHandler, Notifier
from clusternode.kafka.notifications.envelope import decode_untrusted
from tests.kafka.mock_cluster import read_all


async def test_log_records_of_any_thread_are_sent_and_those_of_kafka_are_not(kafka, settings):
    connections = KafkaConnections({"main": settings(flush_timeout=5.0)})
    connection = connections.get("main")
    handler = LoggingNotificationHandler(Notifier("host", ("logs",), connection=connection))
    logger = logging.getLogger("calls")
    logger.addHandler(handler)
    logging.getLogger("clusternode.kafka.x").addHandler(handler)
    try:
        logger.warning("call %d dropped", 7)
        await trio.to_thread.run_sync(logger.warning, "from a thread")
        logging.getLogger("clusternode.kafka.x").warning("broker down")
        await trio.lowlevel.checkpoint()
        await connection.producer().wait_for_reports()
    finally:
        logger.removeHandler(handler)
        logging.getLogger("clusternode.kafka.x").removeHandler(handler)
        await connections.aclose()

    got = [decode_untrusted(each.value()) for each in read_all(kafka.brokers, "logs.warn", 2)]
    assert {each.payload["msg"] for each in got} == {"call 7 dropped", "from a thread"}
    assert {each.payload["name"] for each in got} == {"calls"}
    assert {(each.event_type, each.priority) for each in got} == {("logrecord", "warn")}
    assert (handler.sent, handler.lost) == (2, 0)


async def test_what_cannot_be_taken_or_written_is_lost_and_hurts_nobody(kafka, settings, capsys):
    connections = KafkaConnections({"main": settings(flush_timeout=5.0, in_flight_max=1)})
    connection = connections.get("main")
    handler = LoggingNotificationHandler(Notifier("host", ("logs",), connection=connection))
    logger = logging.Logger("calls")  # noqa: LOG001  # not below that of pytest, which formats too
    logger.addHandler(handler)
    try:
        logger.error("one")
        logger.error("two")
        logger.error("%d", "three")
        await connection.producer().wait_for_reports()
    finally:
        await connections.aclose()

    assert (handler.sent, handler.lost) == (1, 2)
    assert capsys.readouterr().err.count("--- Logging error ---") == 1
