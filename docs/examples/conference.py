"""Tell which proxy holds a conference, so that every caller ends up in the same one."""

from clusternode import routes

hosted: dict[str, int] = {}  # conference → participants, of those held here
holder: dict[str, str] = {}  # conference → the node that holds it, as we were told


@routes.message("conference.here")
def begins_or_ends(message: routes.IncomingMessage) -> None:
    """Our own mixer tells us how many take part: a JSON object with room and participants."""
    state = message.json()
    room, participants = state["room"], state["participants"]
    if participants:
        is_new = room not in hosted
        hosted[room] = participants
        if is_new:
            message.bus.broadcast("conference", room)
    else:
        hosted.pop(room, None)


@routes.message("conference")
def announced(message: routes.IncomingMessage) -> None:
    """Another node has begun one."""
    holder[message.text] = message.origin


@routes.request("conference.where")
async def where(request: routes.IncomingRequest) -> str | None:
    """Tell our proxy who holds a room: from memory, else by asking everyone."""
    room = request.text
    if room in hosted:
        return request.bus.node_id
    if room in holder:
        return holder[room]
    replies = await request.bus.broadcast_request("conference.yours", room, timeout=1.0).gather()
    return replies[0].node_id if replies else None


@routes.request("conference.yours")
def yours(request: routes.IncomingRequest) -> str | None:
    return str(hosted[request.text]) if request.text in hosted else None


@routes.event("peer:left")
@routes.event("peer:removed")
def forget(event: routes.IncomingEvent) -> None:
    """A node is gone, and its conferences with it."""
    for room in [room for room, node_id in holder.items() if node_id == event.node_id]:
        del holder[room]
