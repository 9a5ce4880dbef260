"""The rest of what routes can do, one small function each."""

import trio

from clusternode import routes

notes: list[str] = []


@routes.message("fast", handling="inline")
def inline(message: routes.IncomingMessage) -> None:
    """Run where the message was read: for a plain function of a few microseconds."""
    notes.append(message.text)


@routes.message("counter")
def first_of_two(message: routes.IncomingMessage) -> None:
    """Both handlers of the channel run, in this order; 200 means that both ended well."""
    notes.append("first")


@routes.message("counter")
async def second_of_two(message: routes.IncomingMessage) -> None:
    notes.append("second")


@routes.message("state")
async def replicate(message: routes.IncomingMessage) -> None:
    """Pass our own proxy's message on to everyone; a copy is never copied again."""
    notes.append(f"{message.text} from {message.source}")
    if message.origin == message.bus.node_id:
        message.replicate(skip_loop_test=True)


@routes.message("trusted")
def trusted(message: routes.IncomingMessage) -> None:
    """Refuse with a code of our own; it is no failure."""
    if not message.text.startswith("signed "):
        raise routes.Refuse(403, "not signed")


@routes.request("mine")
def partition(request: routes.IncomingRequest) -> str | None:
    """Share work without a coordinator: each number belongs to one of the nodes that listen."""
    rank = request.bus.rank("mine")
    if rank is None:
        return None
    index, count = rank
    return "mine" if int(request.text) % count == index else None


@routes.request("progress")
async def several_replies(request: routes.IncomingRequest) -> None:
    """Reply as often as you want."""
    for step in ("ringing", "answered"):
        await request.reply(step)


@routes.request("dial")
def reply_later(request: routes.IncomingRequest) -> None:
    """Keep the request open after the handler has ended."""
    request.start_soon(dial, request, request.hold())


async def dial(request: routes.IncomingRequest, hold: routes.Hold) -> None:
    with hold:
        await trio.sleep(0.5)
        delivery = await request.reply("connected")
        results = await delivery  # 200: the asker took it; 404: it no longer waits
        notes.append(f"{request.origin} {int(results[request.bus.node_id])}")


@routes.request("ask.events")
async def ask_with_events(request: routes.IncomingRequest) -> str:
    """Wait for the reply as an event: the waiter is there before anything is sent."""
    bus, tag = request.bus, f"{request.bus.node_id}-{request.tag}"
    async with (
        request.events.expect("reply:received", {"tag": tag}) as waiter,
        bus.broadcast_request("whoami", "?", tag=tag, timeout=2.0, include_self=True),
    ):
        event = await waiter.get(timeout=2.0)
    return str(event.parameters["msg"])


@routes.request("whoami")
def who_am_i(request: routes.IncomingRequest) -> str:
    return request.bus.node_id


@routes.event("E_CLUSTERER_NODE_STATE_CHANGED", {"status": "not_*"})
def down(event: routes.IncomingEvent) -> None:
    """Events by name, alias (`node:state`) or wildcard (`peer:*`), with filters."""
    notes.append(f"{event.node_id} is {event.status}: {event.reason}")


@routes.on_joined
async def joined(event: routes.IncomingEvent) -> None:
    """The first other member is active. Also: raise an event of our own."""
    event.events.raise_event("E_READY", {"with": event.node_id})


@routes.event("E_READY")
def ready(event: routes.IncomingEvent) -> None:
    notes.append("ready")


@routes.on_start
def begin(agent: routes.AgentContext) -> None:
    """Before joining. Call `note` for each member that comes within the first hour."""
    agent.events.notify_on_event("peer:up", None, note, expire=3600.0)


async def note(event: routes.IncomingEvent) -> None:
    notes.append(f"up: {event.node_id}")


@routes.on_stop
async def end(agent: routes.AgentContext) -> None:
    """Before leaving: the last message to the others."""
    await agent.bus.broadcast("state", "bye")


@routes.message("bridge", via="voip")
def bridge(message: routes.IncomingMessage) -> None:
    """From one cluster into another that this agent is in as well."""
    message.replicate(to=message.cluster("lab"))
