"""librdkafka's own mock cluster, inside of the test process: real TCP listeners, no Java.

Its functions are exported by the library that confluent-kafka brings along, but they are no
promise of its interface; the fixture checks itself by making a cluster. What it cannot do:
SASL, CreateTopics, aborted transactions.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

import confluent_kafka

PRODUCER = 0  # rd_kafka_type_t
PRODUCE, FETCH, OFFSET_COMMIT = 0, 1, 8  # API keys of the Kafka protocol


def _library() -> ctypes.CDLL:
    beside = Path(confluent_kafka.__file__).parent
    found = sorted(beside.parent.glob("confluent_kafka.libs/librdkafka*.so*"))
    library = ctypes.CDLL(str(found[0]))
    library.rd_kafka_new.restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_new.restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    return library


class MockCluster:
    """Brokers 1…n on free ports of 127.0.0.1."""

    def __init__(self, brokers: int = 1) -> None:
        self._library = _library()
        error = ctypes.create_string_buffer(512)
        client = self._library.rd_kafka_new(PRODUCER, None, error, ctypes.c_size_t(512))
        assert client, error.value.decode()
        self._client = ctypes.c_void_p(client)
        cluster = self._library.rd_kafka_mock_cluster_new(self._client, brokers)
        assert cluster
        self._cluster = ctypes.c_void_p(cluster)
        self._brokers = brokers
        self._library.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 0)

    @property
    def brokers(self) -> str:
        return self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def create_topic(self, name: str, partitions: int = 1) -> None:
        error = self._library.rd_kafka_mock_topic_create(
            self._cluster, name.encode(), partitions, 1
        )
        assert error == 0, error

    def kill(self) -> None:
        """Close every listener and connection; what was written stays."""
        for broker in range(1, self._brokers + 1):
            self._library.rd_kafka_mock_broker_set_down(self._cluster, broker)

    def restart(self) -> None:
        for broker in range(1, self._brokers + 1):
            self._library.rd_kafka_mock_broker_set_up(self._cluster, broker)

    def answer_after(self, milliseconds: int) -> None:
        for broker in range(1, self._brokers + 1):
            self._library.rd_kafka_mock_broker_set_rtt(self._cluster, broker, milliseconds)

    def push_errors(self, api: int, *errors: int) -> None:
        """Answer the next requests of one kind with these errors."""
        codes = (ctypes.c_int * len(errors))(*errors)
        self._library.rd_kafka_mock_push_request_errors_array(
            self._cluster, ctypes.c_int16(api), ctypes.c_size_t(len(errors)), codes
        )

    def close(self) -> None:
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._client)


@contextlib.contextmanager
def mock_cluster(brokers: int = 1) -> Iterator[MockCluster]:
    cluster = MockCluster(brokers)
    try:
        yield cluster
    finally:
        cluster.close()


def read_all(brokers: str, topic: str, count: int, timeout: float = 10.0) -> list:
    """Read with a plain consumer of the library: messages of every partition."""
    consumer = confluent_kafka.Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": f"reader-{topic}",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 10,
        }
    )
    metadata = consumer.list_topics(topic, timeout=timeout).topics[topic]
    consumer.assign(
        [confluent_kafka.TopicPartition(topic, number, 0) for number in metadata.partitions]
    )
    found: list = []
    try:
        while len(found) < count:
            batch = consumer.consume(count - len(found), 1.0)
            if not batch:
                timeout -= 1.0
                if timeout <= 0:
                    break
            found += [message for message in batch if message.error() is None]
    finally:
        consumer.close()
    return found
