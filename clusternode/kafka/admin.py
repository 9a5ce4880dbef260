"""Topics: made where they are missing. Meaning: res_kafka's ensure_topic."""

from __future__ import annotations

import trio

from clusternode.core.types import Seconds
from clusternode.errors import KafkaError
from clusternode.kafka import library
from clusternode.kafka.log import ClientLog
from clusternode.kafka.settings import KafkaConnection

MARGIN: Seconds = 2.0
"""How long the client may take beyond `request_timeout_ms` (res_kafka: the same 2 s)."""
POLL: Seconds = 0.01
ALREADY = "TOPIC_ALREADY_EXISTS"


async def ensure_topic(
    settings: KafkaConnection, topic: str, partitions: int, replicas: int, log: ClientLog
) -> bool:
    """Make a topic; False: it was there. -1 for partitions or replicas: the broker's default.

    Raises:
        KafkaNotInstalled: The extra is not installed.
        KafkaError: It could not be made.
    """
    timeout = settings.request_timeout_ms / 1000
    with trio.move_on_after(timeout + MARGIN):
        return await trio.to_thread.run_sync(
            _ensure_topic,
            settings,
            topic,
            partitions,
            replicas,
            log,
            timeout,
            abandon_on_cancel=True,
        )
    raise KafkaError("_TIMED_OUT", f"no answer within {timeout:g} s", retriable=True)


def _ensure_topic(
    settings: KafkaConnection,
    topic: str,
    partitions: int,
    replicas: int,
    log: ClientLog,
    timeout: Seconds,
) -> bool:
    """Run in a thread: the library answers by a future of `concurrent.futures`."""
    admin = library.new_admin(settings.admin_properties, log.logger)
    wanted = library.new_topic(topic, partitions, replicas)
    try:
        future = admin.create_topics([wanted], request_timeout=timeout)[topic]
        future.result(timeout + MARGIN)
    except TimeoutError:
        raise KafkaError("_TIMED_OUT", f"no answer within {timeout:g} s", retriable=True) from None
    except library.errors() as error:
        found = library.error_from(error)
        if found.name == ALREADY:
            return False
        raise found from None
    return True
