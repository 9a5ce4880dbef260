"""Capabilities as channels: packets of modules as messages for routes, and back.

The channel of cachedb_local and that of usrloc carry JSON (`typed`). Those of scripts carry the
bytes of the packet, with its type and version as parameters of the content type.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeAlias

from clusternode.core.types import ChannelName, DeliveryId, NodeId, ResultCode, is_name
from clusternode.core.wire.messages import Message
from clusternode.errors import BodyTooLarge, ConfigError, Overloaded, RemoteProtocolError
from clusternode.gateways.opensips import effects
from clusternode.gateways.opensips.cache import Cache
from clusternode.gateways.opensips.contacts import Contacts
from clusternode.gateways.opensips.context import Context
from clusternode.gateways.opensips.generic import Route
from clusternode.gateways.opensips.messages import CACHE, CONTACTS, ModulePacket, Trailer
from clusternode.gateways.opensips.pacing import OnEnd
from clusternode.gateways.opensips.replication import (
    cache_packet,
    location_packet,
    read_cache_untrusted,
    read_location_untrusted,
)
from clusternode.gateways.opensips.typed import (
    cache_form,
    location_form,
    read_cache_form_untrusted,
    read_location_form_untrusted,
)

JSON: Final = "application/json"
PACKET: Final = "application/x-opensips-packet"
"""Content type of a script's capability, with `;type=N;version=N`."""
_PACKET = re.compile(
    r"application/[a-z-]+(?:;\s*type=(-?[0-9]{1,9}))?(?:;\s*version=([0-9]{1,5}))?"
)

Others: TypeAlias = Callable[[], Sequence[int]]


class Channels:
    """Translates between module packets and messages."""

    def __init__(
        self,
        context: Context,
        others: Others,
        route: Route,
        cache: Cache | None,
        contacts: Contacts | None,
    ) -> None:
        self.heard: Sequence[str] = ()
        """The channels that routes listen to."""
        self._context = context
        self._others = others
        self._route = route
        self._cache = cache
        self._contacts = contacts
        self._messages = 0
        self._settle: Callable[[int], OnEnd] | None = None  # while a change of ours goes out

    def is_known(self, name: str) -> bool:
        return name in (CACHE, CONTACTS) or name in self._context.settings.capabilities

    # --- theirs ---------------------------------------------------------------------------------

    def received(self, packet: ModulePacket) -> None:
        """Hand a packet to the routes of its channel, where there are any."""
        name = packet.capability
        if name not in self.heard or not is_name(name):
            return
        try:
            content_type, body = _message_of(packet)
        except RemoteProtocolError:  # `Capabilities` counts it, where the capability is ours
            self._context.count("channel_packets_refused")
            return
        self._messages += 1
        message = Message(ChannelName(name), content_type, body, self._messages)
        origin = NodeId(str(packet.trailer.source))
        self._context.effects.append(effects.Arrived(origin, (message,)))

    # --- ours -----------------------------------------------------------------------------------

    def make(self, channel: str, body: bytes, content_type: str, destination: int) -> ModulePacket:
        """Make the packet of a message for one node.

        Raises:
            ConfigError: It is no channel of this cluster, or the body is none of it.
        """
        trailer = Trailer(self._context.cluster_id, self._context.own_id, destination)
        try:
            if channel == CACHE:
                return cache_packet(trailer, read_cache_form_untrusted(body))
            if channel == CONTACTS:
                return location_packet(trailer, read_location_form_untrusted(body))
        except RemoteProtocolError as error:
            raise ConfigError("body", body[:80], f"the JSON form of a change ({error})") from None
        if not self.is_known(channel):
            known = ["generic", CACHE, CONTACTS, *self._context.settings.capabilities]
            raise ConfigError("channel", channel, "one of " + ", ".join(known))
        found = _PACKET.fullmatch(content_type)
        type_, version = (int(each or 1) for each in found.groups()) if found else (1, 1)
        return ModulePacket(trailer, channel, version, type_, body)

    def publish(
        self,
        delivery: DeliveryId,
        channel: str,
        body: bytes,
        content_type: str,
        destinations: Sequence[NodeId] | None,
        excluded: Sequence[str],
    ) -> None:
        """Send a message that `make` has accepted; to all it also changes what we keep."""
        node_ids = [each for each in self._others() if str(each) not in excluded]
        if destinations is not None:
            node_ids = [int(each) for each in destinations if each.isdecimal()]
        self._context.effects.append(effects.Destined(delivery, len(node_ids)))

        def settle(node_id: int) -> OnEnd:
            return partial(self._settled, delivery, NodeId(str(node_id)))

        if destinations is None and not excluded and self._is_kept(channel, body):
            self._settle = settle
            try:
                self._change(channel, body)
            except (BodyTooLarge, Overloaded) as error:
                is_large = isinstance(error, BodyTooLarge)
                for node_id in node_ids:
                    settle(node_id)(ResultCode.TOO_LARGE if is_large else ResultCode.BUSY)
            finally:
                self._settle = None
            return
        for node_id in node_ids:
            self._route(self.make(channel, body, content_type, node_id), settle(node_id))

    def _settled(self, delivery: DeliveryId, node_id: NodeId, code: ResultCode) -> None:
        self._context.effects.append(effects.Settled(delivery, node_id, code))

    def _is_kept(self, channel: str, body: bytes) -> bool:
        if channel == CONTACTS:
            return self._contacts is not None
        if channel != CACHE or self._cache is None:
            return False
        return read_cache_form_untrusted(body).collection in self._cache.collections

    def _change(self, channel: str, body: bytes) -> None:
        if channel == CACHE:
            assert self._cache is not None, "asked before"
            self._cache.write(read_cache_form_untrusted(body))
        else:
            assert self._contacts is not None, "asked before"
            self._contacts.publish(read_location_form_untrusted(body))

    def on_end(self, destination: int) -> OnEnd | None:
        """Return who wants to know how a packet ends that a part of ours sends just now."""
        return None if self._settle is None else self._settle(destination)


def _message_of(packet: ModulePacket) -> tuple[str, bytes]:
    """Return content type and body.

    Raises:
        RemoteProtocolError: It is no packet of its module.
    """
    if packet.capability == CACHE:
        form = cache_form(read_cache_untrusted(packet))
    elif packet.capability == CONTACTS:
        form = location_form(read_location_untrusted(packet))
    else:
        return f"{PACKET};type={packet.type};version={packet.version}", packet.body
    return JSON, json.dumps(form, ensure_ascii=False, separators=(",", ":")).encode()
