"""What every `Bus` does alike: it checks arguments, and keeps deliveries and open requests.

A bus says how a checked message or request goes out (`_send_out`, `_ask_out`), and tells here what
becomes of it. Everything is called in the agent's thread.
"""

from __future__ import annotations

import abc
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
    Delivery,
    Receiver,
    ResultCallback,
)
from clusternode.bus.replies import MeshReplies, call_back
from clusternode.core.events import Event
from clusternode.core.inputs import Ask, Publish
from clusternode.core.snapshots import MemberSnapshot, NodeSnapshot
from clusternode.core.types import (
    ChannelName,
    DeliveryId,
    NodeId,
    RequestId,
    ResultCode,
    Seconds,
    Tag,
    is_name,
)
from clusternode.core.wire import limits
from clusternode.core.wire.codec import is_content_type, is_tag
from clusternode.errors import BodyTooLarge, ConfigError, NoSuchNode, Overloaded

NAMES_REMEMBERED_MAX: Final = 1024
"""Channels and content types that are known to be good, so that each is checked once."""
TAGS_REMEMBERED_MAX: Final = 4096
"""Requests whose channel is known for the events of late replies: four times those open at once."""
CHANGEABLE_STATUSES: Final = ("active", "not_active", "disabled")
NAME_EXPECTED: Final = "1 to 64 of A-Z a-z 0-9 . _ : -"


class CheckedBus(abc.ABC):
    """The half of `interface.Bus` that needs no protocol."""

    def __init__(self, *, body_size_max: int, open_requests_max: int) -> None:
        self._body_size_max = body_size_max
        self._open_requests_max = open_requests_max
        self._ids = itertools.count(1)
        self._deliveries: dict[DeliveryId, Delivery] = {}
        self._requests: dict[RequestId, MeshReplies] = {}  # in the order of their opening
        self._open_tags: set[str] = set()
        self._channels_of_tags: dict[Tag, ChannelName] = {}  # also of requests that have ended
        self._tag_prefix = secrets.token_hex(6)  # the same tag must not come from an earlier life
        self._good_names: set[str] = set()
        self._good_content_types: set[str] = {DEFAULT_CONTENT_TYPE, TEXT_CONTENT_TYPE}
        self._receiver: Receiver | None = None

    # --- what a bus says ------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def name(self) -> str: ...

    @property
    @abc.abstractmethod
    def node_id(self) -> NodeId: ...

    @abc.abstractmethod
    def snapshot(self) -> NodeSnapshot: ...

    @abc.abstractmethod
    def _send_out(self, message: Publish) -> None: ...

    @abc.abstractmethod
    def _ask_out(self, request: Ask) -> None: ...

    @abc.abstractmethod
    def _cancelled(self, request: RequestId, tag: Tag) -> None:
        """Take note that nobody waits for a request any more."""

    def _new_tag(self, request: RequestId) -> Tag:
        return Tag(f"{self._tag_prefix}.{request}")

    def _check_channel(self, channel: str) -> None:
        """Refuse a channel that has no requests.

        Raises:
            ConfigError: It has none, or is no channel.
        """
        if channel not in self._good_names:
            self._check_name("channel", channel)

    def _check_message(self, channel: str, body: bytes, content_type: str) -> None:
        """Refuse what a channel cannot carry.

        Raises:
            ConfigError: It is no channel, or the body is none of it.
        """
        del body, content_type
        self._check_channel(channel)

    # --- who is there ---------------------------------------------------------------------------

    def members(self) -> Sequence[MemberSnapshot]:
        """The own row first, then the others by node id."""
        return self.snapshot().members

    def attach(self, receiver: Receiver) -> None:
        """Hand everything that arrives and happens to `receiver`, in place of the one before."""
        self._receiver = receiver

    def observed(self, event: Event) -> None:
        if self._receiver is not None:
            self._receiver.observed(self, event)  # type: ignore[arg-type]  # each subclass is a Bus

    def _other_member(self, node_id: str) -> NodeId:
        for member in self.members():
            if member.node_id == node_id and not member.local:
                return member.node_id
        if node_id == self.node_id:
            raise NoSuchNode(f"{node_id} is this node")
        raise NoSuchNode(f"{node_id} is not a member of {self.name}")

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

    def is_from_node(self, address: str) -> bool:
        """Tell whether an IP address, with or without a port, is another member's."""
        wanted = ip_of(address)
        if wanted is None:
            return False
        return any(
            wanted in (ip_of(member.remote), ip_of(member.address.partition("://")[2]))
            for member in self.members()
            if not member.local
        )

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
        data, content_type = self._checked(body, content_type)
        self._check_message(channel, data, content_type)
        if max_forwards != 1 and not 0 <= max_forwards <= limits.U8_MAX:
            raise ConfigError("max_forwards", max_forwards, f"0 to {limits.U8_MAX}")
        delivery, delivery_id = self._new_delivery(on_result)
        self._send_out(
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

    def _fix_destinations(self, delivery_id: DeliveryId, count: int) -> None:
        """Say how many results a delivery gets, before any of them."""
        self._deliveries[delivery_id].fix_destinations(count)
        if not count:
            del self._deliveries[delivery_id]

    def _settle(self, delivery_id: DeliveryId, node_id: NodeId, code: ResultCode) -> None:
        """Take the final result of one destination."""
        delivery = self._deliveries[delivery_id]
        delivery.settle(node_id, code)
        if delivery.is_complete:
            del self._deliveries[delivery_id]

    # --- requests -------------------------------------------------------------------------------

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
        self._check_channel(channel)
        data, content_type = self._checked(body, content_type)
        if not (math.isfinite(timeout) and 0 < timeout <= limits.SECONDS_MAX):
            raise ConfigError("timeout", timeout, "seconds, more than 0")
        request_id = RequestId(next(self._ids))
        checked_tag = self._new_tag(request_id) if tag is None else self._checked_tag(tag)
        if len(self._requests) >= self._open_requests_max:
            raise Overloaded(f"{len(self._requests)} requests are open, the most that may be")
        cancel = partial(self._cancel, request_id, checked_tag)
        replies = MeshReplies(checked_tag, trio.current_time(), cancel)
        self._channels_of_tags[checked_tag] = ChannelName(channel)
        if len(self._channels_of_tags) > TAGS_REMEMBERED_MAX:
            del self._channels_of_tags[next(iter(self._channels_of_tags))]
        self._open_tags.add(checked_tag)
        self._requests[request_id] = replies  # before anything is sent
        self._ask_out(
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

    def _checked_tag(self, tag: str) -> Tag:
        self._check_tag(tag)
        if tag in self._open_tags:
            raise ConfigError("tag", tag, "a tag that no open request has")
        return Tag(tag)

    def _check_tag(self, tag: str) -> None:
        if not is_tag(tag):
            raise ConfigError("tag", tag, f"1 to {limits.TAG_LENGTH_MAX} printable ASCII letters")

    def _cancel(self, request_id: RequestId, tag: Tag) -> None:
        if self._requests.pop(request_id, None) is not None:
            self._open_tags.discard(tag)
            self._cancelled(request_id, tag)

    def _end(self, request_id: RequestId) -> None:
        """Take note that nothing follows for a request."""
        replies = self._requests.pop(request_id, None)
        if replies is not None:
            self._open_tags.discard(replies.tag)
            replies.end()

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


def _remember(names: set[str], name: str) -> None:
    if len(names) >= NAMES_REMEMBERED_MAX:
        names.clear()
    names.add(name)


def ip_of(text: str) -> str | None:
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
