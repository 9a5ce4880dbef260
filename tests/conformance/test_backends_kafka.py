"""The Kafka back end does what `clusternode.testing.backends` says, on the mock cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import confluent_kafka
import pytest

from clusternode.testing.backends import BACKEND_CHECKS, Received, backend_world
from tests.conformance.backend_peers import read_notification
from tests.kafka.mock_cluster import MockCluster, mock_cluster

TOPIC = "events"


class KafkaPeer:
    """A broker, and a plain consumer that reads the topic from its start."""

    can_fail = (
        False  # a broker that is gone is noticed after t.message.timeout.ms: see test_backend
    )

    def __init__(self, cluster: MockCluster) -> None:
        cluster.create_topic(TOPIC)
        self.uri = f"kafka:{cluster.brokers}/{TOPIC}?g.linger.ms=1"
        self._got: list[Received] = []
        self._reader = confluent_kafka.Consumer(
            {
                "bootstrap.servers": cluster.brokers,
                "group.id": "peer",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 10,
            }
        )
        self._reader.assign([confluent_kafka.TopicPartition(TOPIC, 0, 0)])

    async def start(self) -> None:
        """Nothing: it is up."""

    async def stop(self) -> None:
        self._reader.close()

    def received(self) -> Sequence[Received]:
        for message in self._reader.consume(1000, 0.01):
            self._got.append(read_notification(message.value() or b""))
        return self._got


@pytest.fixture
def peer() -> Iterator[KafkaPeer]:
    with mock_cluster() as cluster:
        peer = KafkaPeer(cluster)
        yield peer
        peer._reader.close()


@pytest.mark.slow
@pytest.mark.parametrize("check", BACKEND_CHECKS, ids=lambda check: check.__name__)
async def test_the_kafka_back_end(check, peer):
    async with backend_world() as world:
        await check(world, peer)
