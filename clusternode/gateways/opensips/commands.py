"""Management commands of OpenSIPS (MI) between nodes: both ways, and off unless listed; sans-IO.

A node has no MI of OpenSIPS: what an allowed command means is for event routes to say, which get it
as `E_OPENSIPS_MI_COMMAND`. The protocol sends no result back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from clusternode.core.sip_events import CommandReceived
from clusternode.errors import BodyTooLarge, ConfigError
from clusternode.gateways.opensips.codec import FRAME_SIZE_MAX, PARAMETERS_MAX, encode
from clusternode.gateways.opensips.fields import NAME_LENGTH_MAX, printable
from clusternode.gateways.opensips.messages import Command
from clusternode.gateways.opensips.parts import Surroundings

COUNTERS: Final[tuple[str, ...]] = ("commands_received", "commands_refused")


class Commands:
    """Lets in what the configuration allows, and sends what we are told to."""

    def __init__(self, around: Surroundings, allowed: Sequence[str]) -> None:
        self._around = around
        self._allowed = dict.fromkeys(allowed)  # names of commands, as a node sends them

    def received(self, packet: Command) -> None:
        """Raise the event of a command that is allowed; count any other."""
        if packet.name not in self._allowed:
            self._around.count("commands_refused")
            return
        self._around.count("commands_received")
        self._around.raise_event(
            CommandReceived(
                self._around.cluster_name,
                str(packet.trailer.source),
                packet.name,
                tuple(map(printable, packet.parameters)),
            )
        )

    def send(self, node_id: int, name: str, parameters: Sequence[str] = ()) -> bool:
        """Have a node run a command (clusterer:send_mi).

        Returns:
            Whether it is on its way; there is no result.

        Raises:
            ConfigError: The name is empty or too long, or there are too many parameters.
            BodyTooLarge: It does not fit into one packet.
            LocalProtocolError: A text cannot be written.
        """
        return self._around.send(self._make(node_id, name, parameters))

    def broadcast(self, name: str, parameters: Sequence[str] = ()) -> int:
        """Have all other nodes run a command (clusterer:broadcast_mi).

        Returns:
            To how many it is on its way.

        Raises:
            ConfigError: The name is empty or too long, or there are too many parameters.
            BodyTooLarge: It does not fit into one packet.
            LocalProtocolError: A text cannot be written.
        """
        packets = [self._make(node_id, name, parameters) for node_id in self._around.others()]
        return sum(self._around.send(packet) for packet in packets)

    def _make(self, node_id: int, name: str, parameters: Sequence[str]) -> Command:
        if not 1 <= len(name.encode("utf-8", "surrogateescape")) <= NAME_LENGTH_MAX:
            raise ConfigError("command", name[:64], f"1 to {NAME_LENGTH_MAX} bytes")
        if len(parameters) > PARAMETERS_MAX:
            raise ConfigError("parameters", len(parameters), f"at most {PARAMETERS_MAX}")
        if sum(map(len, parameters)) > FRAME_SIZE_MAX:
            raise BodyTooLarge(f"parameters of more than {FRAME_SIZE_MAX} bytes")
        packet = Command(self._around.trailer(node_id), name, tuple(parameters))
        encode(packet)
        return packet
