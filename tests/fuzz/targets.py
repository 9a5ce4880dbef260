"""What is fuzzed: each function takes bytes, and raises only where there is a bug.

`fuzz.py` runs them under a coverage-guided fuzzer; `test_corpus.py` runs what it has found.
"""

from __future__ import annotations

import contextlib
import functools
import random
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import attrs

from clusternode.bridge import changes, marks, standby
from clusternode.bridge import kamailio as bridge_kamailio
from clusternode.bridge import opensips as bridge_opensips
from clusternode.cli.local import authority
from clusternode.config import TlsSection, load_settings
from clusternode.config.text import settings_toml
from clusternode.control.requests import check_parameters_untrusted, find_call
from clusternode.control.server import parse_line_untrusted
from clusternode.core import effects
from clusternode.core.effects import Effect
from clusternode.core.inputs import (
    Connected,
    Disconnected,
    FramesReceived,
    Start,
    TimePassed,
    WriteReady,
)
from clusternode.core.node import Node
from clusternode.core.settings import NodeSettings
from clusternode.core.types import Address, ConnectionId, NodeId
from clusternode.core.wire import limits
from clusternode.core.wire.codec import decode_untrusted, encode
from clusternode.core.wire.messages import Resume, Unknown
from clusternode.core.wire.session import Session
from clusternode.errors import ConfigError, ControlError, RemoteProtocolError
from clusternode.gateways.opensips import codec as opensips_codec
from clusternode.gateways.opensips import messages as opensips_messages
from clusternode.gateways.opensips import replication, typed
from clusternode.gateways.opensips.messages import ModulePacket
from clusternode.runtime.tls import Credentials
from tests.fuzz.stories import INCARNATION, Story, hello, stories

SECRET = b"the secret of the fuzzer"
PENDING_MAX = 2 * limits.MIB + 2**20
"""A session keeps one incomplete frame and one read."""
EFFECTS_MAX = 10_000
"""What one input may make a node ask for; more would be amplification."""


def must_be_short(error: Exception, length_max: int) -> None:
    assert len(str(error)) < length_max, "an error repeats what was sent"


def codec(data: bytes) -> None:
    """Whatever is decoded is encoded to something that is decoded to the same."""
    type_ = int.from_bytes(data[:1], "big")
    try:
        message = decode_untrusted(type_, data[1:])
    except RemoteProtocolError as error:
        must_be_short(error, 1000)
        return
    if not isinstance(message, Unknown):
        frame = encode(message)
        assert decode_untrusted(type_, frame[12:]) == message


def session(data: bytes) -> None:
    """A session takes bytes in any pieces, before and after the handshake, with and without secret.

    The first byte chooses; each further piece is led by its length.
    """
    mode = data[:1] or b"\0"
    has_secret, is_open, is_dialer = (bool(mode[0] & bit) for bit in (1, 2, 4))
    own = hello("n2", bytes(range(16)) if has_secret else b"")
    secrets = [SECRET] if has_secret else []
    if is_dialer:
        one = Session.dial(own, secrets)
    else:
        one = Session.listen(lambda cluster: own if cluster == "voip" else None, lambda _: secrets)
    if is_open and not has_secret:
        one.receive_data_untrusted(encode(hello("n1")))
    with contextlib.suppress(RemoteProtocolError):
        for piece in pieces(data[1:]):
            if one.peer_close is not None:
                break
            one.receive_data_untrusted(piece)
            one.data_to_send()
        # Without the secret nobody comes in.
        assert not (has_secret and one.is_open)
    assert has_secret is False or one.peer is None


def pieces(data: bytes) -> Iterator[bytes]:
    while data:
        size = data[0] + 1
        yield data[1 : 1 + size]
        data = data[1 + size :]


def node(data: bytes) -> None:
    """A node takes whatever a peer says that has got in: records, lists, results, replies, acks.

    It may say that it speaks for others, whose way it is. Each piece is one read; a piece of one
    byte lets time pass.
    """
    node_counters(data)


def node_counters(data: bytes) -> Mapping[str, int]:
    """Do what `node` does, and return what the node has counted."""
    one, now = n1(), 1.0
    one.step(now, Start())
    connection, talk, taken = _connect(one, 1, "n2")
    silent, _, more = _connect(one, 2, "n4")
    taken += more
    for piece in pieces(data):
        if len(piece) == 1:
            now += piece[0] / 10
            taken = one.step(now, TimePassed())
        else:
            with contextlib.suppress(RemoteProtocolError):
                messages = talk.receive_data_untrusted(piece)
                taken = one.step(now, FramesReceived(connection, messages))
        taken += one.step(now, WriteReady(connection, 65536))
        assert len(taken) < EFFECTS_MAX
        closed = [each.connection for each in taken if isinstance(each, effects.Disconnect)]
        if silent in closed:
            one.step(now, Disconnected(silent))
        if connection in closed:
            break
    one.step(now, Disconnected(connection))
    snapshot = one.snapshot(now)
    own = next(member for member in snapshot.members if member.node_id == "n1")
    assert own.status == "active", "a peer took us down"
    return snapshot.counters


def _connect(one: Node, number: int, peer: str) -> tuple[ConnectionId, Session, list[Effect]]:
    """Let a peer have got in; it has not said more than HELLO and how its stream begins."""
    connection = ConnectionId(number)
    talk = Session.listen(lambda _: one.hello())
    talk.receive_data_untrusted(encode(hello(peer)))
    assert talk.peer is not None
    taken = one.step(1.0, Connected(connection, talk.peer, None, f"10.0.0.{number}:1"))
    return connection, talk, taken + one.step(1.0, FramesReceived(connection, [Resume(0, 1)]))


def n1() -> Node:
    """Return the node that is fuzzed; it stands between n0, which begins tunnels to it, and n3."""
    settings = NodeSettings(
        node_id=NodeId("n1"),
        cluster="voip",
        incarnation=INCARNATION,
        address=Address.parse("tcp://10.0.0.9:5062"),
        nonce=b"n" * 16,
    )
    return Node(settings, 1.0, random.Random(0))


def opensips(data: bytes) -> None:
    """A stream of BIN frames: whatever is read is written to something that is read the same."""
    reader = opensips_codec.FrameReader()
    try:
        frames = reader.receive_data_untrusted(data)
        assert reader.receive_data_untrusted(b"") == []
    except RemoteProtocolError as error:
        must_be_short(error, 1000)
        frames = [data]
    assert sum(map(len, frames)) <= len(data)
    for frame in frames:
        try:
            packet = opensips_codec.decode_untrusted(frame)
        except RemoteProtocolError as error:
            must_be_short(error, 1000)
            continue
        written = opensips_codec.encode(packet)
        assert len(written) == len(frame)
        assert opensips_codec.decode_untrusted(written) == packet
        trailer = opensips_codec.route_of_untrusted(frame)
        assert trailer == getattr(packet, "trailer", None)
        if isinstance(packet, ModulePacket):
            _replicated(packet)


def _replicated(packet: ModulePacket) -> None:
    """What a module replicates is read to the end, in each version, or refused."""
    with contextlib.suppress(RemoteProtocolError):
        if packet.capability == opensips_messages.CACHE:
            change = replication.read_cache_untrusted(packet)
            assert replication.cache_packet(packet.trailer, change) == packet
            typed.cache_form(change)
        elif packet.capability == opensips_messages.CONTACTS:
            moved = replication.read_location_untrusted(packet)
            written = replication.location_packet(packet.trailer, moved)
            assert packet.version != replication.CONTACTS_VERSION or written == packet
            typed.location_form(moved)


def control(data: bytes) -> None:
    """A line of the control socket is a call with the right parameters, or a refusal."""
    try:
        request = parse_line_untrusted(data)
        call = find_call(request["method"])
        check_parameters_untrusted(call, request["params"])
    except ControlError as error:
        must_be_short(error, 5000)


def config(data: bytes) -> None:
    """A configuration is settings that can be written and read again, or a named mistake."""
    file = Path(tempfile.gettempdir()) / "clusternode-fuzz.toml"
    file.write_bytes(data)
    try:
        settings = load_settings(file, environ={}, overrides={})
    except ConfigError as error:
        must_be_short(error, 5000)
        return
    file.write_text(settings_toml(settings), "utf-8")
    again = load_settings(file, environ={}, overrides={})
    assert attrs.evolve(again, file=None) == attrs.evolve(settings, file=None)


def bridge(data: bytes) -> None:
    """What bridges read is a change that can be said in every world, or refused."""
    text = data.decode("utf-8", "replace")
    plain, mark = marks.split_untrusted(text)
    assert mark is not None or plain == text
    with contextlib.suppress(RemoteProtocolError):
        standby.parse_notice_untrusted(data)
    for kind in ("table", "contacts"):
        with contextlib.suppress(RemoteProtocolError):
            changes.parse_untrusted(kind, _said(changes.parse_untrusted(kind, data)))
        with contextlib.suppress(RemoteProtocolError):
            for change in bridge_kamailio.read_untrusted(kind, "location", data, 0.0):
                _said(change)
        with contextlib.suppress(RemoteProtocolError):
            for change in bridge_opensips.read_untrusted(kind, "location", data):
                _said(change)


def _said(change: changes.Change) -> bytes:
    """Say a change in the words of each world; return our own."""
    with contextlib.suppress(RemoteProtocolError):  # what it has no word for
        bridge_opensips.write(change, 0.0)
    bridge_kamailio.write(change, 0.0)
    return changes.encode(change)


def certificate(data: bytes) -> None:
    """Files that should be certificates and a key are used, or refused by name."""
    directory = Path(tempfile.gettempdir()) / "clusternode-fuzz-pki"
    directory.mkdir(mode=0o700, exist_ok=True)
    section = TlsSection(
        certificate=directory / "n1.crt", key=directory / "n1.key", ca=directory / "ca.crt"
    )
    parts = [*data.split(SEPARATOR), b"", b""][:3]
    for path, part in zip((section.certificate, section.key, section.ca), parts, strict=True):
        path.write_bytes(part)
        path.chmod(0o600)
    with contextlib.suppress(ConfigError):
        Credentials(section, NodeId("n1"))
    with contextlib.suppress(ConfigError):
        authority.inspect(section.certificate)


SEPARATOR = b"\n=====\n"

TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "codec": codec,
    "session": session,
    "node": node,
    "opensips": opensips,
    "control": control,
    "config": config,
    "certificate": certificate,
    "bridge": bridge,
}


CORPUS = Path(__file__).parent / "corpus"


def corpus(name: str) -> list[bytes]:
    """What was found so far, one input a line, in hexadecimal."""
    file = CORPUS / f"{name}.hex"
    lines = file.read_text("ascii").splitlines() if file.exists() else []
    return [bytes.fromhex(line) for line in lines if not line.startswith("#")]


@functools.cache
def seeds(name: str) -> tuple[bytes, ...]:
    """What a run begins with: the golden vectors, and one of everything."""
    return tuple(_seeds(name))


def _seeds(name: str) -> Iterator[bytes]:
    from clusternode.config.text import sample
    from clusternode.control.requests import CALLS

    root = next(parent for parent in Path(__file__).parents if (parent / "pyproject.toml").exists())
    vectors = tomllib.loads((root / "tests" / "vectors" / "protocol.toml").read_text("utf-8"))
    frames = [
        bytes.fromhex(vector["hex"])
        for kind in ("message", "accepted", "refused")
        for vector in vectors[kind]
    ]
    match name:
        case "codec":
            yield from (frame[9:10] + frame[12:] for frame in (*frames, *_frames_of_stories()))
        case "session":
            for mode in (b"\0", b"\1", b"\2", b"\5"):
                for frame in (*frames, *_frames_of_stories()):
                    yield mode + b"".join(_led(frame))
        case "node":
            yield from (b"".join(_led(frame)) for frame in frames if frame[8:10] != b"\0\1")
            yield from map(_told, stories(len(encode(n1().hello()))))
        case "opensips":
            vectors_of = root / "tests" / "gateways" / "opensips" / "vectors"
            yield from (path.read_bytes() for path in sorted(vectors_of.glob("*.bin")))
        case "control":
            yield from (
                b'{"id":1,"method":"%s","params":{}}' % call.name.encode() for call in CALLS
            )
        case "bridge":
            yield b'{"action":"set","table":"t","key":"k","value":"v","ttl":1}'
            yield b'{"action":"update","aor":"alice","contact":"sip:alice@192.0.2.1","q":500}'
            yield b'{"action":"insert","collection":"location","key":"k","value":"v","ttl":1}'
            yield b'{"action":3,"htname":"location","cname":"k","type":0,"intval":1,"mode":0}'
            yield b'{"nodes":{"opensips":"9"},"done":["a"]}'
            yield b"text/plain;bridged=AAAAAAAAAABBBBB"
        case "certificate":
            with tempfile.TemporaryDirectory() as directory:
                path = Path(directory)
                authority.make_authority(path, "fuzz", 30)
                authority.issue(path, "n1", (), 30)
                names = ("n1.crt", "n1.key", "ca.crt")
                yield SEPARATOR.join((path / name).read_bytes() for name in names)
        case _:
            yield sample().encode()
            yield b'[cluster.a]\ntags={x="y"}\n[[route]]\non="request:a"\nexec=["./b"]\n'
            yield b"[channel.c]\n"


def _frames_of_stories() -> list[bytes]:
    """Return each frame of the stories once, in order."""
    told = stories(len(encode(n1().hello())))
    parts = (encode(part) for story in told for part in story if not isinstance(part, float))
    return list(dict.fromkeys(parts))


def _told(story: Story) -> bytes:
    """Return a story as the input of `node`: frames, and moments in which time passes."""
    pieces = (
        b"".join(_led(encode(part))) if not isinstance(part, float) else bytes([0, int(part * 10)])
        for part in story
    )
    return b"".join(pieces)


def _led(frame: bytes) -> Iterator[bytes]:
    for start in range(0, len(frame), 256):
        piece = frame[start : start + 256]
        yield bytes([len(piece) - 1]) + piece
