"""How many records a trio task publishes in a second, and how late the loop is meanwhile.

Against a broker that is given, or librdkafka's own mock cluster in a process of its own.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import trio

from clusternode.cli.local.measure import Row
from clusternode.errors import KafkaNotInstalled
from clusternode.kafka import library
from clusternode.kafka.log import clock
from clusternode.kafka.producer import Producer
from clusternode.kafka.settings import IN_FLIGHT_MAX, KafkaConnection

TICK = 0.002
"""Seconds between two looks at how late the loop is."""
TOPIC = "clusternode-bench"
FLUSH_TIMEOUT = 30.0
MOCK = """\
import sys, confluent_kafka
mock = confluent_kafka.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "ignored:1"})
brokers = mock.list_topics(timeout=5).brokers.values()
print(",".join(f"{each.host}:{each.port}" for each in brokers), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def mock_broker() -> Iterator[str]:
    """Run a mock cluster; yields its address."""
    command = [sys.executable, "-c", MOCK]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait()


async def measure_kafka(
    brokers: str | None, size: int, count: int, note: Callable[[str], None]
) -> Row:
    """Publish `count` records of `size` bytes from one task and wait for all reports.

    Raises:
        KafkaNotInstalled: The extra is not installed.
    """
    if not library.is_installed():
        raise KafkaNotInstalled(library.HOW_TO_INSTALL)
    note(f"kafka: {count} records of {size} bytes to {brokers or 'a mock cluster'}")
    with contextlib.ExitStack() as stack:
        address = brokers or stack.enter_context(mock_broker())
        return await _measure(address, size, count, "real" if brokers else "mock")


async def _measure(brokers: str, size: int, count: int, kind: str) -> Row:
    settings = KafkaConnection(name="bench", brokers=brokers)
    producer = Producer(
        "bench",
        settings.producer_properties,
        in_flight_max=IN_FLIGHT_MAX,
        flush_timeout=FLUSH_TIMEOUT,
    )
    value = b"x" * size
    lags: list[float] = []
    await producer.publish(TOPIC, b"first")  # connects
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, lags)
        began = clock()
        for _ in range(count):
            await producer.send(TOPIC, value)
        await producer.wait_for_reports()
        seconds = clock() - began
        nursery.cancel_scope.cancel()
    counters = producer.counters
    await producer.aclose()
    lags.sort()
    return Row(
        "kafka",
        f"{size} bytes, {kind} broker",
        {
            "records_per_s": count / seconds,
            "delivered": float(counters.delivered - 1),
            "failed": float(counters.failed),
            "lag_p50_ms": 1000 * lags[len(lags) // 2],
            "lag_p99_ms": 1000 * lags[int(len(lags) * 0.99)],
        },
    )


async def _watch(lags: list[float]) -> None:
    while True:
        before = clock()
        await trio.sleep(TICK)
        lags.append(clock() - before - TICK)
