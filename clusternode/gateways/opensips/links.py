"""The state of the link to each other node, and the pings that it asks for.

The table is that of OpenSIPS's module clusterer (4.0, `clusterer.c` and `node_info.c`), whose
timer looks at every node at each tick; here each link has its own deadline. What differs is in
docs/gateway-opensips.md, where the diagram of `TRANSITIONS` is generated.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import attrs

from clusternode.core.types import Instant, Seconds


class State(enum.Enum):
    """One link, as this node sees it; all but UP and DOWN are shown as Probe."""

    UP = "up"
    DOWN = "down"
    RESTART_PINGING = "restart_pinging"
    """To be pinged at once; every node begins here."""
    RESTARTED = "restarted"
    """Pinged for the first time."""
    RETRY_SEND_FAIL = "retry_send_fail"
    """The last ping could not be sent."""
    RETRYING = "retrying"
    """Pinged again."""


class Signal(enum.Enum):
    """What happens to a link."""

    PONG = "pong"
    """A pong in time, or a late one while other packets came."""
    PING_MISSED = "ping missed"
    """No pong in time; up: and nothing else either. After RETRY_SEND_FAIL: time to try again."""
    LAST_MISSED = "last ping missed"
    """As before, and no retries are left."""
    SEND_FAILED = "send failed"
    """The connection was refused or broke with a frame unwritten."""
    LAST_FAILED = "last send failed"
    """As before, and no retries are left."""
    DUE = "due"
    """Time for the next ping; down: node_timeout has passed."""
    CLOSED = "closed"
    """The other side closed our connection; nothing of ours was lost."""
    PINGED = "pinged"
    HEARD = "heard"
    """Any other packet, directly from it."""
    SAYS_UP = "says up"
    """It announces that its link with us is up."""
    SAYS_DOWN = "says down"


class Action(enum.Enum):
    """What a transition asks for besides."""

    NOTHING = ""
    HEARTBEAT = "ping"
    """A ping that asks for nothing."""
    PROBE = "probe"
    """A ping that asks for the known ids; all retries are there again."""
    PROBE_AGAIN = "probe again"
    """The same, with one retry less."""


Step = tuple[Action, State]

_STAY: Final = Action.NOTHING
TRANSITIONS: Final[Mapping[State, Mapping[Signal, Step]]] = {
    State.RESTART_PINGING: {
        Signal.DUE: (Action.PROBE, State.RESTARTED),
        Signal.PONG: (_STAY, State.UP),
    },
    State.RESTARTED: {
        Signal.PONG: (_STAY, State.UP),
        Signal.PING_MISSED: (Action.PROBE_AGAIN, State.RETRYING),
        Signal.LAST_MISSED: (_STAY, State.DOWN),
        Signal.SEND_FAILED: (_STAY, State.RETRY_SEND_FAIL),
        Signal.LAST_FAILED: (_STAY, State.DOWN),
    },
    State.RETRY_SEND_FAIL: {
        Signal.PONG: (_STAY, State.UP),
        Signal.PING_MISSED: (Action.PROBE_AGAIN, State.RETRYING),
        Signal.LAST_MISSED: (_STAY, State.DOWN),
    },
    State.RETRYING: {
        Signal.PONG: (_STAY, State.UP),
        Signal.PING_MISSED: (Action.PROBE_AGAIN, State.RETRYING),
        Signal.LAST_MISSED: (_STAY, State.DOWN),
        Signal.SEND_FAILED: (_STAY, State.RETRY_SEND_FAIL),
        Signal.LAST_FAILED: (_STAY, State.DOWN),
    },
    State.UP: {
        Signal.DUE: (Action.HEARTBEAT, State.UP),
        Signal.PING_MISSED: (Action.PROBE_AGAIN, State.RETRYING),
        Signal.LAST_MISSED: (_STAY, State.DOWN),
        Signal.SEND_FAILED: (_STAY, State.RESTART_PINGING),
        Signal.LAST_FAILED: (_STAY, State.RESTART_PINGING),
        Signal.SAYS_DOWN: (_STAY, State.RESTART_PINGING),
        # A process that has ended refuses the ping: seen in a round trip, not in ping_interval.
        Signal.CLOSED: (Action.HEARTBEAT, State.UP),
    },
    State.DOWN: {
        Signal.DUE: (Action.PROBE, State.RESTARTED),
        Signal.PINGED: (Action.PROBE, State.RESTARTED),
        Signal.HEARD: (_STAY, State.RESTART_PINGING),
        Signal.PONG: (_STAY, State.RESTART_PINGING),
        Signal.SAYS_UP: (_STAY, State.RESTART_PINGING),
    },
}
"""State → signal → (action, next state); a signal that is not there changes nothing."""


@attrs.frozen
class Timing:
    """The three times of the module."""

    ping_interval: Seconds
    ping_timeout: Seconds
    node_timeout: Seconds


@attrs.define
class Link:
    """What is known of the link to one node."""

    node_id: int
    retries: int
    """Its no_ping_retries."""
    state: State = State.RESTART_PINGING
    retries_left: int = 0
    is_awaited: bool = False
    """Whether the last ping has no pong yet."""
    pinged_at: Instant = -math.inf
    sent_at: Instant = -math.inf
    received_at: Instant = -math.inf
    round_trip: Seconds | None = None
    is_silenced: bool = False
    """An operator disabled the node, or us: it stays down and is not pinged."""

    @property
    def is_up(self) -> bool:
        return self.state is State.UP

    def deadline(self, timing: Timing) -> Instant:
        """Tell when the clock next asks for something."""
        if self.is_silenced:
            return math.inf
        match self.state:
            case State.RESTART_PINGING:
                return -math.inf
            case State.DOWN:
                return self.pinged_at + timing.node_timeout
            case State.UP if self.is_awaited:
                return max(self.pinged_at, self.received_at) + timing.ping_timeout
            case State.UP:
                # Traffic stands for a ping where it goes both ways: what only we send may go
                # into the void, and what only we receive does not show us to the other.
                both = min(self.sent_at, self.received_at)
                return max(self.pinged_at, both) + timing.ping_interval
            case _:
                return self.pinged_at + timing.ping_timeout

    def due(self) -> Signal:
        """Return what passing the deadline means."""
        if self.state in (State.RESTART_PINGING, State.DOWN):
            return Signal.DUE
        if self.state is State.UP:
            if not self.is_awaited:
                return Signal.DUE
            return Signal.PING_MISSED if self.retries else Signal.LAST_MISSED
        return Signal.PING_MISSED if self.retries_left else Signal.LAST_MISSED


SendPing = Callable[[int, bool], None]
"""Takes the node and whether its known ids are wanted."""
Changed = Callable[[int, bool], None]
"""Takes the node and whether its link is up now."""


class Links:
    """The links to all other nodes, by node id."""

    def __init__(self, timing: Timing, send_ping: SendPing, changed: Changed) -> None:
        self._timing = timing
        self._send_ping = send_ping
        self._changed = changed
        self._links: dict[int, Link] = {}

    def add(self, now: Instant, node_id: int, retries: int) -> None:
        """Take a node, and ping it."""
        link = self._links[node_id] = Link(node_id, retries, retries_left=retries)
        self._enter(now, link, State.RESTART_PINGING)

    def remove(self, node_id: int) -> None:
        """Forget a link; nobody is told, as nobody is to know the node any more."""
        self._links.pop(node_id, None)

    def get(self, node_id: int) -> Link | None:
        return self._links.get(node_id)

    def __iter__(self) -> Iterator[Link]:
        return iter(self._links.values())

    def up(self) -> list[int]:
        """Return the nodes whose link is up, in the order in which they became known."""
        return [link.node_id for link in self._links.values() if link.is_up]

    def is_up(self, node_id: int) -> bool:
        link = self._links.get(node_id)
        return link is not None and link.is_up

    def is_speaking(self, now: Instant, node_id: int) -> bool:
        """Tell whether a node whose link is being probed has just been heard."""
        link = self._links.get(node_id)
        if link is None or link.is_silenced or link.state is State.DOWN:
            return False
        return now - link.received_at <= self._timing.ping_timeout

    def next_deadline(self) -> Instant | None:
        deadlines = [link.deadline(self._timing) for link in self._links.values()]
        earliest = min(deadlines, default=math.inf)
        return None if earliest == math.inf else earliest

    def tick(self, now: Instant) -> None:
        """Do what the clock asks for."""
        for link in list(self._links.values()):
            if link.deadline(self._timing) <= now:
                self._step(now, link, link.due())

    def sent(self, now: Instant, node_id: int) -> None:
        """Take note that something was sent to a node directly."""
        link = self._links.get(node_id)
        if link is not None:
            link.sent_at = now

    def heard(self, now: Instant, node_id: int) -> None:
        """Take note of a packet, no ping and no pong, that came from a node directly."""
        link = self._links.get(node_id)
        if link is not None:
            link.received_at = now
            self._step(now, link, Signal.HEARD)

    def pinged(self, now: Instant, node_id: int) -> None:
        link = self._links.get(node_id)
        if link is not None:
            link.received_at = now
            self._step(now, link, Signal.PINGED)

    def ponged(self, now: Instant, node_id: int) -> None:
        """Take a pong; one that is late counts only while other packets come."""
        link = self._links.get(node_id)
        if link is None:
            return
        recent = max(link.pinged_at, link.received_at)
        if link.is_awaited:
            link.round_trip = now - link.pinged_at
        link.is_awaited = False
        link.received_at = now
        is_valid = now - recent <= self._timing.ping_timeout
        self._step(now, link, Signal.PONG if is_valid else Signal.HEARD)

    def failed(self, now: Instant, node_id: int) -> None:
        """Take note that something could not be sent to a node."""
        link = self._links.get(node_id)
        if link is not None:
            left = link.retries_left
            self._step(now, link, Signal.SEND_FAILED if left else Signal.LAST_FAILED)

    def closed(self, now: Instant, node_id: int) -> None:
        """Take note that our connection was closed from there, with nothing lost.

        It is no news while a ping is open, and one that closes again and again is not pinged for
        that more often than any other.
        """
        link = self._links.get(node_id)
        if link is not None and now - link.pinged_at >= self._timing.ping_timeout:
            self._step(now, link, Signal.CLOSED)

    def signal(self, now: Instant, node_id: int, signal: Signal) -> None:
        link = self._links.get(node_id)
        if link is not None:
            self._step(now, link, signal)

    def restart(self, now: Instant, node_id: int) -> None:
        """Begin anew with a node that was silenced."""
        link = self._links.get(node_id)
        if link is not None:
            link.is_silenced = False
            self._enter(now, link, State.RESTART_PINGING)

    def silence(self, now: Instant, node_id: int) -> None:
        """Let a link be down, and ping no more until `restart`."""
        link = self._links.get(node_id)
        if link is not None:
            link.is_silenced = True
            self._enter(now, link, State.DOWN)

    def _step(self, now: Instant, link: Link, signal: Signal) -> None:
        step = None if link.is_silenced else TRANSITIONS[link.state].get(signal)
        if step is None:
            return
        action, state = step
        if action is not Action.NOTHING:
            if action is Action.PROBE or link.is_up:
                link.retries_left = link.retries
            if action is Action.PROBE_AGAIN:
                link.retries_left -= 1
            link.pinged_at = link.sent_at = now
            link.is_awaited = True
        self._enter(now, link, state)
        if action is not Action.NOTHING:
            self._send_ping(link.node_id, action is not Action.HEARTBEAT)

    def _enter(self, now: Instant, link: Link, state: State) -> None:
        before, link.state = link.state, state
        if state is State.UP and before is not State.UP:
            link.is_awaited = False
            self._changed(link.node_id, True)
        elif before is State.UP and state is not State.UP:
            self._changed(link.node_id, False)
        if link.state is State.RESTART_PINGING:
            self._step(now, link, Signal.DUE)


def diagram() -> str:
    """Draw the table as a Mermaid state diagram, for docs/gateway-opensips.md."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.RESTART_PINGING.value}: heard of"]
    for state, row in TRANSITIONS.items():
        for signal, (action, after) in row.items():
            if after is not state:
                does = f" / {action.value}" if action.value else ""
                lines.append(f"    {state.value} --> {after.value}: {signal.value}{does}")
    return "\n".join(lines)


def table_markdown() -> str:
    """Write the table as Markdown, for docs/gateway-opensips.md; a dash changes nothing."""
    lines = ["| signal | " + " | ".join(f"`{state.value}`" for state in State) + " |"]
    lines.append("|---|" + "---|" * len(State))
    for signal in Signal:
        cells = []
        for state in State:
            step = TRANSITIONS[state].get(signal)
            does = f"{step[0].value}, " if step is not None and step[0].value else ""
            cells.append("–" if step is None else f"{does}`{step[1].value}`")
        lines.append(f"| {signal.value} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
