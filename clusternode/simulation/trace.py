"""The digest of a run: two runs with the same digest did the same things in the same order.

One line per instant, and one per input of any node: node, kind and what is salient about it.
Effects need no line of their own, since each leads to an input or is noted by the world.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from clusternode.core import inputs
from clusternode.core.inputs import Input
from clusternode.core.types import ConnectionId, Instant, NodeId
from clusternode.core.wire.messages import Ping, Pong, WireMessage
from clusternode.recording.trace import Recorder

LINES_BEFORE_HASHING = 4096  # one call of the hash for many lines is several times cheaper
DIGEST_SIZE_BYTES = 16  # enough to tell runs apart; short enough to print


class Trace:
    """Hashes what happens, and keeps the lines where a test wants to read them."""

    def __init__(self, *, keep: bool = False, recorder: Recorder | None = None) -> None:
        self.kept: list[str] = []
        self.recorder = recorder
        """Who writes down what one of the nodes is told, if anyone does."""
        self._keep = keep
        self._lines: list[str] = []
        self._now: Instant | None = None  # what the last line of time says
        self._hash = hashlib.blake2b(digest_size=DIGEST_SIZE_BYTES)

    def input(self, now: Instant, node_id: NodeId, input_: Input) -> None:
        """Take one input of one node."""
        kind = type(input_)
        describe = _SALIENT.get(kind)
        salient = describe(input_) if describe is not None else ""
        if now != self._now:
            self._note_time(now)
        self._lines.append(f"{node_id} {kind.__name__} {salient}")

    def frames(
        self, now: Instant, node_id: NodeId, connection: ConnectionId, messages: list[WireMessage]
    ) -> None:
        """Take frames that came without a fault."""
        if now != self._now:
            self._note_time(now)
        what = _message(messages[0]) if len(messages) == 1 else ",".join(map(_message, messages))
        self._lines.append(f"{node_id} {connection} {what}")

    def _note_time(self, now: Instant) -> None:
        """Note the time, which is done once for all that is told of an instant."""
        self._now = now
        self.note(repr(now))

    def pongs(
        self, now: Instant, node_id: NodeId, connections: Sequence[ConnectionId], pong: Pong
    ) -> None:
        """Take pongs that came without a fault: who has answered says who was asked, too."""
        if now != self._now:
            self._note_time(now)
        self._lines.append(f"{node_id} {pong.number} {connections}")

    def note(self, line: str) -> None:
        """Take anything else that two equal runs must share."""
        self._lines.append(line)
        if len(self._lines) >= LINES_BEFORE_HASHING:
            self._flush()

    def digest(self) -> str:
        self._flush()
        return self._hash.copy().hexdigest()

    def _flush(self) -> None:
        if self._lines:
            self._hash.update("\n".join(self._lines).encode())
            self._hash.update(b"\n")
            if self._keep:
                self.kept += self._lines
            self._lines.clear()


def _message(message: WireMessage) -> str:
    kind = type(message)
    if kind is Ping or kind is Pong:
        return f"{kind.TYPE}.{message.number}"  # type: ignore[union-attr]  # kind says so
    return f"{kind.TYPE}."


def _frames(input_: inputs.FramesReceived) -> str:
    messages = input_.messages
    if len(messages) == 1:
        return f"{input_.connection} {_message(messages[0])}"
    return f"{input_.connection} {','.join(map(_message, messages))}"


# Any: each function takes one class of the union, which a mapping cannot say.
_SALIENT: dict[type[Any], Callable[[Any], str]] = {
    inputs.Start: lambda i: ",".join(member.node_id for member in i.known_members),
    inputs.Connected: lambda i: f"{i.connection} {i.hello.node_id} {i.dialed}",
    inputs.DialFailed: lambda i: f"{i.address} {i.failure.value} {i.close_reason}",
    inputs.FramesReceived: _frames,
    inputs.WriteReady: lambda i: str(i.connection),
    inputs.Measured: lambda i: f"{i.connection} {i.arrived_bytes} {i.received_bytes}",
    inputs.Disconnected: lambda i: str(i.connection),
    inputs.Resolved: lambda i: f"{i.name} {len(i.addresses)} {i.error}",
    inputs.Publish: lambda i: f"{i.delivery} {i.channel}",
    inputs.Ask: lambda i: f"{i.request} {i.channel}",
    inputs.CancelRequest: lambda i: str(i.request),
    inputs.Answer: lambda i: f"{i.delivery} {i.node_id}",
    inputs.Handled: lambda i: i.origin + ",".join(f"{p}.{int(code)}" for p, code in i.results),
    inputs.RemoveMember: lambda i: i.node_id,
    inputs.AddMember: lambda i: str(i.address),
    inputs.ChangeStatus: lambda i: f"{i.node_id} {i.status}",
    inputs.Lagged: lambda i: repr(i.seconds),
}
