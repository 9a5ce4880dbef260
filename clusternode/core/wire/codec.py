"""Messages to frames and back: the only place that encodes or decodes. Spec: docs/protocol.md, 4.

What each field must be stands in `schema.py`. The types that carry traffic are first tried by a
hand-written check that accepts what is ordinary and leaves everything else, and every refusal, to
the schema; it never accepts what the schema would refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any, TypeVar

import msgpack

from clusternode.core.types import ChannelName, Tag
from clusternode.core.wire import limits, schema
from clusternode.core.wire.framing import HEADER, HEADER_SIZE, MAGIC
from clusternode.core.wire.messages import (
    POSITIONED_TYPE_MIN,
    RESULT_CODES,
    Ack,
    Close,
    CloseReason,
    Frame,
    Hello,
    List,
    ListEntry,
    Message,
    Ping,
    Pong,
    Proof,
    Record,
    Records,
    Reply,
    Request,
    Results,
    Resume,
    Routed,
    Run,
    Unknown,
    Want,
    WireMessage,
)
from clusternode.errors import LocalProtocolError, RemoteProtocolError

T = TypeVar("T", bound=str)

# --- encoding -------------------------------------------------------------------------------------


def encode(message: WireMessage) -> bytes:
    """Return the whole frame of a message.

    Raises:
        LocalProtocolError: It has something in it that cannot be sent.
    """
    try:
        fields = _FIELDS_OF[message.__class__]
        payload: bytes = _pack(fields(message))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"cannot encode {message!r}: {error}") from error
    return _pack_header(MAGIC, HEADER_SIZE + len(payload), message.TYPE, 0) + payload


def payload_of(message: WireMessage) -> bytes:
    """Return the fields of a message, encoded: what `Routed` carries."""
    payload: bytes = _pack(_FIELDS_OF[message.__class__](message))
    return payload


def encoded_of(frame: Frame) -> bytes:
    """Return the bytes of a frame, encoding it if nobody has yet."""
    encoded = frame.encoded
    if encoded is None:
        encoded = frame.encoded = encode(frame.message)
    return encoded


def frame_of(message: WireMessage) -> Frame:
    """Make the frame of a message; positioned ones are not encoded for that.

    `size_bytes` is never less than the encoded size, provided that content types and tags are
    ASCII, as `is_content_type` and `is_tag` demand.
    """
    if message.__class__ in _SMALL:
        return Frame(message, _OVERHEAD)
    match message:
        case Message():
            size = len(message.channel) + len(message.content_type) + len(message.source)
            return Frame(message, size + len(message.body) + limits.FRAME_OVERHEAD_BYTES)
        case Request():
            size = len(message.channel) + len(message.content_type) + len(message.tag)
            return Frame(message, size + len(message.body) + limits.FRAME_OVERHEAD_BYTES)
        case Reply():
            size = len(message.content_type) + len(message.tag) + len(message.body)
            return Frame(message, size + limits.FRAME_OVERHEAD_BYTES)
        case Results():
            size = sum(RUN_BYTES_MAX * _split_count(run) for run in message.runs)
            return Frame(message, size + limits.FRAME_OVERHEAD_BYTES)
        case Routed():
            names = len(message.origin) + len(message.destination) + sum(map(len, message.relays))
            return Frame(message, names + len(message.payload) + limits.FRAME_OVERHEAD_BYTES)
        case _:
            encoded = encode(message)
            return Frame(message, len(encoded) + limits.FRAME_OVERHEAD_BYTES, encoded)


_OVERHEAD = limits.FRAME_OVERHEAD_BYTES
_SMALL: frozenset[type[WireMessage]] = frozenset({Ack, Ping, Pong, Resume})
"""A few numbers each: the overhead that every frame is counted with is more than that."""

RUN_BYTES_MAX = 22
"""The longest encoded run: a header of 1, two positions of 9 and a code of 3 bytes."""


def split_records(records: Iterable[Record]) -> list[Records]:
    """Spread records over as many messages as keep every one within the limits."""
    frames: list[Records] = []
    room = 0
    for record in records:
        size = len(_pack(record))
        if not frames or size > room or len(frames[-1].records) >= limits.ENTRIES_MAX:
            frames.append(Records([]))
            room = limits.CONTROL_PAYLOAD_MAX - ARRAYS_BYTES_MAX
        frames[-1].records.append(record)
        room -= size
    return frames


ARRAYS_BYTES_MAX = 16
"""The headers of the two arrays around records, rounded up."""


def is_content_type(value: str) -> bool:
    """Tell whether receivers accept this content type."""
    return schema.is_ascii_text(value, limits.CONTENT_TYPE_LENGTH_MAX)


def is_tag(value: str) -> bool:
    """Tell whether receivers accept this tag of a request."""
    return value != "" and schema.is_ascii_text(value, limits.TAG_LENGTH_MAX)


def is_tag_value(value: str) -> bool:
    """Tell whether receivers accept this value of a node's tag."""
    return schema.is_text(value, limits.TAG_VALUE_LENGTH_MAX)


def _fields_of_close(message: Close) -> tuple[object, ...]:
    """Cut the detail, which may repeat what a peer sent, down to what may be sent."""
    detail = message.detail.encode("ascii", "backslashreplace").decode("ascii")
    detail = "".join(letter if letter.isprintable() else "?" for letter in detail)
    return message.reason, detail[: limits.DETAIL_LENGTH_MAX], message.value


def _fields_of_hello(message: Hello) -> tuple[object, ...]:
    """Leave out an empty challenge: HELLOs without a secret are as they always were."""
    fields = _all_fields_of_hello(message)
    return fields if message.challenge else fields[:-1]


_all_fields_of_hello: _Fields = attrgetter(*schema.SCHEMAS[Hello])


def _fields_of_record(record: Record) -> tuple[object, ...]:
    """Leave out what is empty in nearly every record: those without it are as they always were."""
    fields = _all_fields_of_record(record)
    return (*fields, record.down) if record.down else fields


_all_fields_of_record: _Fields = attrgetter(
    "node_id",
    "incarnation",
    "version",
    "address",
    "tags",
    "channels",
    "left",
    "priority",
    "silent_for",
)


def _fields_of_results(message: Results) -> tuple[object, ...]:
    runs = message.runs
    if any(run.last - run.first >= limits.RUN_LENGTH_MAX for run in runs):
        return ([part for run in runs for part in _split(run)],)
    return (runs,)


def _split(run: Run) -> list[Run]:
    """Cut a run into runs of at most `RUN_LENGTH_MAX` positions."""
    step = limits.RUN_LENGTH_MAX
    firsts = range(run.first, run.last + 1, step)
    return [Run(first, min(first + step - 1, run.last), run.code) for first in firsts]


def _split_count(run: Run) -> int:
    return (run.last - run.first) // limits.RUN_LENGTH_MAX + 1


def _nested_fields(value: object) -> tuple[object, ...]:
    """Tell msgpack what a record inside a message consists of."""
    fields = _NESTED.get(value.__class__)
    if fields is None:
        raise TypeError(f"{value!r} cannot be sent")
    return fields(value)


_Fields = Callable[[Any], tuple[object, ...]]

_fields_of_entry: _Fields = attrgetter("node_id", "incarnation", "version", "silent_for")

_NESTED: Mapping[type, _Fields] = {
    Run: attrgetter("first", "last", "code"),
    ListEntry: _fields_of_entry,
    Record: _fields_of_record,
}

_FIELDS_OF: Mapping[type, _Fields] = {  # class → its fields in the order of the wire
    **{
        cls: attrgetter(*readers)
        for cls, readers in schema.SCHEMAS.items()
        if len(readers) > 1  # of a single name attrgetter makes no tuple
    },
    Ack: lambda message: (message.position,),
    Proof: lambda message: (message.mac,),
    Hello: _fields_of_hello,
    Records: lambda message: (message.records,),
    List: lambda message: (list(map(_fields_of_entry, message.entries)),),  # there are thousands
    Want: lambda message: (message.node_ids,),
    Results: _fields_of_results,
    Close: _fields_of_close,
}

_pack = msgpack.Packer(default=_nested_fields).pack
_pack_header = HEADER.pack


# --- decoding -------------------------------------------------------------------------------------


def decode_untrusted(type_: int, payload: bytes | memoryview) -> WireMessage:
    """Return the message of a frame; `Unknown` for a type that this version does not know.

    Raises:
        RemoteProtocolError: The payload is not what the protocol says.
    """
    decode = _DECODERS.get(type_)
    if decode is not None:
        return decode(payload)
    if type_ in schema.TYPES:
        return schema.read_message(type_, _unpack_untrusted(payload, limits.ENTRIES_MAX))
    if type_ < POSITIONED_TYPE_MIN:
        _check_control_size(payload)
    return Unknown(type_)


def _check_control_size(payload: bytes | memoryview) -> None:
    if len(payload) > limits.CONTROL_PAYLOAD_MAX:
        raise RemoteProtocolError(
            f"payload of {len(payload)} bytes, at most {limits.CONTROL_PAYLOAD_MAX}",
            CloseReason.LIMIT,
        )


def _unpack_untrusted(payload: bytes | memoryview, array_length_max: int) -> object:
    """Return what msgpack makes of a payload: arrays are tuples, maps and extensions refused."""
    if array_length_max > limits.FIELDS_MAX:
        _check_control_size(payload)
    try:
        return msgpack.unpackb(
            payload,
            use_list=False,
            max_array_len=array_length_max,
            max_map_len=0,
            max_ext_len=0,
        )
    except _MSGPACK_ERRORS as error:
        # Its texts repeat no data; the type says whether it was truncated, malformed or too deep.
        raise RemoteProtocolError(f"not msgpack: {type(error).__name__}: {error}") from error


_MSGPACK_ERRORS = (
    ValueError,  # malformed, truncated, extra bytes, over a limit, not UTF-8, nested too deeply
    TypeError,  # an unhashable key
    OverflowError,  # a timestamp outside the calendar
    RecursionError,  # msgpack's Python fallback, nested too deeply
    msgpack.UnpackException,
)


def _decode_message_untrusted(payload: bytes | memoryview) -> WireMessage:
    fields = _unpack_untrusted(payload, limits.FIELDS_MAX)
    if type(fields) is tuple and len(fields) == _MESSAGE_FIELDS:
        channel, content_type, body, message_id, max_forwards, replicated, source = fields
        if (
            type(channel) is str
            and channel in _known_channels
            and type(content_type) is str
            and content_type in _known_content_types
            and type(body) is bytes
            and type(message_id) is int
            and 0 <= message_id <= _COUNT_MAX
            and type(max_forwards) is int
            and 0 <= max_forwards <= _U8_MAX
            and type(replicated) is bool
            and source == ""
        ):
            known = _known_channels[channel]
            return Message(known, content_type, body, message_id, max_forwards, replicated)
    return _read_and_remember(Message.TYPE, fields)


def _decode_request_untrusted(payload: bytes | memoryview) -> WireMessage:
    fields = _unpack_untrusted(payload, limits.FIELDS_MAX)
    if type(fields) is tuple and len(fields) == _REQUEST_FIELDS:
        channel, content_type, body, tag, timeout = fields
        if (
            type(channel) is str
            and channel in _known_channels
            and type(content_type) is str
            and content_type in _known_content_types
            and type(body) is bytes
            and type(tag) is str
            and is_tag(tag)
            and type(timeout) is float
            and 0 <= timeout <= limits.SECONDS_MAX
        ):
            return Request(_known_channels[channel], content_type, body, Tag(tag), timeout)
    return _read_and_remember(Request.TYPE, fields)


def _decode_reply_untrusted(payload: bytes | memoryview) -> WireMessage:
    fields = _unpack_untrusted(payload, limits.FIELDS_MAX)
    if type(fields) is tuple and len(fields) == _REPLY_FIELDS:
        tag, content_type, body, code = fields
        if (
            type(tag) is str
            and is_tag(tag)
            and type(content_type) is str
            and content_type in _known_content_types
            and type(body) is bytes
            and type(code) is int
            and schema.CODE_MIN <= code <= schema.CODE_MAX
        ):
            return Reply(Tag(tag), content_type, body, code)
    return _read_and_remember(Reply.TYPE, fields)


def _decode_results_untrusted(payload: bytes | memoryview) -> WireMessage:
    """Return results; a single run is what nearly all of them have."""
    fields = _unpack_untrusted(payload, limits.ENTRIES_MAX)
    match fields:
        case [[[first, last, code]]] if (
            type(first) is int
            and type(last) is int
            and type(code) is int
            and 0 < first <= last <= _COUNT_MAX
            and last - first < limits.RUN_LENGTH_MAX
            and code in RESULT_CODES
        ):
            return Results([Run(first, last, code)])
        case _:
            return schema.read_message(Results.TYPE, fields)


def _decode_ack_untrusted(payload: bytes | memoryview) -> WireMessage:
    fields = _unpack_untrusted(payload, limits.FIELDS_MAX)
    if type(fields) is tuple and len(fields) == 1:
        position = fields[0]
        if type(position) is int and 0 <= position <= _COUNT_MAX:
            return Ack(position)
    return schema.read_message(Ack.TYPE, fields)


def _read_and_remember(type_: int, fields: object) -> WireMessage:
    """Check the fields in full; the names that passed need not be checked again."""
    message = schema.read_message(type_, fields)
    if isinstance(message, Message | Request):
        _remember(_known_channels, message.channel)
    assert isinstance(message, Message | Request | Reply)
    _remember(_known_content_types, message.content_type)
    return message


def _remember(known: dict[str, T], value: T) -> None:
    if len(known) >= limits.NAMES_REMEMBERED_MAX:
        known.clear()
    known[value] = value


_known_channels: dict[str, ChannelName] = {}  # checked channel → itself
_known_content_types: dict[str, str] = {}  # checked content type → itself

_COUNT_MAX = limits.COUNT_MAX
_U8_MAX = limits.U8_MAX
_MESSAGE_FIELDS = len(schema.SCHEMAS[Message])
_REQUEST_FIELDS = len(schema.SCHEMAS[Request])
_REPLY_FIELDS = len(schema.SCHEMAS[Reply])

_DECODERS: Mapping[int, Callable[[bytes | memoryview], WireMessage]] = {  # type number → decoder
    Message.TYPE: _decode_message_untrusted,
    Request.TYPE: _decode_request_untrusted,
    Reply.TYPE: _decode_reply_untrusted,
    Results.TYPE: _decode_results_untrusted,
    Ack.TYPE: _decode_ack_untrusted,
}
