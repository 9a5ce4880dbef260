"""Hypothesis strategies that several test modules share."""

from __future__ import annotations

import itertools

import attrs
from hypothesis import strategies as st

from clusternode.core.types import NAME_PATTERN, ResultCode
from clusternode.core.wire import limits
from clusternode.core.wire.messages import (
    Ack,
    Close,
    Hello,
    List,
    ListEntry,
    Message,
    NoRoute,
    Ping,
    Pong,
    Record,
    Records,
    Reply,
    Request,
    Results,
    Resume,
    Routed,
    Run,
    Segment,
    Want,
    WireMessage,
)

names = st.from_regex(NAME_PATTERN, fullmatch=True)
counts = st.integers(0, limits.COUNT_MAX)
positions = st.integers(1, limits.COUNT_MAX)
digests = st.integers(0, limits.DIGEST_MAX)
seconds = st.floats(0, limits.SECONDS_MAX)
bodies = st.binary(max_size=300)
content_types = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0x7E),
    max_size=limits.CONTENT_TYPE_LENGTH_MAX,
)
tags = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0x7E),
    min_size=1,
    max_size=limits.TAG_LENGTH_MAX,
)
addresses = st.builds(
    "{}://{}:{}".format,
    st.sampled_from(["tcp", "tls"]),
    st.sampled_from(["10.0.0.1", "[2001:db8::1]", "edge-1.example.net"]),
    st.integers(1, 65535),
)


def texts(length_max: int) -> st.SearchStrategy[str]:
    """Texts that receivers accept: no control characters, so many bytes of UTF-8."""
    letters = st.characters(exclude_categories=["Cc", "Cs"])
    return st.text(letters, max_size=length_max // 4)


hellos = st.builds(
    Hello,
    cluster=names,
    node_id=names,
    incarnation=counts,
    nonce=st.binary(min_size=limits.NONCE_LENGTH, max_size=limits.NONCE_LENGTH),
    protocol_min=st.just(1),
    protocol_max=st.integers(1, 9),
    address=addresses,
    body_size_max=st.integers(0, limits.BODY_SIZE_LIMIT),
    window_bytes=counts,
    agent=texts(limits.AGENT_LENGTH_MAX),
)
hellos_with_a_challenge = st.builds(
    lambda hello, challenge: attrs.evolve(hello, challenge=challenge),
    hellos,
    st.binary(min_size=limits.NONCE_LENGTH, max_size=limits.NONCE_LENGTH),
)
records = st.builds(
    Record,
    node_id=names,
    incarnation=counts,
    version=counts,
    address=addresses,
    tags=st.dictionaries(names, texts(limits.TAG_VALUE_LENGTH_MAX), max_size=3).map(
        lambda tags: tuple(sorted(tags.items()))
    ),
    channels=st.lists(names, unique=True, max_size=3).map(lambda names: tuple(sorted(names))),
    left=st.booleans(),
    priority=st.integers(0, limits.U16_MAX),
    silent_for=seconds,
    down=st.lists(names, unique=True, max_size=3).map(lambda names: tuple(sorted(names))),
)
list_entries = st.builds(
    ListEntry, node_id=names, incarnation=counts, version=counts, silent_for=seconds
)
runs = st.builds(
    lambda first, more, code: Run(first, min(first + more, limits.COUNT_MAX), code),
    positions,
    st.integers(0, limits.RUN_LENGTH_MAX - 1),
    st.sampled_from(sorted(code.value for code in ResultCode)),
)
channel_messages = st.builds(
    Message,
    channel=names,
    content_type=content_types,
    body=bodies,
    message_id=counts,
    max_forwards=st.integers(0, limits.U8_MAX),
    replicated=st.booleans(),
    source=st.just("") | names,
)
requests = st.builds(
    Request, channel=names, content_type=content_types, body=bodies, tag=tags, timeout=seconds
)
replies = st.builds(
    Reply, tag=tags, content_type=content_types, body=bodies, code=st.integers(100, 699)
)
results = st.builds(Results, st.lists(runs, max_size=5))

positioned_messages: st.SearchStrategy[WireMessage] = st.one_of(
    channel_messages, requests, replies, results
)
ways = st.lists(names, unique=True, min_size=1, max_size=limits.RELAYS_MAX).map(tuple)
routed_messages: st.SearchStrategy[WireMessage] = st.one_of(
    st.builds(Routed, names, counts, names, counts, ways, st.integers(0, limits.U16_MAX), bodies),
    st.builds(NoRoute, names, names, ways, names),
    st.builds(Segment, counts, counts, counts, bodies, st.booleans()),
)
control_messages: st.SearchStrategy[WireMessage] = st.one_of(
    st.builds(Resume, counts, positions),
    st.builds(Close, st.integers(0, limits.U16_MAX), st.text("abc xyz.", max_size=80), counts),
    st.builds(Ping, counts, digests),
    st.builds(Pong, counts, digests),
    st.builds(Ack, counts),
    st.builds(Records, st.lists(records, max_size=3)),
    st.builds(List, st.lists(list_entries, max_size=5)),
    st.builds(Want, st.lists(names, max_size=5)),
    routed_messages,
)
messages: st.SearchStrategy[WireMessage] = st.one_of(positioned_messages, control_messages)
"""Every message that may be sent after the handshake."""


@st.composite
def chopped(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """Cut bytes into reads of any length, as a network does."""
    cuts = draw(st.lists(st.integers(0, len(data)), max_size=12))
    edges = [0, *sorted(cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]
