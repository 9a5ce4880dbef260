"""What single back ends do with peers that answer in their own way."""

from __future__ import annotations

import contextlib
import json
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from clusternode.backends.http import HttpBackend
from clusternode.backends.stream import _Replies
from clusternode.errors import RemoteProtocolError
from clusternode.testing.backends import backend_world
from tests.conformance.backend_peers import HttpPeer, ProgramPeer, free_port

EVENT = "E_TEST"


async def serve(nursery, answer):
    """Run a TCP server that gives each line to `answer(line)`; return (port, lines)."""
    lines: list[dict] = []
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def talk(stream):
        buffer = b""
        async for data in stream:
            buffer += data
            *complete, buffer = buffer.split(b"\n")
            for line in complete:
                lines.append(json.loads(line))
                reply = answer(lines[-1])
                if reply is None:
                    await stream.aclose()
                    return
                await stream.send_all(reply)

    nursery.start_soon(trio.serve_listeners, talk, [listener])
    return listener.socket.getsockname()[1], lines


async def test_method_and_event_param_are_put_into_the_message(nursery):
    port, lines = await serve(nursery, lambda line: b"")
    async with backend_world() as world:
        world.subscribe(EVENT, f"tcp:127.0.0.1:{port}/state.changed?event_param=event")
        await world.deliver(EVENT, {"a": 1})
        await world.deliver(EVENT, [1])
        while len(lines) < 2:  # noqa: ASYNC110  # the peer is another task
            await trio.sleep(0.001)
    nursery.cancel_scope.cancel()

    assert lines == [
        {"jsonrpc": "2.0", "method": "state.changed", "params": {"a": 1, "event": EVENT}},
        {"jsonrpc": "2.0", "method": "state.changed", "params": [EVENT, 1]},
    ]


@pytest.mark.parametrize(
    ("answer", "said", "definite"),
    [
        (b'{"jsonrpc":"2.0","id":%d,"error":{"code":1,"message":"no room"}}', "no room", True),
        (b"nonsense", "no JSON object", False),
        (b'{"a":"' + b"x" * 70_000, "a reply of more than", False),
        (b"{\xff", "not UTF-8", False),
        (b"", "no reply for 0.2 s", False),
        (b'{"id":999999,"result":1}', "no reply for 0.2 s", False),
        (None, "closed the connection", False),
    ],
)
async def test_an_answer_that_is_none_is_a_failure(nursery, answer, said, definite):
    def reply(line):
        return answer % line["id"] if answer and b"%d" in answer else answer

    port, _ = await serve(nursery, reply)
    async with backend_world() as world:
        world.subscribe(EVENT, f"tcp:127.0.0.1:{port}?reliable_mode=1&timeout=0.2")
        (status,) = await world.deliver(EVENT, [1])
    nursery.cancel_scope.cancel()

    assert not status.status.ok
    assert said in status.status.detail
    assert status.status.definite is definite


def test_replies_survive_any_chopping():
    data = '{"id":1,"result":"é"} {"id":2,"error":"x"}\n{"id":3}{"method":"n"}'.encode()
    for size in range(1, len(data)):
        replies = _Replies()
        found = []
        for start in range(0, len(data), size):
            found += replies.receive_data_untrusted(data[start : start + size])
        assert [(number, status.ok) for number, status in found] == [
            (1, True),
            (2, False),
            (3, True),
        ]


def test_what_is_nested_too_deeply_is_refused():
    with pytest.raises(RemoteProtocolError):
        _Replies().receive_data_untrusted(b'{"a":' * 60_000)


@pytest.mark.parametrize(("status", "definite"), [("404 Not Found", True), ("500 Oops", False)])
async def test_a_status_of_http_that_is_not_2xx_is_a_failure(nursery, status, definite):
    peer = HttpPeer(nursery)
    peer.status = status
    await peer.start()
    async with backend_world() as world:
        world.subscribe(EVENT, peer.uri)
        (told,) = await world.deliver(EVENT, [1])
    await peer.stop()

    assert told.status.detail == f"it answered {status}"
    assert told.status.definite is definite


@pytest.fixture
def certificate(tmp_path):
    """Make a certificate for 127.0.0.1 that is its own authority; return its and the key's file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (tmp_path / "key.pem").write_bytes(pem)
    return tmp_path / "cert.pem", tmp_path / "key.pem"


@pytest.mark.slow
async def test_https_trusts_the_authority_that_is_given_and_no_other(nursery, certificate):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    (plain,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = plain.socket.getsockname()[1]
    requests: list[bytes] = []

    async def talk(stream):
        with contextlib.suppress(trio.BrokenResourceError):
            requests.append(await stream.receive_some(65536))
            await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            await stream.receive_some(65536)

    nursery.start_soon(trio.serve_listeners, talk, [trio.SSLListener(plain, context)])
    async with backend_world() as world:
        world.subscribe(EVENT, f"https://127.0.0.1:{port}/#ca={certificate[0]}&bearer=t%20k")
        (trusted,) = await world.deliver(EVENT, [1])
        world.subscribe("E_OTHER", f"https://127.0.0.1:{port}/#timeout=2.0")
        (refused,) = await world.deliver("E_OTHER", [1])
    nursery.cancel_scope.cancel()

    assert trusted.status.ok, trusted
    assert b"authorization: bearer t k" in requests[0].lower()
    assert not refused.status.ok
    assert "certificate" in refused.status.detail.lower()


def test_secrets_of_http_are_not_shown():
    backend = HttpBackend("//user:pass@127.0.0.1/x#bearer=hush", None)  # type: ignore[arg-type]  # needs no services

    assert "hush" in backend.identity
    assert "pass" not in backend.shown
    assert "hush" not in backend.shown


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["import sys", "sys.exit('out of paper')"], "exit status 1: out of paper"),
        (["import sys", "sys.exit(75)"], "busy"),
        (["import time", "while True: pass"], "killed after 0.5 s"),
        (["print('x' * 100000)"], "bytes of output"),
    ],
)
@pytest.mark.slow
async def test_a_program_that_fails_says_why(tmp_path, lines, said):
    peer = ProgramPeer(tmp_path)
    await peer.start()
    program = tmp_path / "take"
    program.write_text("\n".join([program.read_text().splitlines()[0], *lines]))
    async with backend_world() as world:
        world.subscribe(EVENT, f"{peer.uri}?timeout=0.5")
        (told,) = await world.deliver(EVENT, [1])

    assert not told.status.ok
    assert said in told.status.detail


async def test_a_datagram_that_is_too_long_fails_alone():
    async with backend_world() as world:
        world.subscribe(EVENT, f"udp:127.0.0.1:{free_port()}")
        (long,) = await world.deliver(EVENT, ["x" * 70_000])
        (short,) = await world.deliver(EVENT, ["x"])

    assert "too long" in long.status.detail
    assert short.status.ok
