"""The capabilities of all nodes: ours with their data or scripts, and what others announced.

Packets reach only what was registered here. OpenSIPS sends a module's packets to every node, with
or without the module (trap 9 in docs/gateway-opensips.md), so others are counted and forgotten.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import attrs

from clusternode.core.sip_events import PacketReceived
from clusternode.core.types import Instant
from clusternode.errors import ConfigError
from clusternode.gateways.opensips.codec import CAPABILITIES_MAX, NODES_MAX
from clusternode.gateways.opensips.fields import NAME_LENGTH_MAX, printable
from clusternode.gateways.opensips.messages import (
    EXTRA,
    INTERNAL,
    CapabilityUpdate,
    ModulePacket,
    NodeCapabilities,
    Sync,
    SyncEnd,
    SyncRequest,
)
from clusternode.gateways.opensips.parts import Surroundings
from clusternode.gateways.opensips.sync import Data, Donor, Receiver, State, SyncSettings

COUNTERS: Final[tuple[str, ...]] = ("packets_unregistered", "packets_disabled")

CapabilityPacket: TypeAlias = CapabilityUpdate | ModulePacket | SyncRequest | Sync | SyncEnd


@attrs.define
class _Own:
    """One of ours."""

    data: Data | None = None
    """None for a script's."""
    receiver: Receiver | None = None
    donor: Donor | None = None
    is_synced: bool = False
    """What is announced."""
    is_enabled: bool = True


@attrs.frozen
class _Announced:
    is_synced: bool
    is_first_hand: bool
    """Whether the node has said so itself, and not another of it."""


class Capabilities:
    """Announces ours, keeps those of others, and hands packets to what they are for."""

    def __init__(self, around: Surroundings, settings: SyncSettings) -> None:
        self._around = around
        self._settings = settings
        self._own: dict[str, _Own] = {}  # capability → what it has here
        self._states: dict[int, dict[str, _Announced]] = {}  # node → capability → what was said

    # --- ours ---------------------------------------------------------------------------------

    def register(self, data: Data) -> None:
        """Take a capability with data, which is synced after `start` and given to who asks.

        Raises:
            ConfigError: There are too many, or the name cannot be one.
        """
        name = data.name
        self._check_name(name)
        receiver = Receiver(
            self._around,
            data,
            self._settings,
            lambda is_synced: self._announce(name, is_synced=is_synced),
        )
        donor = Donor(self._around, data, self._settings)
        self._own[name] = _Own(data, receiver, donor)

    def register_script(self, name: str) -> None:
        """Take a capability for scripts: each packet is an event `E_OPENSIPS_PACKET`.

        It is announced as not synced, so that no node asks us for data that we do not have.

        Raises:
            ConfigError: There are too many, or the name cannot be one.
        """
        if name in self._own:
            return
        self._check_name(name)
        self._own[name] = _Own()
        self._announce(name, is_synced=False)

    def _check_name(self, name: str) -> None:
        is_free = name not in (INTERNAL, EXTRA) and name not in self._own
        if not is_free or not 1 <= len(name.encode()) <= NAME_LENGTH_MAX:
            raise ConfigError("capability", name, "a name that is not in use")
        if len(self._own) >= CAPABILITIES_MAX:
            raise ConfigError("capability", name, f"at most {CAPABILITIES_MAX} capabilities")

    def start(self) -> None:
        """Announce ours, and ask for the data of those that have some."""
        for name, own in self._own.items():
            if own.receiver is not None:
                own.receiver.begin()
            else:
                self._announce(name, is_synced=own.is_synced)

    def resync(self, name: str) -> None:
        """Ask for all data again.

        Raises:
            ConfigError: It is none of ours, is disabled, or has no data.
        """
        own = self._find(name)
        if own.receiver is None or not own.is_enabled:
            raise ConfigError("capability", name, "an enabled capability with data")
        own.receiver.begin()

    def set_enabled(self, name: str, is_enabled: bool) -> None:
        """Switch one of ours off or on (clusterer:set_cap_status).

        Off, its packets are counted and forgotten, and it is announced as not synced. On again, it
        is synced anew before it says that it is; OpenSIPS says so at once.

        Raises:
            ConfigError: It is none of ours.
        """
        own = self._find(name)
        if own.is_enabled == is_enabled:
            return
        own.is_enabled = is_enabled
        if own.receiver is None or own.donor is None:
            return
        if is_enabled:
            own.receiver.begin()
            return
        own.receiver.stop()
        own.donor.stop()
        self._announce(name, is_synced=False)

    def _find(self, name: str) -> _Own:
        own = self._own.get(name)
        if own is None:
            raise ConfigError("capability", name, "a capability of this node")
        return own

    def _announce(self, name: str, *, is_synced: bool) -> None:
        self._own[name].is_synced = is_synced
        self._around.announce_capability(name, is_synced=is_synced)

    def sync_state(self, name: str) -> State | None:
        """Tell where the sync of one of ours is; None for others and those of scripts."""
        own = self._own.get(name)
        return None if own is None or own.receiver is None else own.receiver.state

    def is_enabled(self, name: str) -> bool:
        return name in self._own and self._own[name].is_enabled

    def send(
        self, name: str, type_: int, version: int, body: bytes, destination: int | None = None
    ) -> int:
        """Send a packet of a capability to one node, or to all others.

        Returns:
            To how many it is on its way.

        Raises:
            ConfigError: The name cannot be that of a module.
        """
        if name in (INTERNAL, EXTRA) or not 1 <= len(name.encode()) <= NAME_LENGTH_MAX:
            raise ConfigError("capability", name, "the name of a module's capability")
        to = self._around.others() if destination is None else (destination,)
        trailer, send = self._around.trailer, self._around.send
        return sum(send(ModulePacket(trailer(node), name, version, type_, body)) for node in to)

    def incomplete(self, name: str) -> None:
        """Say that our copy lacks something, so that nobody takes it for the whole."""
        own = self._own[name]
        if own.is_synced and own.donor is not None:
            own.donor.stop()
            self._announce(name, is_synced=False)

    def changed_here(self, packet: ModulePacket) -> None:
        """Take note of a change that our own data has made, and has told the others."""
        own = self._own[packet.capability]
        if own.receiver is not None:
            own.receiver.changed_here(packet)

    # --- everybody's --------------------------------------------------------------------------

    @property
    def ours(self) -> NodeCapabilities:
        pairs = [(name, own.is_synced) for name, own in self._own.items()]
        return NodeCapabilities(self._around.node_id, tuple(pairs))

    def all(self) -> tuple[NodeCapabilities, ...]:
        """Return what each node has: ours first, then the others by id, none without any."""
        nodes = [self.ours]
        for node_id, states in sorted(self._states.items()):
            pairs = [(name, announced.is_synced) for name, announced in states.items()]
            nodes += [NodeCapabilities(node_id, tuple(pairs))]
        return tuple(node for node in nodes if node.capabilities)

    def state(self, node_id: int, name: str) -> bool | None:
        """Tell what a node announced: synced, not synced, or None when it lacks it."""
        if node_id == self._around.node_id:
            own = self._own.get(name)
            return None if own is None else own.is_synced
        announced = self._states.get(node_id, {}).get(name)
        return None if announced is None else announced.is_synced

    def forget(self, node_id: int) -> None:
        """Forget a node that was removed."""
        self._states.pop(node_id, None)
        self.node_down(node_id)

    # --- what happens -------------------------------------------------------------------------

    def received(self, packet: CapabilityPacket) -> None:
        """Take a packet that is for us and is new."""
        match packet:
            case CapabilityUpdate():
                self._update_received(packet)
            case ModulePacket():
                self._module_packet(packet)
            case SyncRequest():
                own = self._own.get(packet.capability)
                if own is None or own.donor is None or not own.is_synced:
                    self._around.count("sync_requests_refused")
                else:
                    own.donor.requested(packet.trailer.source)
            case Sync() | SyncEnd():
                own = self._own.get(packet.capability)
                if own is None or own.receiver is None:
                    self._around.count("sync_packets_unexpected")
                elif isinstance(packet, Sync):
                    own.receiver.sync_received(packet)
                else:
                    own.receiver.sync_ended(packet)

    def _update_received(self, update: CapabilityUpdate) -> None:
        for node in update.nodes:
            if node.node_id == self._around.node_id:
                continue
            if node.node_id not in self._states and len(self._states) >= NODES_MAX:
                continue
            is_first_hand = node.node_id == update.source
            for name, is_synced in node.capabilities:
                self._take_state(node.node_id, name, is_synced, is_first_hand=is_first_hand)

    def _take_state(self, node_id: int, name: str, is_synced: bool, *, is_first_hand: bool) -> None:
        """Keep what was said of a node; what it says itself is not changed by others."""
        states = self._states.setdefault(node_id, {})
        known = states.get(name)
        if known is None and len(states) >= CAPABILITIES_MAX:
            return
        if known is not None and known.is_first_hand and not is_first_hand:
            return
        states[name] = _Announced(is_synced, is_first_hand)
        own = self._own.get(name)
        if own is not None and own.receiver is not None:
            own.receiver.capability_changed(node_id, is_synced)

    def _module_packet(self, packet: ModulePacket) -> None:
        own = self._own.get(packet.capability)
        if own is None:
            self._around.count("packets_unregistered")
        elif not own.is_enabled:
            self._around.count("packets_disabled")
        elif own.receiver is not None:
            own.receiver.changed(packet)
        else:
            self._around.raise_event(
                PacketReceived(
                    self._around.cluster_name,
                    str(packet.trailer.source),
                    printable(packet.capability),
                    packet.type,
                    packet.version,
                    packet.body,
                )
            )

    def node_up(self, node_id: int) -> None:
        for own in self._own.values():
            if own.receiver is not None:
                own.receiver.node_up(node_id)

    def node_down(self, node_id: int) -> None:
        for own in self._own.values():
            if own.receiver is not None and own.donor is not None:
                own.receiver.node_down(node_id)
                own.donor.stop(node_id)

    def tick(self) -> None:
        for own in self._own.values():
            if own.receiver is not None and own.donor is not None:
                own.receiver.tick()
                own.donor.tick()

    def next_deadline(self) -> Instant | None:
        instants = [
            part.next_deadline()
            for own in self._own.values()
            for part in (own.receiver, own.donor)
            if part is not None
        ]
        return min((instant for instant in instants if instant is not None), default=None)
