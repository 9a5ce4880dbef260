"""The message envelope 2.0 of oslo.messaging, and the names of topics.

A value is `{"oslo.version": "2.0", "oslo.message": TEXT}`, TEXT the notification as JSON again,
with the context in `_context`; no key, no headers.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import attrs

from clusternode.errors import RemoteProtocolError

VERSION = "2.0"
VERSION_KEY, MESSAGE_KEY, CONTEXT_KEY = "oslo.version", "oslo.message", "_context"
PRIORITIES = ("audit", "debug", "info", "warn", "error", "critical", "sample")


@attrs.frozen
class Notification:
    """One notification, as listeners see it."""

    context: Mapping[str, Any]
    publisher_id: str
    event_type: str
    payload: Any
    priority: str
    """In small letters."""
    message_id: str
    timestamp: str

    @property
    def metadata(self) -> dict[str, str]:
        return {"message_id": self.message_id, "timestamp": self.timestamp}

    def as_batch_entry(self) -> dict[str, Any]:
        """Return it as endpoints of batches get it."""
        return {
            "ctxt": self.context,
            "publisher_id": self.publisher_id,
            "event_type": self.event_type,
            "payload": self.payload,
            "metadata": self.metadata,
        }


def topics_of(
    topics: Iterable[str], priorities: Iterable[str], vhost: str | None = None
) -> tuple[str, ...]:
    """Return NAME.priority[.vhost] for each, the same on both sides."""
    wanted = tuple(priorities)
    return tuple(
        ".".join(filter(None, (topic, priority.lower(), vhost)))
        for topic in topics
        for priority in wanted
    )


def new_message(
    context: Mapping[str, Any], publisher_id: str, event_type: str, payload: object, priority: str
) -> dict[str, Any]:
    """Return a notification with an id and a time of its own, ready for `encode`."""
    return {
        "message_id": str(uuid.UUID(bytes=_random(), version=4)),
        "publisher_id": publisher_id,
        "event_type": event_type,
        "priority": priority.upper(),
        "payload": payload,
        "timestamp": str(datetime.now(UTC).replace(tzinfo=None)),
        CONTEXT_KEY: dict(context),
    }


def _random() -> bytes:
    import secrets  # nothing else here needs it

    return secrets.token_bytes(16)


def encode(message: Mapping[str, Any]) -> bytes:
    """Return the value of a record.

    Raises:
        TypeError, ValueError: The payload or context is no JSON.
    """
    inner = json.dumps(message)
    return json.dumps({VERSION_KEY: VERSION, MESSAGE_KEY: inner}).encode()


def decode_untrusted(value: bytes | None) -> Notification:
    """Read the value of a record; one without the envelope is taken too, as oslo does.

    Raises:
        RemoteProtocolError: It is no notification.
    """
    try:
        outer = json.loads(value or b"")
        inner = outer
        if isinstance(outer, dict) and VERSION_KEY in outer:
            version = str(outer[VERSION_KEY])
            if version.partition(".")[0] != VERSION.partition(".")[0]:
                raise RemoteProtocolError(f"envelope of version {version[:16]}, not {VERSION}")
            inner = json.loads(outer.get(MESSAGE_KEY, ""))
    except (ValueError, TypeError, RecursionError) as error:
        raise RemoteProtocolError(f"no notification: {error}") from None
    if not isinstance(inner, dict):
        raise RemoteProtocolError("no notification: not an object")
    context = inner.get(CONTEXT_KEY, {})
    return Notification(
        context if isinstance(context, dict) else {},
        str(inner.get("publisher_id", "")),
        str(inner.get("event_type", "")),
        inner.get("payload"),
        str(inner.get("priority", "")).lower(),
        str(inner.get("message_id", "")),
        str(inner.get("timestamp", "")),
    )
