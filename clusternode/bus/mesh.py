"""Our own mesh as a `Bus`: what the user says becomes inputs, what the node says reaches the user.

Per broadcast this makes one `Delivery`, one `Publish` and one dictionary entry; per result one
call. Nothing waits here but `Delivery` and `MeshReplies` in their reader's task.
"""

from __future__ import annotations

import ipaddress
import itertools
import math
import secrets
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

import trio

from clusternode.bus.interface import (
    DEFAULT_CONTENT_TYPE,
    REQUEST_TIMEOUT,
    TEXT_CONTENT_TYPE,
    Arrivals,
    Delivery,
    Receiver,
    ResultCallback,
)
from clusternode.bus.replies import MeshReplies, call_back
from clusternode.core import effects
from clusternode.core.events import Event
from clusternode.core.inputs import (
    AddMember,
    Answer,
    Ask,
    CancelRequest,
    ChangeStatus,
    ChannelsChanged,
    Handled,
    Publish,
    RemoveMember,
)
from clusternode.core.snapshots import MemberSnapshot, NodeSnapshot
from clusternode.core.types import (
    Address,
    ChannelName,
    DeliveryId,
    Incarnation,
    NodeId,
    RequestId,
    ResultCode,
    Seconds,
    Tag,
    is_name,
)
from clusternode.core.wire import limits
from clusternode.core.wire.codec import is_content_type, is_tag
from clusternode.core.wire.messages import Reply
from clusternode.errors import BodyTooLarge, ConfigError, NoSuchNode, Overloaded
from clusternode.runtime.driver import Driver

NAMES_REMEMBERED_MAX: Final = 1024
"""Channels and content types that are known to be good, so that each is checked once."""
TAGS_REMEMBERED_MAX: Final = 4096
"""Requests whose channel is known for the events of late replies: four times those open at once."""
CHANGEABLE_STATUSES: Final = ("active", "not_active", "disabled")
NAME_EXPECTED: Final = "1 to 64 of A-Z a-z 0-9 . _ : -"


class MeshBus:
    """One node of one cluster, as routes, control and command line see it.

    It is also the driver's `Observer`. Everything is called in the agent's thread.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._body_size_max = driver.settings.messaging.body_size_max
        self._ids = itertools.count(1)
        self._deliveries: dict[DeliveryId, Delivery] = {}
        self._requests: dict[RequestId, MeshReplies] = {}  # in the order of their opening
        self._open_tags: set[str] = set()
        self._channels_of_tags: dict[Tag, ChannelName] = {}  # also of requests that have ended
        self._tag_prefix = secrets.token_hex(6)  # the same tag must not come from an earlier life
        self._good_names: set[str] = set()
        self._good_content_types: set[str] = {DEFAULT_CONTENT_TYPE, TEXT_CONTENT_TYPE}
        self._receiver: Receiver | None = None
        self._channels: tuple[ChannelName, ...] = driver.settings.channels

    # --- who is there ---------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.driver.settings.cluster

    @property
    def node_id(self) -> NodeId:
        return self.driver.settings.node_id

    def snapshot(self) -> NodeSnapshot:
        return self.driver.snapshot()

    def members(self) -> Sequence[MemberSnapshot]:
        """The own row first, then the others by node id."""
        return self.driver.snapshot().members

    def rank(self, channel: str) -> tuple[int, int] | None:
        """Tell (own index, count) among the reachable members that listen on a channel."""
        listening = sorted(
            member.node_id
            for member in self.members()
            if channel in member.channels and (member.local or member.status == "active")
        )
        if self.node_id not in listening:
            return None
        return listening.index(self.node_id), len(listening)

    def is_from_node(self, address: str) -> bool:
        """Tell whether an IP address, with or without a port, is another member's."""
        wanted = _ip(address)
        if wanted is None:
            return False
        return any(
            wanted in (_ip(member.remote), _ip(member.address.partition("://")[2]))
            for member in self.members()
            if not member.local
        )

    # --- messages -------------------------------------------------------------------------------

    def broadcast(
        self,
        channel: str,
        body: bytes | str,
        *,
        except_: Iterable[str] = (),
        content_type: str | None = None,
        max_forwards: int = 1,
        on_result: ResultCallback | None = None,
    ) -> Delivery:
        """Send to every member that has not left, but self."""
        excluded = [NodeId(node_id) for node_id in except_] if except_ else ()
        return self._publish(
            channel, body, content_type, max_forwards, on_result, excluded=excluded
        )

    def send(
        self,
        channel: str,
        node_id: str,
        body: bytes | str,
        *,
        content_type: str | None = None,
        max_forwards: int = 1,
        on_result: ResultCallback | None = None,
    ) -> Delivery:
        """Send to one node."""
        destinations = (self._node_id(node_id),)
        return self._publish(
            channel, body, content_type, max_forwards, on_result, destinations=destinations
        )

    def replicate(
        self,
        channel: str,
        body: bytes | str,
        *,
        source: str = "",
        replicated: bool = False,
        skip_loop_test: bool = False,
        content_type: str | None = None,
        on_result: ResultCallback | None = None,
    ) -> Delivery | None:
        """Broadcast marked as a copy; None when it is itself a copy or `source` is a member.

        `source` is the address or the node from which what is replicated was received; whether it
        is a member is not asked with `skip_loop_test`. Meaning: Kamailio DMQ README 4.5.
        """
        if replicated or (source and not skip_loop_test and self._is_of_member(source)):
            return None
        return self._publish(channel, body, content_type, 1, on_result, replicated=True)

    def _is_of_member(self, source: str) -> bool:
        is_known = any(source == one.node_id for one in self.members() if not one.local)
        return is_known or self.is_from_node(source)

    def _publish(
        self,
        channel: str,
        body: bytes | str,
        content_type: str | None,
        max_forwards: int,
        on_result: ResultCallback | None,
        *,
        destinations: Sequence[NodeId] | None = None,
        excluded: Sequence[NodeId] = (),
        replicated: bool = False,
    ) -> Delivery:
        if channel not in self._good_names:
            self._check_name("channel", channel)
        data, content_type = self._checked(body, content_type)
        if max_forwards != 1 and not 0 <= max_forwards <= limits.U8_MAX:
            raise ConfigError("max_forwards", max_forwards, f"0 to {limits.U8_MAX}")
        delivery, delivery_id = self._new_delivery(on_result)
        self.driver.feed(
            Publish(
                delivery_id,
                channel,  # type: ignore[arg-type]  # it is one; a call for the type costs time
                data,
                content_type,
                destinations,
                excluded,
                max_forwards,
                replicated,
            )
        )
        return delivery

    def _new_delivery(self, on_result: ResultCallback | None) -> tuple[Delivery, DeliveryId]:
        delivery = Delivery(None if on_result is None else partial(call_back, on_result))
        delivery_id: DeliveryId = next(self._ids)  # type: ignore[assignment]  # as `channel` above
        self._deliveries[delivery_id] = delivery
        return delivery, delivery_id

    # --- requests and replies -------------------------------------------------------------------

    def broadcast_request(
        self,
        channel: str,
        body: bytes | str,
        *,
        timeout: Seconds = REQUEST_TIMEOUT,
        tag: str | None = None,
        include_self: bool = False,
        content_type: str | None = None,
    ) -> MeshReplies:
        """Ask every member that has not left."""
        return self._ask(channel, body, timeout, tag, content_type, None, include_self)

    def request(
        self,
        channel: str,
        node_id: str,
        body: bytes | str,
        *,
        timeout: Seconds = REQUEST_TIMEOUT,
        tag: str | None = None,
        content_type: str | None = None,
    ) -> MeshReplies:
        """Ask one node."""
        destinations = (self._node_id(node_id),)
        return self._ask(channel, body, timeout, tag, content_type, destinations, False)

    def _ask(
        self,
        channel: str,
        body: bytes | str,
        timeout: Seconds,
        tag: str | None,
        content_type: str | None,
        destinations: Sequence[NodeId] | None,
        include_self: bool,
    ) -> MeshReplies:
        if channel not in self._good_names:
            self._check_name("channel", channel)
        data, content_type = self._checked(body, content_type)
        if not (math.isfinite(timeout) and 0 < timeout <= limits.SECONDS_MAX):
            raise ConfigError("timeout", timeout, "seconds, more than 0")
        request_id = RequestId(next(self._ids))
        checked_tag = self._new_tag(request_id) if tag is None else self._checked_tag(tag)
        if len(self._requests) >= self.driver.settings.messaging.open_requests_max:
            raise Overloaded(f"{len(self._requests)} requests are open, the most that may be")
        replies = MeshReplies(
            checked_tag, trio.current_time(), partial(self._cancel, request_id, checked_tag)
        )
        self._open_tags.add(checked_tag)
        self._channels_of_tags[checked_tag] = ChannelName(channel)
        if len(self._channels_of_tags) > TAGS_REMEMBERED_MAX:
            del self._channels_of_tags[next(iter(self._channels_of_tags))]
        self._requests[request_id] = replies  # before anything is sent
        self.driver.feed(
            Ask(
                request_id,
                ChannelName(channel),
                data,
                checked_tag,
                float(timeout),
                content_type,
                destinations,
                include_self,
            )
        )
        return replies

    def _new_tag(self, request_id: RequestId) -> Tag:
        return Tag(f"{self._tag_prefix}.{request_id}")

    def _checked_tag(self, tag: str) -> Tag:
        if not is_tag(tag):
            raise ConfigError("tag", tag, f"1 to {limits.TAG_LENGTH_MAX} printable ASCII letters")
        if tag in self._open_tags:
            raise ConfigError("tag", tag, "a tag that no open request has")
        return Tag(tag)

    def _cancel(self, request_id: RequestId, tag: Tag) -> None:
        if self._requests.pop(request_id, None) is not None:
            self._open_tags.discard(tag)
            self.driver.feed(CancelRequest(request_id))

    def reply(
        self,
        node_id: str,
        tag: str,
        body: bytes | str,
        *,
        content_type: str | None = None,
        code: int = 200,
    ) -> Delivery:
        """Answer a request by its tag."""
        data, content_type = self._checked(body, content_type)
        if not is_tag(tag):
            raise ConfigError("tag", tag, f"1 to {limits.TAG_LENGTH_MAX} printable ASCII letters")
        if not 0 <= code <= limits.U16_MAX:
            raise ConfigError("code", code, f"0 to {limits.U16_MAX}")
        destination = self._node_id(node_id)
        delivery, delivery_id = self._new_delivery(None)
        self.driver.feed(Answer(delivery_id, destination, Tag(tag), data, content_type, code))
        return delivery

    # --- checks ---------------------------------------------------------------------------------

    def _checked(self, body: bytes | str, content_type: str | None) -> tuple[bytes, str]:
        if not isinstance(body, bytes):
            if not isinstance(body, str):
                raise ConfigError("body", type(body).__name__, "bytes or str")
            body = body.encode()
            content_type = content_type or TEXT_CONTENT_TYPE
        if len(body) > self._body_size_max:
            raise BodyTooLarge(f"body of {len(body)} bytes, at most {self._body_size_max}")
        if content_type is None:
            return body, DEFAULT_CONTENT_TYPE
        if content_type not in self._good_content_types:
            if not is_content_type(content_type):
                expected = f"at most {limits.CONTENT_TYPE_LENGTH_MAX} printable ASCII letters"
                raise ConfigError("content_type", content_type, expected)
            _remember(self._good_content_types, content_type)
        return body, content_type

    def _check_name(self, what: str, name: str) -> None:
        if not is_name(name):
            raise ConfigError(what, name, NAME_EXPECTED)
        _remember(self._good_names, name)

    def _node_id(self, text: str) -> NodeId:
        if not is_name(text):
            raise ConfigError("node_id", text, NAME_EXPECTED)
        return NodeId(text)

    # --- what the user decides about the cluster ------------------------------------------------

    def set_channels(self, channels: Iterable[str]) -> None:
        """Say which channels the routes listen to now."""
        names = sorted(set(channels))
        for name in names:
            self._check_name("channel", name)
        if len(names) > limits.CHANNELS_MAX:
            raise ConfigError("channels", len(names), f"at most {limits.CHANNELS_MAX}")
        wanted = tuple(ChannelName(name) for name in names)
        if wanted != self._channels:
            self._channels = wanted
            self.driver.feed(ChannelsChanged(wanted))

    def attach(self, receiver: Receiver) -> None:
        """Hand everything that arrives and happens to `receiver`, in place of the one before."""
        self._receiver = receiver

    def add(self, address: str) -> None:
        """Dial an address from now on."""
        self.driver.feed(AddMember(Address.parse(address)))

    def remove(self, node_id: str) -> None:
        """Take a member off the list here."""
        self.driver.feed(RemoveMember(self._other_member(node_id)))

    def change_status(self, node_id: str, status: str) -> None:
        """Set the status of a member here until its next ping ends.

        Raises:
            NoSuchNode: It is not on the list, or is this node.
            ConfigError: There is no such status.
        """
        if status not in CHANGEABLE_STATUSES:
            raise ConfigError("status", status, "one of " + ", ".join(CHANGEABLE_STATUSES))
        self.driver.feed(ChangeStatus(self._other_member(node_id), status))

    def _other_member(self, node_id: str) -> NodeId:
        for member in self.members():
            if member.node_id == node_id and not member.local:
                return member.node_id
        if node_id == self.node_id:
            raise NoSuchNode(f"{node_id} is this node")
        raise NoSuchNode(f"{node_id} is not a member of {self.name}")

    # --- what the node says (driver.Observer) ---------------------------------------------------

    def settle(self, effect: effects.Settle) -> None:
        deliveries = self._deliveries
        for delivery_id, node_id, code in effect.results:
            delivery = deliveries[delivery_id]
            delivery.settle(node_id, code)
            if delivery.is_complete:
                del deliveries[delivery_id]

    def fan_out(self, effect: effects.Fanout) -> None:
        count = len(effect.destinations)
        self._deliveries[effect.delivery].fix_destinations(count)
        if not count:
            del self._deliveries[effect.delivery]

    def handle(self, effect: effects.Handle) -> None:
        finish = partial(self._finish, effect.origin, effect.incarnation)
        if self._receiver is None:
            finish(
                [
                    (position, ResultCode.NOT_FOUND)
                    for position, message in effect.items
                    if not isinstance(message, Reply)
                ]
            )
        else:
            self._receiver.arrived(
                Arrivals(self, effect.origin, effect.items, finish, self._channels_of_tags)
            )

    def _finish(
        self,
        origin: NodeId,
        incarnation: Incarnation,
        results: Sequence[tuple[int, ResultCode]],
    ) -> None:
        if results:
            self.driver.feed(Handled(origin, incarnation, results))

    def asked(self, effect: effects.Asked) -> None:
        replies = self._requests.get(effect.request)
        if replies is not None:
            replies.fix_asked(effect.node_ids)

    def replied(self, effect: effects.Replied) -> None:
        replies = self._requests.get(effect.request)
        if replies is not None:
            replies.add(effect, trio.current_time())

    def request_finished(self, effect: effects.RequestFinished) -> None:
        replies = self._requests.get(effect.request)
        if replies is not None:
            replies.finish(effect.node_id, effect.outcome, effect.code)

    def request_ended(self, effect: effects.RequestEnded) -> None:
        replies = self._requests.pop(effect.request, None)
        if replies is not None:
            self._open_tags.discard(replies.tag)
            replies.end()

    def emit(self, event: Event) -> None:
        if self._receiver is not None:
            self._receiver.observed(self, event)


def _remember(names: set[str], name: str) -> None:
    if len(names) >= NAMES_REMEMBERED_MAX:
        names.clear()
    names.add(name)


def _ip(text: str) -> str | None:
    """Return the canonical IP address of `ip`, `ip:port` or `[ipv6]:port`, if it is one."""
    if text.startswith("["):
        host = text[1:].partition("]")[0]
    else:
        host = text.partition(":")[0] if text.count(":") == 1 else text
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)
