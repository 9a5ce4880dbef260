"""Watch the calls of a Kamailio bus, block who calls too often, and answer its questions.

The other side is `kamailio.cfg` beside this file.
"""

import logging
from collections import Counter

from clusternode import routes

CALLS_MAX = 100

logger = logging.getLogger(__name__)
calls: Counter[str] = Counter()
registered: dict[str, str] = {}  # user → contact


@routes.message("calls", via="kamailio")
async def count(message: routes.IncomingMessage) -> None:
    """One call: `CALL-ID CALLER CALLED`, as the script broadcasts it."""
    _, caller, _ = message.text.split(" ", 2)
    calls[caller] += 1
    if calls[caller] > CALLS_MAX:
        blocked = message.bus.htable("blocked")
        results = await blocked.set(caller, "too many calls", expire=600)
        for node, code in results.items():
            if code != 200:
                logger.warning("%s is not blocked on %s: %d", caller, node, code)


@routes.event("dmq:sip", {"method": "REGISTER"})
def remember(event: routes.IncomingEvent) -> None:
    """A copy of a registration, made by `dmq_t_replicate`."""
    user = event.headers["To"][0].partition("sip:")[2].partition("@")[0]
    contacts = event.headers.get("Contact", [])
    if contacts:
        registered[user] = contacts[0]


@routes.request("locate", via="kamailio")
def locate(request: routes.IncomingRequest) -> str:
    """The script asks where somebody is; what is returned goes to its reply channel."""
    return registered.get(request.text, "nobody knows")


@routes.event("peer:*", via="kamailio")
def alarm(event: routes.IncomingEvent) -> None:
    """A Kamailio came, went or returned."""
    logger.warning("%s: %s", event.alias, event.node_id)
