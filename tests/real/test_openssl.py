"""TLS against a program that nobody here wrote: `openssl s_client` and `openssl s_server`."""

import contextlib
import shutil
import socket
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import pytest
import trio

from clusternode.agent import Agent
from tests.agents import agent_settings, eventually, start
from tests.certificates import Pki

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl"),
]

TIME_LIMIT = 20.0


@pytest.fixture(scope="module")
def pki():
    with tempfile.TemporaryDirectory() as directory:
        yield Pki(Path(directory) / "pki")


@pytest.fixture(scope="module")
def stranger():
    with tempfile.TemporaryDirectory() as directory:
        yield Pki(Path(directory) / "pki")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@contextlib.asynccontextmanager
async def agent(pki, port, *, seeds=()):
    settings = agent_settings(
        "n1", f"tls://127.0.0.1:{port}", seeds, insecure=False, tls=pki.node("n1")
    )
    async with trio.open_nursery() as nursery:
        with trio.fail_after(TIME_LIMIT):
            yield await start(nursery, Agent(settings, has_control=False))
        nursery.cancel_scope.cancel()


async def s_client(port, *options):
    """Run `openssl s_client` until the connection ends; return what it wrote."""
    command = [
        "openssl",
        "s_client",
        "-connect",
        f"127.0.0.1:{port}",
        "-brief",
        "-ign_eof",
        *map(str, options),
    ]
    done = await trio.run_process(
        command,
        stdin=b"this is no HELLO",
        capture_stdout=True,
        check=False,
        stderr=subprocess.STDOUT,
    )
    return done.stdout.decode("utf-8", "replace")


def certificate(section):
    return ["-cert", section.certificate, "-key", section.key]


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
async def test_the_right_certificate_gets_as_far_as_the_hello(pki, caplog, version):
    port = free_port()
    async with agent(pki, port):
        output = await s_client(
            port, *certificate(pki.node("n2")), "-CAfile", pki.ca, "-verify_return_error", version
        )

        assert "Verification: OK" in output
        assert version[-3:].replace("_", ".") in output
        assert "CLN1" in output  # our CLOSE came through
        await eventually(lambda: "magic b'this'" in caplog.text)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("expired", "certificate refused: certificate has expired"),
        ("wrong CA", "certificate refused: unable to get local issuer certificate"),
        ("none", "it showed no certificate"),
        ("old version", "a version of TLS that is too old"),
        ("clear text", "it does not speak TLS"),
    ],
)
async def test_whoever_has_no_right_to_come_in_is_refused_with_the_reason_in_the_log(
    pki, stranger, caplog, kind, reason
):
    port = free_port()
    async with agent(pki, port) as running:
        if kind == "clear text":
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(b"CLN1" + bytes(40))
            output = await stream.receive_some(4096)
            await stream.aclose()
        else:
            options = {
                "expired": lambda: certificate(pki.node("n2") and pki.expire("n2")),
                "wrong CA": lambda: certificate(stranger.node("n2")),
                "none": list,
                "old version": lambda: [
                    *certificate(pki.node("n2")),
                    "-tls1_1",
                    "-cipher",
                    "DEFAULT@SECLEVEL=0",
                ],
            }[kind]()
            output = await s_client(port, *options)
        await eventually(lambda: "handshake with 127.0.0.1" in caplog.text)

        assert f"TLS: {reason}" in caplog.text
        assert "CLN1" not in str(output)
        assert running.bus.snapshot().counters["authentications_failed"] == 1


@contextlib.asynccontextmanager
async def s_server(section, *options):
    """Run `openssl s_server` with a certificate; yield its port."""
    port = free_port()
    command = [
        "openssl",
        "s_server",
        "-accept",
        f"127.0.0.1:{port}",
        "-quiet",
        *certificate(section),
    ]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            partial(
                trio.run_process,
                [*map(str, command), *map(str, options)],
                stdin=subprocess.PIPE,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
        )
        with trio.fail_after(TIME_LIMIT):
            while True:
                try:
                    await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
                    break
                except OSError:
                    await trio.sleep(0.02)
            yield port
        process.kill()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("expired", "TLS: certificate refused: certificate has expired"),
        ("wrong CA", "TLS: certificate refused: "),
        ("old version", "TLS: the other side takes no such old version of TLS"),
        ("wants another CA", "TLS: the other side does not know the authority"),
    ],
)
async def test_a_server_that_is_not_ours_is_not_talked_to(pki, stranger, caplog, kind, reason):
    section = {
        "expired": lambda: pki.node("n2") and pki.expire("n2"),
        "wrong CA": lambda: stranger.node("n2"),
        "old version": lambda: pki.node("n2"),
        "wants another CA": lambda: pki.node("n2"),
    }[kind]()
    options = {
        "old version": ["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"],
        "wants another CA": ["-Verify", "3", "-verify_return_error", "-CAfile", stranger.ca],
    }.get(kind, [])
    async with (
        s_server(section, *options) as port,
        agent(pki, free_port(), seeds=[f"tls://127.0.0.1:{port}"]) as running,
    ):
        await eventually(lambda: running.bus.snapshot().counters["authentications_failed"] > 0)

        assert [line for line in caplog.messages if line.startswith("dialled tls://")]
        assert reason in caplog.text
        assert running.statuses() == {"n1": "active"}


def test_the_certificates_pass_openssls_strictest_check(pki):
    pki.node("n2")
    for name in ("n2.crt",):
        for purpose in ("sslserver", "sslclient"):
            subprocess.run(
                [
                    "openssl",
                    "verify",
                    "-x509_strict",
                    "-purpose",
                    purpose,
                    "-CAfile",
                    pki.ca,
                    pki.directory / name,
                ],
                check=True,
                capture_output=True,
            )
