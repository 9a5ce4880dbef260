"""The routes of `clusternode demo`: every node knows the users that are registered at it."""

from clusternode import routes

REGISTERED = {"n1": ["carol"], "n2": ["alice"], "n3": ["bob"]}  # node → its users


@routes.request("locate")
def locate(request: routes.IncomingRequest) -> str | None:
    """Answer "where is alice?" on the one node that knows; the others have nothing to say."""
    user = request.text.removeprefix("where is ").removesuffix("?")
    if user in REGISTERED.get(request.bus.node_id, []):
        return f"sip:{user}@{request.bus.node_id}.example.net"
    return None


@routes.message("fraud")
def ban(message: routes.IncomingMessage) -> None:
    """Take the address of an attacker; returning without an error is the result 200."""
    print(f"banned {message.text}, found by {message.origin}", flush=True)
