"""Real parts: a DNS server, and hosts with network interfaces of their own."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clusternode.cli.local.fleet import Fleet
from tests.real.dns_server import DnsServer
from tests.real.hosts import Hosts


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet() as fleet:
        yield fleet


@pytest.fixture
def dns_server(require_program: Callable[[str], Path], tmp_path: Path) -> Iterator[DnsServer]:
    """A dnsmasq that is not started yet."""
    with DnsServer(require_program("dnsmasq"), tmp_path) as server:
        yield server


@pytest.fixture
def hosts(network_namespaces: Path) -> Iterator[Hosts]:
    """Four hosts on one switch, each a network namespace; they are gone afterwards."""
    try:
        hosts = Hosts(network_namespaces, f"cn-{os.getpid()}", 4)
    except subprocess.CalledProcessError as error:  # no bridge or veth in this kernel
        pytest.skip(f"hosts cannot be made here: {shlex.join(error.cmd)}: {error.stderr.strip()}")
    with hosts:
        yield hosts
