"""An OpenSIPS cluster as a `Bus`: what the user says goes to the machine, its effects reach him."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final, TypeVar, assert_never

import trio

from clusternode.bus.base import CheckedBus, ip_of
from clusternode.bus.interface import Arrivals, Delivery, Operation, Sight
from clusternode.core import effects as core_effects
from clusternode.core.inputs import Ask, Publish
from clusternode.core.snapshots import NodeSnapshot
from clusternode.core.types import NodeId, RequestId, ResultCode, Tag
from clusternode.errors import ConfigError
from clusternode.gateways.opensips import effects, generic, operations, views
from clusternode.gateways.opensips.cache import CacheView
from clusternode.gateways.opensips.effects import Effect
from clusternode.gateways.opensips.node import OpenSipsNode
from clusternode.gateways.opensips.replication import Contact

T = TypeVar("T")

OPEN_REQUESTS_MAX: Final = 1024
BODY_SIZE_MAX: Final = 65_000
"""A frame holds 65 515 bytes: header, tag and trailer take 180 at most."""
TAG_LETTERS: Final = string.ascii_letters + string.digits
TAG_LENGTH: Final = 24
"""Random letters at the end of a tag, as in OpenSIPS."""

Perform = Callable[[list[Effect]], None]
Told = (
    effects.Arrived
    | effects.Destined
    | effects.Settled
    | effects.Asked
    | effects.Replied
    | effects.Finished
)


class OpenSipsBus(CheckedBus):
    """One node of an OpenSIPS cluster, as routes, control and command line see it."""

    def __init__(self, node: OpenSipsNode, perform: Perform) -> None:
        super().__init__(body_size_max=BODY_SIZE_MAX, open_requests_max=OPEN_REQUESTS_MAX)
        self._node = node
        self._perform = perform
        self._channels: tuple[str, ...] = ()

    # --- who is there ---------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._node.cluster_name

    @property
    def node(self) -> OpenSipsNode:
        return self._node

    @property
    def node_id(self) -> NodeId:
        return NodeId(str(self._node.node_id))

    def snapshot(self) -> NodeSnapshot:
        return views.snapshot(self._node, self._channels, trio.current_time())

    def survey(self) -> Mapping[NodeId, Mapping[NodeId, Sight]]:
        """Every node's neighbours, as they have been flooded."""
        return views.survey(self._node)

    def rank(self, channel: str) -> tuple[int, int] | None:
        """Tell (own index, count) among the reachable nodes, for a capability among its nodes."""
        if channel not in self._channels:
            return None
        node = self._node
        reachable = [each for each in node.others() if node.is_reachable(each)]
        if channel != generic.CHANNEL:
            reachable = [each for each in reachable if node.capability_state(each, channel)]
        nodes = sorted([*reachable, node.node_id])
        return nodes.index(node.node_id), len(nodes)

    def is_from_node(self, address: str) -> bool:
        """Tell whether an IP address is another node's (cluster_check_addr)."""
        host = ip_of(address)
        return host is not None and self._node.membership.topology.has_address(host)

    # --- what the cluster shares ----------------------------------------------------------------

    def cache(self, collection: str) -> CacheView:
        """Return the live view of a replicated collection of cachedb_local.

        Raises:
            ConfigError: `[gateway.opensips] cache_collections` does not name it.
        """
        if self._node.cache is None:
            setting = f"gateway.{self.name}.cache_collections"
            raise ConfigError(setting, "none", f"the collection {collection} in it")
        return CacheView(self._node.cache, collection, self._step)

    def contacts(self, aor: str, domain: str = "location") -> tuple[Contact, ...]:
        """Return what is registered for an address of record, as usrloc replicates it.

        Raises:
            ConfigError: `[gateway.opensips] usrloc` is off.
        """
        table = self._node.contacts
        if table is None:
            raise ConfigError(f"gateway.{self.name}.usrloc", False, "true")
        return self._step(lambda: table.contacts(aor, domain))

    # --- messages and requests ------------------------------------------------------------------

    def _check_message(self, channel: str, body: bytes, content_type: str) -> None:
        if channel != generic.CHANNEL:
            self._node.channels.make(channel, body, content_type, self._node.node_id)

    def _check_channel(self, channel: str) -> None:
        if channel != generic.CHANNEL:
            raise ConfigError("channel", channel, f"{generic.CHANNEL}: no other has requests")

    def _new_tag(self, request: RequestId) -> Tag:
        """Make a tag of OpenSIPS's form: cluster, node, and 24 letters."""
        del request
        letters = "".join(secrets.choice(TAG_LETTERS) for _ in range(TAG_LENGTH))
        return Tag(f"{self._node.context.cluster_id}-{self._node.node_id}-{letters}")

    def _send_out(self, message: Publish) -> None:
        if message.channel != generic.CHANNEL:
            self._do(
                partial(
                    self._node.channels.publish,
                    message.delivery,
                    message.channel,
                    message.body,
                    message.content_type,
                    message.destinations,
                    message.excluded,
                )
            )
            return
        tag = self._new_tag(RequestId(message.delivery))
        self._do(
            partial(
                self._node.scripts.publish,
                message.delivery,
                tag,
                message.body,
                message.destinations,
                message.excluded,
            )
        )

    def _ask_out(self, request: Ask) -> None:
        self._do(
            partial(
                self._node.scripts.ask,
                request.request,
                request.tag,
                request.body,
                request.timeout,
                request.destinations,
                include_self=request.include_self,
            )
        )

    def _cancelled(self, request: RequestId, tag: Tag) -> None:
        self._node.scripts.cancel(tag)

    def reply(
        self,
        node_id: str,
        tag: str,
        body: bytes | str,
        *,
        content_type: str | None = None,
        code: int = 200,
    ) -> Delivery:
        """Answer a request by its tag (cluster_send_rpl); the code does not travel."""
        del code
        data, _ = self._checked(body, content_type)
        if tag:  # OpenSIPS looks at none of them, so a request may come without
            self._check_tag(tag)
        destination = self._node_id(node_id)
        delivery, delivery_id = self._new_delivery(None)
        self._do(partial(self._node.scripts.reply, delivery_id, destination, Tag(tag), data))
        return delivery

    def _do(self, action: Callable[[], object]) -> None:
        self._perform(self._node.perform(trio.current_time(), action))

    def _step(self, action: Callable[[], T]) -> T:
        """Let the node do something and return what it says."""
        results: list[T] = []
        self._do(lambda: results.append(action()))
        return results[0]

    # --- what the user decides about the cluster ------------------------------------------------

    def set_channels(self, channels: Iterable[str]) -> None:
        """Say which channels the routes listen to now; OpenSIPS tells nobody."""
        self._channels = self._node.channels.heard = tuple(sorted(set(channels)))

    def add(self, address: str) -> None:
        raise ConfigError(
            "address", address, "gateway.opensips.neighbor_node_info: a node has an id"
        )

    def remove(self, node_id: str) -> None:
        """Take a node out of the cluster, on every node of it (clusterer:remove_node)."""
        known = self._other_member(node_id)
        self._do(partial(self._node.remove, int(known)))

    def change_status(self, node_id: str, status: str) -> None:
        """Enable (active) or disable a node, as far as this node is concerned."""
        if status not in ("active", "disabled"):
            raise ConfigError("status", status, "active or disabled")
        known = self._other_member(node_id)
        is_enabled = status == "active"
        membership = self._node.membership
        self._do(partial(membership.set_enabled, int(known), is_enabled=is_enabled))

    def operations(self) -> Sequence[Operation]:
        """What OpenSIPS's module clusterer offers over MI."""
        return operations.names()

    def operate(self, name: str, arguments: Sequence[str]) -> object:
        """Carry out an operation, as a script or the command line asks.

        Raises:
            ConfigError: There is no such operation, or an argument is wrong.
            BodyTooLarge, LocalProtocolError: A command cannot be written.
        """
        return self._step(lambda: operations.perform(self._node, name, arguments))

    # --- what the machine says ------------------------------------------------------------------

    def told(self, effect: Told) -> None:
        match effect:
            case effects.Arrived():
                self._arrived(effect)
            case effects.Destined():
                self._fix_destinations(effect.delivery, effect.count)
            case effects.Settled():
                self._settle(effect.delivery, effect.node_id, effect.code)
            case effects.Asked():
                self._asked(effect)
            case effects.Replied():
                self._replied(effect)
            case effects.Finished():
                self._finished(effect)
            case _:
                assert_never(effect)

    def _arrived(self, effect: effects.Arrived) -> None:
        if self._receiver is None:
            return
        items = list(enumerate(effect.messages))
        arrivals = Arrivals(
            self, effect.origin, items, _nobody_waits, self._channels_of_tags, is_either=True
        )
        self._receiver.arrived(arrivals)

    def _asked(self, effect: effects.Asked) -> None:
        replies = self._requests.get(effect.request)
        if replies is not None:
            replies.fix_asked(effect.node_ids)
            self._end_if_finished(effect.request)

    def _replied(self, effect: effects.Replied) -> None:
        replies = self._requests.get(effect.request)
        if replies is not None:
            replied = core_effects.Replied(
                effect.request,
                effect.node_id,
                replies.tag,
                effect.body,
                generic.CONTENT_TYPE,
                int(ResultCode.OK),
            )
            replies.add(replied, trio.current_time())

    def _finished(self, effect: effects.Finished) -> None:
        replies = self._requests.get(effect.request)
        if replies is not None:
            replies.finish(effect.node_id, effect.outcome, effect.code)
            self._end_if_finished(effect.request)

    def _end_if_finished(self, request: RequestId) -> None:
        replies = self._requests[request]
        if len(replies.outcomes) == len(replies.asked):
            self._end(request)


def _nobody_waits(results: Sequence[tuple[int, ResultCode]]) -> None:
    """OpenSIPS acknowledges nothing."""
