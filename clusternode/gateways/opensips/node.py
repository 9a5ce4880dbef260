"""One node of an OpenSIPS cluster, sans-IO: frames, time and wishes in, effects out.

Specified in docs/gateway-opensips.md; facts about OpenSIPS from its modules clusterer and
proto_bin, 3.3 to 4.0. Every public method that changes something returns the effects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from clusternode.core.events import Event
from clusternode.core.types import Instant
from clusternode.errors import RemoteProtocolError
from clusternode.gateways.opensips import messages
from clusternode.gateways.opensips.cache import Cache
from clusternode.gateways.opensips.capabilities import Capabilities
from clusternode.gateways.opensips.channels import Channels
from clusternode.gateways.opensips.codec import (
    BridgeRefused,
    decode_untrusted,
    route_of_untrusted,
)
from clusternode.gateways.opensips.commands import Commands
from clusternode.gateways.opensips.contacts import Contacts
from clusternode.gateways.opensips.context import Context
from clusternode.gateways.opensips.effects import Effect
from clusternode.gateways.opensips.generic import Conversations
from clusternode.gateways.opensips.membership import Membership
from clusternode.gateways.opensips.messages import (
    Command,
    Generic,
    ModulePacket,
    RemoveNode,
    Routed,
    SharingTagActive,
    Sync,
    SyncEnd,
    SyncRequest,
    Trailer,
)
from clusternode.gateways.opensips.outbox import Connection
from clusternode.gateways.opensips.routing import Router
from clusternode.gateways.opensips.settings import OpenSipsSettings
from clusternode.gateways.opensips.sync import SyncSettings
from clusternode.gateways.opensips.tags import SharingTags


class Timed(Protocol):
    """A part with deadlines."""

    def next_deadline(self) -> Instant | None: ...
    def tick(self) -> None: ...


class OpenSipsNode:
    """A full member of one cluster; also what `parts.Surroundings` says."""

    def __init__(self, cluster: str, settings: OpenSipsSettings, now: Instant) -> None:
        self.context = Context(cluster, settings, now)
        self.is_leaving = False
        sync = SyncSettings(
            settings.sync_timeout,
            settings.sync_packet_size,
            settings.my_node_info.is_seed,
            settings.seed_fallback_interval,
        )
        self.capabilities = Capabilities(self, sync)
        self.membership = Membership(self.context, self.capabilities, self._node_changed)
        self.router = Router(self.context, self.membership)
        self.scripts = Conversations(self.context, self.others, self.router.send)
        self.cache = self.contacts = None
        if settings.cache_collections:
            self.cache = Cache(self, self.capabilities, settings.cache_collections)
        if settings.usrloc:
            self.contacts = Contacts(self, self.capabilities)
        for name in settings.capabilities:
            self.capabilities.register_script(name)
        self.tags = SharingTags(self, dict(settings.sharing_tags))
        self.commands = Commands(self, settings.mi_allow)
        self.channels = Channels(
            self.context, self.others, self.router.send, self.cache, self.contacts
        )

    # --- time and the network -------------------------------------------------------------------

    def start(self, now: Instant) -> list[Effect]:
        """Begin to join. To be called once, before anything else."""
        self.context.now = now
        self.membership.start()
        self.capabilities.start()
        self.tags.start()
        return self._take()

    def next_deadline(self) -> Instant | None:
        """Tell when `tick` is due."""
        deadlines = [part.next_deadline() for part in self._parts()]
        return min((each for each in deadlines if each is not None), default=None)

    def tick(self, now: Instant) -> list[Effect]:
        """Do what the clock asks for."""
        self.context.now = now
        if not self.is_leaving:
            for part in self._parts():
                part.tick()
        return self._take()

    def _parts(self) -> Iterator[Timed]:
        """Yield everything that has deadlines."""
        yield from (self.membership, self.scripts, self.capabilities, self.tags)
        yield from (part for part in (self.cache, self.contacts) if part is not None)

    def accepted(self, now: Instant, connection: int, host: str, port: int) -> list[Effect]:
        """Take a connection that somebody has opened; its number is below 0."""
        self.context.now = now
        self.membership.outbox.accepted(connection, host, port)
        return self._take()

    def refused(self, now: Instant, host: str, reason: str) -> list[Effect]:
        """Take note that a connection was closed because of who opened it, or how many did."""
        self.context.now = now
        self.context.complain("strangers_closed", None, host, reason)
        return self._take()

    def connected(self, now: Instant, connection: int) -> list[Effect]:
        """Take note that a dial has succeeded."""
        self.context.now = now
        self.membership.outbox.connected(connection)
        return self._take()

    def closed(self, now: Instant, connection: int) -> list[Effect]:
        """Take note that a connection has ended, or that a dial came to nothing."""
        self.context.now = now
        self.membership.closed(connection)
        return self._take()

    def written(self, now: Instant, connection: int, urgent: int, data: int) -> list[Effect]:
        """Take note that so many frames of each kind have gone to the kernel."""
        self.context.now = now
        self.membership.outbox.written(now, connection, urgent, data)
        return self._take()

    def resolved(self, now: Instant, host: str, addresses: Sequence[str]) -> list[Effect]:
        """Take the answer to `Resolve`, best first; none where the name has none."""
        self.context.now = now
        self.membership.resolved(host, addresses)
        return self._take()

    def received(self, now: Instant, connection: int, frame: bytes) -> list[Effect]:
        """Take one whole frame. Nothing in it can raise."""
        self.context.now = now
        self.context.count("received")
        known = self.membership.outbox.get(connection)
        if known is None or self.is_leaving or not self.membership.is_enabled:
            return self._take()
        try:
            trailer = route_of_untrusted(frame)
            if trailer is None:
                packet = decode_untrusted(frame)
                assert isinstance(packet, messages.Topology)
                if packet.cluster_id == self.context.cluster_id:
                    self.membership.receive(packet, known)
                else:
                    self.context.count("foreign")
            else:
                self._routed(frame, trailer, known)
        except BridgeRefused as error:
            self.context.complain("bridged", None, known.host, str(error))
        except RemoteProtocolError as error:
            self.context.complain("malformed", known.node_id, known.host, str(error))
        return self._take()

    def misframed(self, now: Instant, connection: int, reason: str) -> list[Effect]:
        """Take note that no frame can follow on a connection, which ends for that."""
        self.context.now = now
        known = self.membership.outbox.get(connection)
        if known is not None:
            self.context.complain("malformed", known.node_id, known.host, reason)
        return self._take()

    def leave(self, now: Instant) -> list[Effect]:
        """Say goodbye; nothing is answered any more."""
        self.context.now = now
        self.membership.voice.goodbye()
        self.is_leaving = True
        return self._take()

    def perform(self, now: Instant, action: Callable[[], object]) -> list[Effect]:
        """Let a part do something and return what it asks for."""
        self.context.now = now
        action()
        return self._take()

    def _take(self) -> list[Effect]:
        self.membership.settle()
        return self.context.take()

    # --- packets of others ----------------------------------------------------------------------

    def _routed(self, frame: bytes, trailer: Trailer, connection: Connection) -> None:
        """Take or pass on a packet with a trailer."""
        context, source = self.context, trailer.source
        if trailer.cluster_id != context.cluster_id:
            context.count("foreign")
            return
        if source == context.own_id:
            context.count("loops")
            return
        if not self.membership.is_from_member(source, connection):
            return
        if connection.node_id is not None:
            self.membership.links.heard(context.now, connection.node_id)
        if trailer.destination != context.own_id:
            self.router.forward(frame, trailer, connection)
            return
        packet = decode_untrusted(frame)
        match packet:
            case Generic():
                self.scripts.received(packet)
            case RemoveNode():
                self._removed(packet)
            case SyncRequest() | Sync() | SyncEnd():
                self.capabilities.received(packet)
            case ModulePacket():
                self.capabilities.received(packet)
                self.channels.received(packet)
            case Command():
                self.commands.received(packet)
            case SharingTagActive():
                self.tags.received(packet)
            case _:
                raise AssertionError("a topology packet has no trailer")

    def _removed(self, packet: RemoveNode) -> None:
        by = f"removed by node {packet.trailer.source}"
        if packet.node_id == self.context.own_id:
            self.membership.set_enabled(packet.node_id, is_enabled=False, reason=by)
        else:
            self._forget(packet.node_id, by)

    def _node_changed(self, node_id: int, is_up: bool) -> None:
        """Tell the parts who can be reached."""
        for part in (self.capabilities, self.tags):
            if is_up:
                part.node_up(node_id)
            else:
                part.node_down(node_id)

    # --- what parts see (parts.Surroundings) ----------------------------------------------------

    @property
    def cluster_name(self) -> str:
        return self.context.cluster

    @property
    def node_id(self) -> int:
        return self.context.own_id

    @property
    def now(self) -> Instant:
        return self.context.now

    @property
    def unix_now(self) -> int:
        return self.context.unix_now

    def trailer(self, destination: int) -> Trailer:
        return Trailer(self.context.cluster_id, self.context.own_id, destination)

    def others(self) -> Sequence[int]:
        return self.membership.topology.enabled()

    def is_reachable(self, node_id: int) -> bool:
        return self.membership.is_reachable(node_id)

    def send(self, packet: Routed) -> bool:
        return self.router.send(packet, self.channels.on_end(packet.trailer.destination))

    def raise_event(self, event: Event) -> None:
        self.context.raise_event(event)

    def announce_capability(self, name: str, *, is_synced: bool) -> None:
        self.membership.voice.capability(name, is_synced=is_synced)

    def capability_state(self, node_id: int, name: str) -> bool | None:
        return self.capabilities.state(node_id, name)

    def count(self, counter: str, by: int = 1) -> None:
        self.context.count(counter, by)

    # --- what operators want --------------------------------------------------------------------

    def remove(self, node_id: int) -> bool:
        """Take a node out of the cluster, everywhere; False where it is not known."""
        if self.membership.topology.get(node_id) is None:
            return False
        # The node itself first: where it is reached through another, that one still knows it then.
        for each in sorted(self.others(), key=lambda other: other != node_id):
            self.send(RemoveNode(self.trailer(each), node_id))
        return self._forget(node_id, "removed by an operator")

    def _forget(self, node_id: int, reason: str) -> bool:
        if not self.membership.remove(node_id, reason):
            return False
        self.tags.forget(node_id)
        return True
