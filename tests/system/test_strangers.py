"""What bytes that are no protocol do to a live agent: close that connection, and nothing else."""

import socket
import struct

import msgpack
import pytest
import trio

from clusternode.core.types import Incarnation, NodeId
from clusternode.core.wire.codec import encode
from clusternode.core.wire.framing import HEADER, MAGIC
from clusternode.core.wire.messages import Close, CloseReason, Hello, Resume
from clusternode.core.wire.session import PROTOCOL_MAX, PROTOCOL_MIN, Session
from tests.system.command_line import CLUSTER, HEALTH, PATIENCE, clusternode, counter, log_of, sees

pytestmark = pytest.mark.slow

STRANGER = "127.0.0.99"
"""Another address than the agents', so that it can be found in their logs."""
NONCE = bytes(range(16))


def hello(**changes):
    values = {
        "cluster": CLUSTER,
        "node_id": NodeId("stranger"),
        "incarnation": Incarnation(1),
        "nonce": NONCE,
        "protocol_min": PROTOCOL_MIN,
        "protocol_max": PROTOCOL_MAX,
        "address": f"tcp://{STRANGER}:5062",
        "body_size_max": 1024,
        "window_bytes": 64 * 1024,
    }
    return encode(Hello(**{**values, **changes}))


async def told(agent, *parts):
    """Say something to an agent from a raw socket; return the CLOSE that ends the connection.

    Each part is said when the one before was answered.
    """
    session = Session.dial(Hello(CLUSTER, NodeId("x"), Incarnation(1), NONCE, 1, 1, "", 0, 0))
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with trio.fail_after(PATIENCE), sock:
        await sock.bind((STRANGER, 0))
        await sock.connect((agent.host, agent.port))
        waiting, closes = list(parts), []
        await sock.send(waiting.pop(0))
        while answer := await sock.recv(65536):
            if waiting:
                await sock.send(waiting.pop(0))
            messages = session.receive_data_untrusted(answer)
            closes += [message for message in messages if isinstance(message, Close)]
        return session.peer_close or closes[0]


BEFORE_THE_HANDSHAKE = {
    "wrong magic": (b"GET / HTTP/1.1\r\n\r\n", "magic b'GET '"),
    "too long": (HEADER.pack(MAGIC, 2**31, 1, 0), "frame of 2147483648 bytes"),
    "too short": (HEADER.pack(MAGIC, 3, 1, 0), "frame of 3 bytes"),
    "garbage in it": (HEADER.pack(MAGIC, 12 + 4, 1, 0) + b"\xc1\xff\xc1\xff", ""),
    "not a HELLO": (encode(Close(0)).replace(struct.pack(">H", Close.TYPE), b"\0\x07", 1), ""),
    "another cluster": (hello(cluster="other"), "cluster other"),
    "a later version": (hello(protocol_min=900, protocol_max=901), "versions 900 to 901"),
}
AFTER_THE_HANDSHAKE = {
    "wrong magic": (b"\xff" * 64, "magic"),
    "too long": (HEADER.pack(MAGIC, 2**31, 1, 0), "frame of 2147483648 bytes"),
    "garbage in it": (HEADER.pack(MAGIC, 12 + 3, 8, 0) + b"\xc1\xff\xc1", ""),
    "a second HELLO": (hello(), "a second HELLO"),
}


async def test_bytes_that_are_no_protocol_disturb_nobody(fleet):
    n1, n2 = (
        fleet.add(node_id, cluster=CLUSTER, sections={"health": HEALTH}) for node_id in ("n1", "n2")
    )
    await fleet.start()
    opened = counter(n1, "connections_opened")
    lost = counter(n2, "connections_lost")

    for data, text in BEFORE_THE_HANDSHAKE.values():
        close = await told(n1, data)
        assert text in close.detail, close
    assert counter(n1, "handshakes_failed") == len(BEFORE_THE_HANDSHAKE)
    for data, text in AFTER_THE_HANDSHAKE.values():
        close = await told(n1, hello(), data)
        assert text in close.detail, close
    assert counter(n1, "peers_misbehaved") == len(AFTER_THE_HANDSHAKE)

    lines = [line for line in log_of(n1).splitlines() if STRANGER in line and "WARNING" in line]
    assert len([line for line in lines if "handshake with" in line]) == 1
    assert len([line for line in lines if "broke the protocol" in line]) == 1
    assert counter(n1, "connections_opened") == opened + len(AFTER_THE_HANDSHAKE)
    assert counter(n2, "connections_lost") == lost
    await sees(fleet, n2, n1="active")
    shown = await clusternode("nodes", "show", "-c", str(n1.config))
    assert "handshakes_failed" in shown.output


async def test_a_message_of_an_unknown_type_is_counted_and_passed_over(lone):
    unknown = msgpack.packb([1, 2, 3])
    frame = HEADER.pack(MAGIC, HEADER.size + len(unknown), 999, 0) + unknown

    close = await told(lone, hello(), encode(Resume(0, 1)) + frame + b"\xff" * 64)

    assert "magic" in close.detail  # what came before was read and is no fault
    assert counter(lone, "unknown_types") == 1


async def test_who_says_nothing_is_closed_in_time(lone):
    before = counter(lone, "handshakes_failed")

    close = await told(lone, MAGIC)

    assert close.reason == CloseReason.HANDSHAKE_TIMEOUT
    assert counter(lone, "handshakes_failed") == before + 1
