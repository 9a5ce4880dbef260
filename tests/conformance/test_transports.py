"""Every transport does what `clusternode.testing.conformance` says."""

import pytest

from clusternode.core.types import Address
from clusternode.runtime.transport import TcpTransport
from clusternode.testing.conformance import TRANSPORT_CHECKS
from clusternode.testing.fakes import FakeResolver
from clusternode.testing.memory_transport import MemoryNetwork

TRANSPORTS = {
    "memory": lambda: (MemoryNetwork().transport("a"), Address("tcp", "a", 0)),
    "tcp-ipv4": lambda: (TcpTransport(FakeResolver()), Address("tcp", "127.0.0.1", 0)),
    "tcp-ipv6": lambda: (TcpTransport(FakeResolver()), Address("tcp", "::1", 0)),
}


@pytest.mark.parametrize("check", TRANSPORT_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", TRANSPORTS)
async def test_a_transport_keeps_its_promises(kind, check):
    transport, address = TRANSPORTS[kind]()
    await check(transport, address)
