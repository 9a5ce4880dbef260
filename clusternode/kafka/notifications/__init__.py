"""Notifications in the manner of oslo.messaging, over Kafka: URLs, envelope, notifier, listener.

A routes file says `from clusternode.kafka import notifications`. Specified in
docs/coming-from-oslo-messaging.md; wire and grammar are those of oslo.messaging 18.
"""

from __future__ import annotations

from clusternode.kafka.notifications.listener import (
    HANDLED,
    REQUEUE,
    NotificationFilter,
    listen,
)
from clusternode.kafka.notifications.log_handler import LoggingNotificationHandler
from clusternode.kafka.notifications.notifier import Notifier, notifier
from clusternode.kafka.notifications.transport_url import TransportHost, TransportUrl, parse_url

__all__ = [
    "HANDLED",
    "REQUEUE",
    "LoggingNotificationHandler",
    "NotificationFilter",
    "Notifier",
    "TransportHost",
    "TransportUrl",
    "listen",
    "notifier",
    "parse_url",
]
