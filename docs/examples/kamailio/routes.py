"""Watch the calls of a Kamailio bus, block who calls too often, and answer its questions.

The other side is `kamailio.cfg` beside this file.
"""

from collections import Counter
from typing import Any

from clusternode import routes

CALLS_MAX = 100

calls: Counter[str] = Counter()
registered: dict[str, str] = {}  # user → contact


@routes.message("calls", via="kamailio")
async def count(message: Any) -> None:
    _, caller, _ = message.text.split(" ", 2)
    calls[caller] += 1
    if calls[caller] > CALLS_MAX:
        blocked = message.bus.htable("blocked")
        results = await blocked.set(caller, "too many calls", expire=600)
        late = [node for node, code in results.items() if code != 200]
        if late:
            print(f"{caller} is not yet blocked on: {', '.join(late)}")


@routes.event("dmq:sip", {"method": "REGISTER"})
def remember(event: Any) -> None:
    contacts = event.headers.get("Contact", [])
    if contacts:
        user = event.uri.removeprefix("sip:").partition("@")[0]
        registered[user] = contacts[0]


@routes.request("locate", via="kamailio")
def locate(request: Any) -> str:
    return registered.get(request.text, "nobody knows")


@routes.event("peer:*", via="kamailio")
def alarm(event: Any) -> None:
    print(f"{event.name}: {event.node_id}")
