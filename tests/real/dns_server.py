"""A real DNS server: dnsmasq on a free port of loopback, with records that can be replaced."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import trio

from clusternode.cli.local.fleet import LOOPBACK, free_port
from clusternode.core.types import Address
from clusternode.errors import ResolveError
from clusternode.runtime.resolver import DnsResolver

READY = "ready.test"
READY_TIMEOUT = 0.1
"""Short, as nothing tells that a question came before the server was there."""
PATIENCE = 10.0
CONFIG = """\
port={port}
listen-address={host}
bind-interfaces
no-resolv
no-hosts
local=/test/
local-ttl=0
addn-hosts={hosts}
host-record={ready},{host}
"""


class DnsServer:
    """Knows the names below `test` that it was given, and no others."""

    def __init__(self, program: Path, directory: Path) -> None:
        self._program = program
        self._config = directory / "dnsmasq.conf"
        self._hosts = directory / "dnsmasq.hosts"
        self._log = directory / "dnsmasq.log"
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def nameserver(self) -> str:
        return f"{LOOPBACK}:{self._port}"

    @property
    def port(self) -> int:
        return self._port

    def resolver(self, timeout: float = 5.0) -> DnsResolver:
        return DnsResolver([self.nameserver], hosts_file=Path("/nonexistent"), timeout=timeout)

    async def start(self, records: Sequence[str], hosts: str = "") -> None:
        """Start it with lines of its configuration and of its hosts file; again: replace them."""
        self.kill()
        self._hosts.write_text(hosts)
        text = CONFIG.format(port=self._port, host=LOOPBACK, hosts=self._hosts, ready=READY)
        self._config.write_text(text + "\n".join(records) + "\n")
        self._launch()
        with trio.move_on_after(PATIENCE):
            while not await self._is_ready():
                if self._has_ended():
                    break
                await trio.sleep(0.02)
            else:
                return
        raise AssertionError(f"dnsmasq does not answer; its log:\n{self._log.read_text()}")

    def _launch(self) -> None:
        command = [str(self._program), "--no-daemon", f"--conf-file={self._config}"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    async def _is_ready(self) -> bool:
        try:
            await self.resolver(READY_TIMEOUT).resolve(Address("tcp", READY, 1))
        except ResolveError:
            return False
        return True

    def change_hosts(self, hosts: str) -> None:
        """Replace the hosts file as an operator does, with SIGHUP."""
        self._hosts.write_text(hosts)
        self.send_signal(signal.SIGHUP)

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "it does not run"
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
