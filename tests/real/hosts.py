"""Hosts that are network namespaces (ip-netns(8)) on a switch, a bridge in one of its own.

Nothing is made in the namespace that the tests run in, so nothing can be left there.
"""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import Self

NETWORK = "10.73.0"
"""Private addresses (RFC 1918); seen by nobody outside these namespaces."""
BRIDGE = "switch"
COMMAND_TIMEOUT = 10.0


class Hosts:
    """Hosts number 1, 2 …; their address is `address(number)`.

    Raises:
        subprocess.CalledProcessError: They cannot be made; nothing is left of them.
    """

    def __init__(self, ip: Path, prefix: str, count: int) -> None:
        self._ip = ip
        self._prefix = prefix
        self._count = count
        self._switch = f"{prefix}-switch"
        try:
            self._make()
        except BaseException:
            self._remove()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def address(self, number: int) -> str:
        return f"{NETWORK}.{number}"

    def launcher(self, number: int) -> tuple[str, ...]:
        """What runs a command on a host; `ip` becomes that command."""
        return (str(self._ip), "netns", "exec", self._name(number))

    def cut(self, number: int) -> None:
        """Let all that comes from or goes to a host get lost, without a word to anyone.

        Its cable ends beside the switch: the link stays up, as behind a switch that fails.
        """
        self._run("-n", self._switch, "link", "set", f"port{number}", "nomaster")

    def heal(self, number: int) -> None:
        self._run("-n", self._switch, "link", "set", f"port{number}", "master", BRIDGE)

    def lose(self, number: int, share: float, iptables: Path) -> None:
        """Let a share of the packets that come to a host get lost, at random."""
        match = ("-m", "statistic", "--mode", "random", "--probability", str(share))
        self._on(number, str(iptables), "-w", "-A", "INPUT", *match, "-j", "DROP")

    def block(self, one: int, other: int, iptables: Path) -> None:
        """Let nothing pass between two hosts, without a word to anyone."""
        self._filter("-A", one, other, iptables)

    def unblock(self, one: int, other: int, iptables: Path) -> None:
        self._filter("-D", one, other, iptables)

    def _filter(self, act: str, one: int, other: int, iptables: Path) -> None:
        for number, source in ((one, other), (other, one)):
            rule = ("INPUT", "-s", self.address(source), "-j", "DROP")
            self._on(number, str(iptables), "-w", act, *rule)

    def narrow(self, number: int, rate: str, tc: Path) -> None:
        """Let all that a host sends leave it at `rate` (tc-tbf(8)), through a queue of a second."""
        queue = ("rate", rate, "burst", "4kb", "latency", "1s")
        self._on(number, str(tc), "qdisc", "add", "dev", "eth0", "root", "tbf", *queue)

    def _on(self, number: int, *command: str) -> None:
        self._run("netns", "exec", self._name(number), *command)

    def _name(self, number: int) -> str:
        return f"{self._prefix}-host{number}"

    def _make(self) -> None:
        switch = self._switch
        self._run("netns", "add", switch)
        self._run("-n", switch, "link", "add", BRIDGE, "type", "bridge")
        self._run("-n", switch, "link", "set", BRIDGE, "up")
        for number in range(1, self._count + 1):
            host, port = self._name(number), f"port{number}"
            self._run("netns", "add", host)
            pair = ("type", "veth", "peer", "name", "eth0", "netns", host)
            self._run("-n", switch, "link", "add", port, *pair)
            self._run("-n", switch, "link", "set", port, "master", BRIDGE, "up")
            self._run("-n", host, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
            self._run("-n", host, "link", "set", "lo", "up")
            self._run("-n", host, "link", "set", "eth0", "up")

    def _remove(self) -> None:
        names = [*(self._name(number) for number in range(1, self._count + 1)), self._switch]
        for name in names:
            with contextlib.suppress(subprocess.CalledProcessError):  # it was never made
                self._run("netns", "delete", name)

    def _run(self, *words: str) -> None:
        subprocess.run(
            [str(self._ip), *words],
            check=True,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT,
        )
