"""A real Kamailio on a loopback address, and what a user agent says to it.

For `clusternode demo --bridge` and for tests; Kamailio itself must be installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import trio

MODULE_PLACES = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib",
    "/usr/lib64",
)
SHARED_MEMORY_MB = 512
"""With the default of 64 a node that sends a thousand messages a second loses its own."""
TLS_CONFIG = """
[server:default]
method = TLSv1.2+
verify_certificate = yes
require_certificate = yes
private_key = {directory}/key.pem
certificate = {directory}/certificate.pem
ca_list = {directory}/ca.pem
[client:default]
method = TLSv1.2+
verify_certificate = yes
require_certificate = yes
private_key = {directory}/key.pem
certificate = {directory}/certificate.pem
ca_list = {directory}/ca.pem
"""


def program() -> str | None:
    return shutil.which("kamailio", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def modules() -> Path:
    for place in MODULE_PLACES:
        found = Path(place) / "kamailio" / "modules"
        if found.is_dir():
            return found
    raise AssertionError("no directory of Kamailio's modules")


@attrs.define(eq=False)
class Kamailio:
    """One node; `directory` is its own. Each @NAME@ in `text` is filled in."""

    host: str
    directory: Path
    seed: str = ""
    transport: str = "udp"
    port: int = 5060
    text: str = ""
    """Its configuration, a kamailio.cfg."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def node_id(self) -> str:
        name = f"{self.host}:{self.port}"
        return name if self.transport == "udp" else f"{self.transport}:{name}"

    @property
    def uri(self) -> str:
        parameter = "" if self.transport == "udp" else f";transport={self.transport}"
        return f"sip:{self.host}:{self.port}{parameter}"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def start(self) -> None:
        program_path = program()
        assert program_path is not None
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        (self.directory / "kamailio.cfg").write_text(self._config())
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(program_path, "-f", str(self.directory / "kamailio.cfg"), "-DD", "-E"),
                    *("-m", str(SHARED_MEMORY_MB), "-M", "8"),
                    *("-P", str(self.directory / "pid"), "-Y", str(self.directory)),
                ],
                cwd=self.directory,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def _config(self) -> str:
        tls = ""
        if self.transport == "tls":
            tls_config = TLS_CONFIG.format(directory=self.directory.parent / "tls")
            (self.directory / "tls.cfg").write_text(tls_config)
            tls = 'loadmodule "tls.so"\nmodparam("tls", "config", "@RUN@/tls.cfg")'
        seed = f'modparam("dmq", "notification_address", "{self.seed}")' if self.seed else ""
        text = self.text
        for name, value in {
            "TCP": {"udp": "disable_tcp=yes", "tcp": "tcp_children=2", "tls": "enable_tls=yes"}[
                self.transport
            ],
            "LISTEN": f"{self.transport}:{self.host}:{self.port}",
            "MPATH": str(modules()),
            "TLS": tls,
            "RUN": str(self.directory),
            "ADDRESS": self.uri,
            "SEED": seed,
        }.items():
            text = text.replace(f"@{name}@", value)
        return text

    def stop(self) -> None:
        """Let it end by itself; kill it only where it does not."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process = None

    def kill(self) -> None:
        """Kill all its processes at once, as a crash of the host would."""
        if self.process is None:
            return
        children = self._children()
        for pid in (self.process.pid, *children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        self.process.wait()
        self.process = None

    def _children(self) -> list[int]:
        assert self.process is not None
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def cpu_seconds(self) -> float:
        """Return what all its processes have used (proc(5), utime and stime)."""
        assert self.process is not None
        ticks = 0
        for pid in (self.process.pid, *self._children()):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def rpc(self, method: str, *params: object, timeout: float = 5.0) -> Any:  # noqa: ANN401  # JSON
        """Call its JSON-RPC (module jsonrpcs, datagram socket)."""
        own = self.directory / f"rpc-{secrets.token_hex(4)}"
        request = {"jsonrpc": "2.0", "method": method, "params": params, "id": 1}
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.settimeout(timeout)
            client.bind(str(own))
            try:
                client.sendto(json.dumps(request).encode(), str(self.directory / "rpc.sock"))
                answer = json.loads(client.recv(65_536))
            finally:
                own.unlink()
        return answer.get("result", answer.get("error"))

    def nodes(self) -> Mapping[str, str]:
        """Return host → status of its dmq.list_nodes."""
        listed = self.rpc("dmq.list_nodes")
        rows = listed if isinstance(listed, list) else [listed]
        return {row["host"]: row["status"] for row in rows}

    def cell(self, table: str, key: str) -> Any:  # noqa: ANN401  # text or a number
        """Return the value of a cell of a shared table; None where there is none."""
        result = self.rpc("htable.get", table, key)
        item = result.get("item") if isinstance(result, dict) else None
        return None if item is None else item["value"]

    def flush(self, table: str) -> None:
        self.rpc("htable.flush", table)


class UserAgent:
    """Sends SIP requests to Kamailios over UDP, each once, and waits for the answer."""

    def __init__(self, own: str = "127.0.0.1") -> None:
        self.socket = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.own = own

    async def send(
        self,
        method: str,
        user: str,
        node: Kamailio,
        body: bytes = b"",
        *,
        from_user: str = "tester",
        headers: Mapping[str, str] | None = None,
        timeout: float = 5.0,
    ) -> int:
        """Return the code of the final answer; 408 where none came."""
        call_id = secrets.token_hex(16)
        host, port = self.socket.getsockname()
        more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        head = (
            f"{method} sip:{user}@{node.host}:{node.port} SIP/2.0\r\n"
            f"Via: SIP/2.0/UDP {host}:{port};branch=z9hG4bK{call_id[:12]}\r\n"
            f"From: <sip:{from_user}@{host}>;tag={call_id[:8]}\r\n"
            f"To: <sip:{user}@{node.host}:{node.port}>\r\n"
            f"Call-ID: {call_id}\r\nCSeq: 1 {method}\r\nMax-Forwards: 70\r\n{more}"
            f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        await self.socket.sendto(head.encode() + body, (node.host, node.port))
        with trio.move_on_after(timeout):
            while True:
                data, _ = await self.socket.recvfrom(65_536)
                if call_id.encode() in data:
                    return int(data.split(b" ", 2)[1])
        return 408
