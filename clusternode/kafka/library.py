"""The one edge to confluent-kafka: imports it, makes its clients, turns its errors into ours.

Nothing else imports it. Facts that the code around it relies on, each tried: `produce` never
blocks; callbacks run in the thread that polls, inside `poll`; `Producer.poll` returns early only
below 0.2 s; a `Consumer` may be touched by one thread only.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from clusternode.errors import KafkaError, KafkaNotInstalled

if TYPE_CHECKING:
    import confluent_kafka.cimpl
    from confluent_kafka.admin import AdminClient

VERSION_MIN = 0x020D00FF
"""librdkafka 2.13.0: since then a short poll returns as soon as something was served."""
HOW_TO_INSTALL = "Kafka needs the package confluent-kafka: pip install 'clusternode[kafka]'"

RETRIABLE = frozenset(
    {
        "_MSG_TIMED_OUT",
        "_TIMED_OUT",
        "_TIMED_OUT_QUEUE",
        "_TRANSPORT",
        "_ALL_BROKERS_DOWN",
        "_QUEUE_FULL",
        "_PURGE_QUEUE",
        "_PURGE_INFLIGHT",
        "_RETRY",
        "_WAIT_COORD",
        "_RESOLVE",
        "_LEADER_NOT_AVAILABLE",
        "LEADER_NOT_AVAILABLE",
        "NOT_LEADER_FOR_PARTITION",
        "NOT_LEADER_OR_FOLLOWER",
        "REQUEST_TIMED_OUT",
        "BROKER_NOT_AVAILABLE",
        "REPLICA_NOT_AVAILABLE",
        "NETWORK_EXCEPTION",
        "COORDINATOR_LOAD_IN_PROGRESS",
        "COORDINATOR_NOT_AVAILABLE",
        "NOT_COORDINATOR",
        "NOT_ENOUGH_REPLICAS",
        "NOT_ENOUGH_REPLICAS_AFTER_APPEND",
        "NOT_CONTROLLER",
        "KAFKA_STORAGE_ERROR",
        "THROTTLING_QUOTA_EXCEEDED",
    }
)
"""Names of errors after which the same record may well be taken later."""
INDEFINITE = frozenset(
    {
        "_MSG_TIMED_OUT",
        "_TIMED_OUT",
        "_TRANSPORT",
        "_PURGE_INFLIGHT",
        "REQUEST_TIMED_OUT",
        "NETWORK_EXCEPTION",
        "NOT_ENOUGH_REPLICAS_AFTER_APPEND",
    }
)
"""Names of errors after which the broker may have written the record all the same."""
ADVICE: Mapping[str, str] = {
    "_AUTHENTICATION": "check sasl_mechanisms, sasl_username and sasl_password",
    "_SSL": "check ssl_ca_location, ssl_certificate_location and ssl_key_location",
    "_ALL_BROKERS_DOWN": "check `brokers`, and that security_protocol is that of the listener",
    "TOPIC_AUTHORIZATION_FAILED": "the user lacks the right to this topic; see kafka-acls",
    "GROUP_AUTHORIZATION_FAILED": "the user lacks the right to this group; see kafka-acls",
    "CLUSTER_AUTHORIZATION_FAILED": "the user lacks the right to do this in the cluster",
    "UNKNOWN_TOPIC_OR_PART": "the topic does not exist; see clusternode kafka ensure-topic",
    "_UNKNOWN_TOPIC": "the topic does not exist; see clusternode kafka ensure-topic",
    "MSG_SIZE_TOO_LARGE": "raise message_max_bytes, and max.message.bytes of the topic",
}


@functools.cache
def _library() -> ModuleType:
    try:
        import confluent_kafka  # an optional dependency, and slow to import
    except ImportError:
        raise KafkaNotInstalled(HOW_TO_INSTALL) from None
    text, version = confluent_kafka.libversion()
    if version < VERSION_MIN:
        raise KafkaNotInstalled(
            f"librdkafka {text} is too old, 2.13 is needed:"
            " pip install --upgrade 'clusternode[kafka]'"
        )
    return confluent_kafka


def is_installed() -> bool:
    try:
        _library()
    except KafkaNotInstalled:
        return False
    return True


def error_of(error: confluent_kafka.KafkaError) -> KafkaError:
    """Return librdkafka's error as ours, with advice where there is some."""
    name = error.name()
    detail = error.str()
    if name in ADVICE:
        detail = f"{detail} ({ADVICE[name]})"
    return KafkaError(
        name,
        detail,
        retriable=error.retriable() or name in RETRIABLE,
        definite=name not in INDEFINITE,
        fatal=error.fatal(),
    )


def error_from(error: BaseException) -> KafkaError:
    """Return what a call of the library raised as ours.

    Only for the types in `errors()`.
    """
    if isinstance(error, BufferError):
        return KafkaError("_QUEUE_FULL", "the client's queue is full", retriable=True)
    if error.args and hasattr(error.args[0], "name"):
        return error_of(cast("confluent_kafka.KafkaError", error.args[0]))
    return KafkaError("_INVALID_ARG", str(error))


def errors() -> tuple[type[BaseException], ...]:
    """Return what calls of the library raise for what is not our bug."""
    library = _library()
    return (library.KafkaException, BufferError, ValueError, TypeError)


ErrorCallback = Callable[[KafkaError], None]


def _translated(callback: ErrorCallback) -> Callable[[confluent_kafka.KafkaError], None]:
    def call(error: confluent_kafka.KafkaError) -> None:
        callback(error_of(error))

    return call


def new_producer(
    properties: Mapping[str, Any], on_error: ErrorCallback, logger: logging.Logger
) -> confluent_kafka.Producer:
    """Make a producer. It connects in the background; `on_error` runs inside `poll`.

    Raises:
        KafkaNotInstalled: The library is not there.
        KafkaError: A property is unknown, or wrong, or a file that it names cannot be read.
    """
    library = _library()
    try:
        return cast(
            "confluent_kafka.Producer",
            library.Producer({**properties, "error_cb": _translated(on_error)}, logger=logger),
        )
    except errors() as error:
        raise error_from(error) from None


def new_consumer(
    properties: Mapping[str, Any],
    on_error: ErrorCallback,
    on_commit: Callable[[KafkaError | None, Sequence[confluent_kafka.TopicPartition]], None],
    logger: logging.Logger,
) -> confluent_kafka.Consumer:
    """Make a consumer; callbacks run inside `poll`, `consume` and `close`.

    Raises:
        KafkaNotInstalled, KafkaError: As `new_producer`.
    """
    library = _library()

    def committed(
        error: confluent_kafka.KafkaError | None,
        partitions: Sequence[confluent_kafka.TopicPartition],
    ) -> None:
        on_commit(None if error is None else error_of(error), partitions)

    callbacks = {"error_cb": _translated(on_error), "on_commit": committed}
    try:
        return cast(
            "confluent_kafka.Consumer",
            library.Consumer({**properties, **callbacks}, logger=logger),
        )
    except errors() as error:
        raise error_from(error) from None


def new_admin(properties: Mapping[str, Any], logger: logging.Logger) -> AdminClient:
    """Make an admin client.

    Raises:
        KafkaNotInstalled, KafkaError: As `new_producer`.
    """
    _library()
    from confluent_kafka.admin import AdminClient  # slow to import

    try:
        return AdminClient({**properties}, logger=logger)
    except errors() as error:
        raise error_from(error) from None


def new_topic(name: str, partitions: int, replicas: int) -> confluent_kafka.cimpl.NewTopic:
    from confluent_kafka.cimpl import NewTopic  # as the library itself, where it is needed

    return NewTopic(name, num_partitions=partitions, replication_factor=replicas)


def topic_partition(
    topic: str, partition: int, offset: int | None = None
) -> confluent_kafka.TopicPartition:
    library = _library()
    if offset is None:
        return cast("confluent_kafka.TopicPartition", library.TopicPartition(topic, partition))
    return cast("confluent_kafka.TopicPartition", library.TopicPartition(topic, partition, offset))


def check_properties(properties: Mapping[str, Any], logger: logging.Logger) -> None:
    """Let librdkafka judge properties, without connecting to anybody.

    Raises:
        KafkaNotInstalled, KafkaError: As `new_producer`.
    """
    alone = {name: value for name, value in properties.items() if name != "bootstrap.servers"}
    new_producer(alone, lambda _: None, logger)
