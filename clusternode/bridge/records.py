"""Arrivals ⇄ records of Kafka: what travels in headers. Pure."""

from __future__ import annotations

from typing import Final

from clusternode.bridge.bodies import Parcel
from clusternode.bridge.engine import Arrival, Outgoing
from clusternode.bridge.marks import Mark, identity_of, parse_untrusted, place_of
from clusternode.bridge.settings import DEFAULT_CONTENT_TYPE, FORWARDS_MAX
from clusternode.kafka.ends import End
from clusternode.kafka.records import Record

VIA: Final = "clusternode.via"
"""Header: the ends where the record has been before the topic, separated by commas."""
ORIGIN: Final = "clusternode.origin"
MESSAGE_ID: Final = "clusternode.message-id"
"""With the origin unique: by these two a reader knows the copies of several bridges as one."""
MAX_FORWARDS: Final = "clusternode.max-forwards"
BRIDGED: Final = "clusternode.bridged"
"""Header: the mark, as in a content type."""
CONTENT_TYPE: Final = "content-type"
VIA_LENGTH_MAX: Final = 4096
"""A longer way is a loop over many hops: such a record is not relayed."""


def arrival_of(record: Record, connection: str) -> Arrival | None:
    """Return what a record is; None when it has been on too long a way."""
    via = _text(record.header(VIA))
    if len(via) > VIA_LENGTH_MAX:
        return None
    mark = parse_untrusted(_text(record.header(BRIDGED)))
    identity = identity_of(connection, record.topic, record.partition, record.offset)
    if mark is None and via:  # of another program, or an older version
        mark = Mark(identity).beside(*[place_of(each) for each in via.split(",")])
    forwards = _text(record.header(MAX_FORWARDS))
    is_number = forwards.isascii() and forwards.isdigit() and len(forwards) < 4
    fields = {
        "origin": _text(record.header(ORIGIN)),
        "message_id": _text(record.header(MESSAGE_ID)),
        "channel": record.topic,
        "cluster": connection,
    }
    content_type = _text(record.header(CONTENT_TYPE)) or DEFAULT_CONTENT_TYPE
    return Arrival(
        parcel=Parcel(record.value or b"", content_type, fields),
        identity=identity,
        mark=mark,
        # To be read is no relay: a record of a message that may go no further still is.
        max_forwards=1 + (min(int(forwards), FORWARDS_MAX) if is_number else 0),
    )


def headers_of(outgoing: Outgoing, arrival: Arrival, source: End) -> list[tuple[str, str]]:
    """Return the headers of a record that is made of an arrival."""
    fields = arrival.parcel.fields
    headers = [
        (CONTENT_TYPE, outgoing.content_type),
        *outgoing.headers,
        (ORIGIN, fields.get("origin", "")),
        (MAX_FORWARDS, str(outgoing.max_forwards)),
        (VIA, str(source)),
        (BRIDGED, outgoing.mark.text),
    ]
    if "message_id" in fields:
        headers.append((MESSAGE_ID, fields["message_id"]))
    return headers


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")
