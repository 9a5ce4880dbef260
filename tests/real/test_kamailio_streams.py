"""The bus over TCP and TLS, and the whole agent with its command line, beside a real Kamailio."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from clusternode.core.types import ResultCode
from clusternode.gateways.kamailio.translate import PeerAddress
from tests.real.kamailio_bus import Bus, Kamailio, stopped_at_the_end, until, user_agent
from tests.real.test_kamailio import body_of, counts, flush, joined, missing, statuses

pytestmark = pytest.mark.real

HOST = "127.0.5.11"


@pytest.fixture
def directory() -> Iterator[Path]:
    missing()
    made = Path(tempfile.mkdtemp(prefix="cnk-"))
    yield made
    shutil.rmtree(made)


def make_certificates(directory: Path) -> None:
    """Make a CA, and one certificate that all nodes of the test share."""
    directory.mkdir()

    def openssl(words: str) -> None:
        subprocess.run(["openssl", *words.split()], cwd=directory, check=True, capture_output=True)

    openssl("req -x509 -newkey rsa:2048 -nodes -keyout ca-key.pem -out ca.pem -subj /CN=bus")
    openssl("req -newkey rsa:2048 -nodes -keyout key.pem -out request.pem -subj /CN=node")
    openssl(
        "x509 -req -in request.pem -CA ca.pem -CAkey ca-key.pem -CAcreateserial"
        " -out certificate.pem -days 2"
    )


@pytest.mark.parametrize("transport", ["tcp", "tls"])
async def test_the_bus_over_streams(directory, transport):
    own = PeerAddress(transport, "127.0.5.14", 5080)
    more = {}
    if transport == "tls":
        make_certificates(directory / "tls")
        more = {
            "tls_certificate": directory / "tls" / "certificate.pem",
            "tls_key": directory / "tls" / "key.pem",
            "tls_ca": directory / "tls" / "ca.pem",
        }
    node = Kamailio(HOST, directory / "node", transport=transport, port=5080)
    with stopped_at_the_end(Bus([node])) as bus:
        await bus.start()
        async with joined(bus, own=own, leaves=True, **more) as ours:
            await until(lambda: statuses(ours).get(transport) == "active", 5.0)
            await until(lambda: node.nodes().get(own.host) == "active", 5.0)
            flush(bus)

            sent = [ours.bus.broadcast("chan1", body_of(f"m{n}")) for n in range(100)]
            codes = [await each for each in sent]
            assert codes == [{node.node_id: ResultCode.OK}] * 100
            assert counts(node) == (100, 100, 0)
            await ours.bus.htable("ht").set("k", "over a stream")
            assert node.cell("ht", "k") == "over a stream"
            node.rpc("htable.sets", "ht", "k", "theirs")
            await until(lambda: ours.bus.htable("ht").get("k") == "theirs", 3.0)
        await until(lambda: node.nodes().get(own.host, "disabled") == "disabled", 3.0)


CONFIG = """
[node]
id = "agent"
address = "tcp://127.0.5.15:5062"
control_socket = "agent.sock"
[routes]
file = "routes.py"
[gateway.kamailio]
server_address = "sip:127.0.5.15:5060"
notification_address = ["sip:127.0.5.11:5060"]
htables = { ht = 3600 }
"""
ROUTES = """
from clusternode import routes

@routes.message("chan1", via="kamailio")
async def heard(message):
    await message.cluster("kamailio").htable("ht").set("heard", message.text.upper())

@routes.event("peer:*", via="kamailio")
def note(event):
    print(event.name, event.node_id, flush=True)
"""


def start_agent(directory: Path) -> subprocess.Popen[bytes]:
    """Run an agent on `node.toml`; what it prints goes to `out`."""
    command = [sys.executable, "-m", "clusternode", "run", "-c", str(directory / "node.toml")]
    with (directory / "out").open("wb") as out:
        return subprocess.Popen(command, stdout=out)


async def test_the_agent_is_a_node_with_routes_and_command_line(directory):
    (directory / "node.toml").write_text(CONFIG)
    (directory / "routes.py").write_text(ROUTES)
    program = [sys.executable, "-m", "clusternode"]
    configured = ["-c", str(directory / "node.toml")]
    kamailio = Kamailio(HOST, directory / "node")

    async def run(*words: str) -> str:
        ran = await trio.run_process([*program, *words, *configured], capture_stdout=True)
        return ran.stdout.decode()

    with stopped_at_the_end(Bus([kamailio])) as bus:
        await bus.start()
        assert "all well" in await run("config", "check")
        agent = start_agent(directory)
        try:
            await until(lambda: kamailio.nodes().get("127.0.5.15") == "active", 15.0)
            listed = await run("nodes", "list", "--cluster", "kamailio")
            sent = await run("broadcast", "--cluster", "kamailio", "chan1", body_of("hello"))
            asked = await run("request", "--cluster", "kamailio", "ask", "who?")
            async with user_agent() as caller:
                assert await caller.send("MESSAGE", "bcast", kamailio, b"hello") == 200
            await until(lambda: kamailio.cell("ht", "heard") == "HELLO", 3.0)
        finally:
            agent.send_signal(signal.SIGTERM)
            await trio.to_thread.run_sync(agent.wait, 10)

        assert "127.0.5.11:5060   active" in listed
        assert "200" in sent and "202" in asked
        assert kamailio.nodes().get("127.0.5.15", "disabled") == "disabled"
        assert "E_CLUSTERNODE_PEER_UP 127.0.5.11:5060" in (directory / "out").read_text()
        assert agent.returncode == 0


EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples" / "kamailio"
EXAMPLE_CONFIG = """
[node]
id = "agent"
address = "tcp://127.0.5.24:5062"
control_socket = "agent.sock"
[routes]
file = "routes.py"
[gateway.kamailio]
server_address = "sip:127.0.5.24:5060"
notification_address = ["sip:127.0.5.21:5060"]
htables = { blocked = 3600 }
"""
RPC = """loadmodule "jsonrpcs.so"
modparam("jsonrpcs", "transport", 6)
modparam("jsonrpcs", "dgram_socket", "@RUN@/rpc.sock")

request_route {"""


async def test_the_pair_of_examples_does_what_the_page_says(directory):
    (directory / "node.toml").write_text(EXAMPLE_CONFIG)
    shutil.copy(EXAMPLES / "routes.py", directory)
    text = (EXAMPLES / "kamailio.cfg").read_text().replace("request_route {", RPC, 1)
    kamailio = Kamailio("127.0.5.21", directory / "node", text=text)

    with stopped_at_the_end(Bus([kamailio])) as bus:
        await bus.start()
        agent = start_agent(directory)
        try:
            await until(lambda: kamailio.nodes().get("127.0.5.24") == "active", 15.0)
            async with user_agent() as caller:
                contact = {"Contact": "<sip:bob@127.0.0.1:7777>"}
                assert await caller.send("REGISTER", "bob", kamailio, headers=contact) == 200
                await trio.sleep(0.3)
                assert await caller.send("INVITE", "bob", kamailio, from_user="alice") == 404
                cells = lambda: str(kamailio.rpc("htable.dump", "answers"))  # noqa: E731
                await until(lambda: "<sip:bob@127.0.0.1:7777>" in cells(), 3.0)
                for _ in range(101):
                    await caller.send("INVITE", "bob", kamailio, from_user="mallory")
                await until(lambda: kamailio.cell("blocked", "mallory") is not None, 3.0)
                assert await caller.send("INVITE", "bob", kamailio, from_user="mallory") == 403
        finally:
            agent.send_signal(signal.SIGTERM)
            await trio.to_thread.run_sync(agent.wait, 10)
