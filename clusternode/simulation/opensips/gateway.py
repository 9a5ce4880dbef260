"""A node of our gateway on the machine of a simulated world, as the service runs it on real TCP."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from clusternode.core.types import Instant
from clusternode.errors import RemoteProtocolError
from clusternode.gateways.opensips import effects
from clusternode.gateways.opensips.codec import FrameReader
from clusternode.gateways.opensips.effects import Effect
from clusternode.gateways.opensips.node import OpenSipsNode
from clusternode.gateways.opensips.settings import OpenSipsSettings
from clusternode.simulation.opensips.transport import HostPort, Machine

Listener = Callable[[Effect], None]
"""Gets every effect that is not about connections."""


def ignore(effect: Effect) -> None:
    """Listen to nothing."""
    del effect


class GatewayHost:
    """Does what the gateway's network and service do: connections, framing, timers."""

    def __init__(
        self, settings: OpenSipsSettings, machine: Machine, listener: Listener = ignore
    ) -> None:
        self.node = OpenSipsNode("opensips", settings, machine.now)
        self.node.context.unix_offset = machine.unix_now - machine.now
        self.closed_for: list[str] = []
        """Why we closed connections, oldest first."""
        self.listener = listener
        self._machine = machine
        self._readers: dict[int, FrameReader] = {}
        self._waiting: dict[int, deque[effects.Send]] = {}  # of connections that are being dialled

    def start(self) -> None:
        self._carry(self.node.start(self._machine.now))

    def act(self, action: Callable[[], object]) -> None:
        """Let some part of the node do something."""
        self._carry(self.node.perform(self._machine.now, action))

    def next_deadline(self) -> Instant | None:
        return self.node.next_deadline()

    def tick(self) -> None:
        self._carry(self.node.tick(self._machine.now))

    def accepted(self, connection: int, remote: HostPort) -> None:
        """Take a connection that somebody made to us; its number is negative."""
        self._readers[connection] = FrameReader()
        self._carry(self.node.accepted(self._machine.now, connection, *remote))

    def connected(self, connection: int) -> None:
        if connection not in self._readers:
            return
        waiting = self._waiting.pop(connection, deque())
        self._carry(self.node.connected(self._machine.now, connection))
        for send in waiting:
            self._write(send)

    def closed(self, connection: int) -> None:
        if self._readers.pop(connection, None) is not None:
            self._waiting.pop(connection, None)
            self._carry(self.node.closed(self._machine.now, connection))

    def read(self, connection: int, data: bytes) -> None:
        reader = self._readers.get(connection)
        if reader is None:
            return
        try:
            for frame in reader.receive_data_untrusted(data):
                self._carry(self.node.received(self._machine.now, connection, frame))
            reader.receive_data_untrusted(b"")  # raises where a bad frame follows the good
        except RemoteProtocolError as error:
            self.closed_for.append(str(error))
            self._machine.close(connection)
            self.closed(connection)

    def _carry(self, wanted: list[Effect]) -> None:
        for effect in wanted:
            match effect:
                case effects.Dial():
                    self._readers[effect.connection] = FrameReader()
                    self._waiting[effect.connection] = deque()
                    self._machine.dial(effect.connection, effect.host, effect.port)
                case effects.Send() if effect.connection in self._waiting:
                    self._waiting[effect.connection].append(effect)
                case effects.Send():
                    self._write(effect)
                case effects.Close():
                    self._readers.pop(effect.connection, None)
                    self._waiting.pop(effect.connection, None)
                    self._machine.close(effect.connection)
                case effects.Resolve():
                    self._carry(self.node.resolved(self._machine.now, effect.host, ()))
                case _:
                    self.listener(effect)

    def _write(self, send: effects.Send) -> None:
        if send.connection not in self._readers:
            return
        self._machine.write(send.connection, send.frame)
        urgent = int(send.is_urgent)
        now = self._machine.now
        self._carry(self.node.written(now, send.connection, urgent, 1 - urgent))
