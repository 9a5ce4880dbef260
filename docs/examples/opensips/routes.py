"""Count the calls of an OpenSIPS cluster, block who calls too often, and answer its questions.

The other side is `opensips.cfg` beside this file. `[gateway.opensips]` has
`cache_collections = ["blocked"]`, and `usrloc = true` where the nodes replicate contacts.
"""

import logging
from collections import Counter

from clusternode import routes

CALLS_MAX = 100

logger = logging.getLogger(__name__)
calls: Counter[str] = Counter()
registered: dict[str, str] = {}  # user → contact


@routes.request("generic", via="opensips")
def heard(request: routes.IncomingRequest) -> str | None:
    """All that scripts say comes here: `call USER`, which wants no answer, or `locate USER`."""
    word, _, user = request.text.partition(" ")
    if word == "locate":
        return registered.get(user)  # None is no reply: another node may know
    if word == "call":
        calls[user] += 1
        if calls[user] > CALLS_MAX:
            request.bus.cache("blocked").set(user, "too many calls", ttl=600)
    return None


@routes.event("opensips:usrloc")
def remember(event: routes.IncomingEvent) -> None:
    """A contact, from a node that replicates its location table."""
    user = event.aor.partition("@")[0]
    if event.action in ("insert", "update", "sync"):
        registered[user] = event.contact["contact"]
    elif event.action == "aor_delete":
        registered.pop(user, None)


@routes.event("node:state", via="opensips")
def alarm(event: routes.IncomingEvent) -> None:
    """A node can be reached, or can not any more."""
    logger.warning("node %s is %s", event.node_id, event.status)
