"""The hybrid of OpenStack with one agent: calls over the mesh, notifications over Kafka.

Needs `[notifications] transport_url`; the other end may be a service with oslo.messaging.
"""

from __future__ import annotations

from clusternode import routes
from clusternode.kafka import notifications

Fields = dict[str, str]

notifier = notifications.notifier("sip.edge-1")


@routes.request("locate")
async def locate(request: routes.IncomingRequest) -> dict[str, str]:
    """Answer a call over the mesh, and tell by a notification that somebody asked."""
    await notifier.info(None, "locate.asked", {"who": request.text})
    return {"contact": f"sip:{request.text}@192.0.2.10"}


class Audit:
    """Hears what services notify, each through a method of its priority."""

    filter_rule = notifications.NotificationFilter(event_type=r"locate\.")

    def __init__(self) -> None:
        self.heard: list[str] = []

    def info(
        self, ctxt: Fields, publisher_id: str, event_type: str, payload: Fields, metadata: Fields
    ) -> None:
        self.heard.append(payload["who"])

    def error(
        self, ctxt: Fields, publisher_id: str, event_type: str, payload: Fields, metadata: Fields
    ) -> None:
        self.heard.append(f"error from {publisher_id}")


audit = Audit()
notifications.listen(["notifications"], [audit], pool="audit")
