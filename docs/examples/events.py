"""Raise events of your own, and know what became of them at the back ends."""

import os

from clusternode import routes
from clusternode.routes.subscriptions import SubscriberStatus

DIRECTORY = os.environ.get("EVENTS_DIRECTORY", "/var/log/clusternode")
notes: list[str] = []

routes.declare_event("E_SITE_DRAINED", "E_SITE_NOTE")
routes.subscribe_event("E_SITE_*", f"flatstore:{DIRECTORY}/sites")


@routes.message("site.drain")
async def drain(message: routes.IncomingMessage) -> None:
    """Tell everyone who has subscribed, and keep what became of it."""
    raised = message.raise_event("E_SITE_DRAINED", {"site": message.text, "calls": 12})
    notes.extend(f"{each.to}: {each.status.ok} {each.status.detail}" for each in await raised)


@routes.message("site.note")
def note(message: routes.IncomingMessage) -> None:
    """Parameters without names; the report comes by itself, once for each subscriber."""
    message.raise_event("E_SITE_NOTE", [message.text, 1], report=keep)


def keep(report: SubscriberStatus) -> None:
    """A plain function that does not block."""
    notes.append(f"{report.event} to {report.to}: {report.status.ok}")


@routes.message("site.watch")
def watch(message: routes.IncomingMessage) -> None:
    """Subscribe a back end for ten minutes; again refreshes it."""
    message.subscribe_event("E_SITE_DRAINED", message.text, 600.0)
