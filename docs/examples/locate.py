"""Know where our users are registered, and find those of the other proxies."""

from clusternode import routes

contacts: dict[str, str] = {}  # user → contact, of users registered here


@routes.message("location.update")
def update(message: routes.IncomingMessage) -> None:
    """Our own proxy tells us of a registration: a JSON object with user and contact."""
    registration = message.json()
    if registration["contact"]:
        contacts[registration["user"]] = registration["contact"]
    else:
        contacts.pop(registration["user"], None)


@routes.request("locate")
def locate(request: routes.IncomingRequest) -> str | None:
    """Answer whoever asks for one of our users; for the others we have nothing to say."""
    return contacts.get(request.text)


@routes.request("route-call")
async def route_call(request: routes.IncomingRequest) -> dict[str, str]:
    """Tell our proxy where to send a call: to ourselves, or to the node that knows the user."""
    user = request.text
    if user in contacts:
        return {"node": request.bus.node_id, "contact": contacts[user]}
    async with request.bus.broadcast_request("locate", user, timeout=1.0) as replies:
        reply = await replies.first()
    if reply is None:
        raise routes.Refuse(404, f"nobody knows {user}")
    return {"node": reply.node_id, "contact": reply.text}
