"""A mock cluster for each test that asks for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from clusternode.kafka.settings import KafkaConnection
from tests.kafka.mock_cluster import MockCluster, mock_cluster

QUICK = {"fetch.wait.max.ms": "10", "reconnect.backoff.max.ms": "100"}
"""The mock does not wake a waiting fetch; and nobody wants to wait for back-off."""


@pytest.fixture
def kafka() -> Iterator[MockCluster]:
    with mock_cluster() as cluster:
        yield cluster


@pytest.fixture
def settings(kafka: MockCluster) -> Callable[..., KafkaConnection]:
    """Return a function that makes the settings of a connection to the mock cluster."""

    def make(**values) -> KafkaConnection:
        options = {
            "name": "main",
            "brokers": kafka.brokers,
            "linger_ms": 0,
            "session_timeout_ms": 2000,
            "auto_offset_reset": "earliest",
            "group_id": "test",
        }
        properties = {**QUICK, **values.pop("properties", {})}
        return KafkaConnection(**{**options, **values, "properties": properties})

    return make
