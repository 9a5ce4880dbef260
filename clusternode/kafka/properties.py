"""Which properties of librdkafka belong to one kind of client only (its CONFIGURATION.md)."""

from __future__ import annotations

CONSUMER_ONLY = frozenset(
    {
        "group.id",
        "group.instance.id",
        "group.protocol",
        "group.remote.assignor",
        "partition.assignment.strategy",
        "session.timeout.ms",
        "heartbeat.interval.ms",
        "max.poll.interval.ms",
        "auto.offset.reset",
        "auto.commit.interval.ms",
        "enable.auto.commit",
        "fetch.wait.max.ms",
        "fetch.min.bytes",
        "fetch.max.bytes",
        "fetch.message.max.bytes",
        "max.partition.fetch.bytes",
        "fetch.error.backoff.ms",
        "fetch.queue.backoff.ms",
        "queued.min.messages",
        "queued.max.messages.kbytes",
        "isolation.level",
        "check.crcs",
        "client.rack",
    }
)
"""Properties that a producer does not have: librdkafka would warn of them."""
PRODUCER_ONLY = frozenset(
    {
        "acks",
        "request.required.acks",
        "request.timeout.ms",
        "message.timeout.ms",
        "delivery.timeout.ms",
        "partitioner",
        "queuing.strategy",
        "compression.codec",
        "compression.type",
        "compression.level",
        "linger.ms",
        "queue.buffering.max.ms",
        "queue.buffering.max.messages",
        "queue.buffering.max.kbytes",
        "queue.buffering.backpressure.threshold",
        "batch.num.messages",
        "batch.size",
        "enable.idempotence",
        "enable.gapless.guarantee",
        "message.send.max.retries",
        "retries",
        "retry.backoff.ms",
        "retry.backoff.max.ms",
        "sticky.partitioning.linger.ms",
        "transactional.id",
        "transaction.timeout.ms",
        "delivery.report.only.error",
        "dr_cb",
        "dr_msg_cb",
    }
)
