import errno
import os
import socket
import sys

import pytest
import trio

from clusternode.core.inputs import DialFailure, ResolvedAddress
from clusternode.core.types import Address
from clusternode.errors import AddressInUse, ConfigError
from clusternode.runtime.listening import process_listening_on
from clusternode.runtime.transport import DialError, TcpTransport, dial_error, numeric_remote
from clusternode.testing.fakes import FakeResolver

ANY = Address("tcp", "127.0.0.1", 0)


@pytest.mark.parametrize(
    ("number", "failure"),
    [
        (errno.ECONNREFUSED, DialFailure.REFUSED),
        (errno.ETIMEDOUT, DialFailure.TIMEOUT),
        (errno.EHOSTUNREACH, DialFailure.UNREACHABLE),
        (errno.ENETUNREACH, DialFailure.UNREACHABLE),
        (errno.EPERM, DialFailure.UNREACHABLE),
    ],
)
def test_errors_of_connect_are_translated_by_table(number, failure):
    error = dial_error(ANY, OSError(number, os.strerror(number)))

    assert error.failure is failure
    assert str(ANY) in str(error)


async def test_a_name_without_an_address_is_unresolved():
    transport = TcpTransport(FakeResolver())

    with pytest.raises(DialError, match="nowhere") as caught:
        await transport.dial(Address("tcp", "nowhere", 1), 1.0)

    assert caught.value.failure is DialFailure.UNRESOLVED


async def test_the_second_address_of_a_name_is_tried_when_the_first_refuses():
    resolver = FakeResolver()
    transport = TcpTransport(resolver)
    listener = await transport.listen(ANY)
    name = Address("tcp", "both", listener.address.port)
    resolver.table[str(name)] = [
        ResolvedAddress(Address("tcp", "::1", name.port)),
        ResolvedAddress(listener.address),
    ]

    wire = await transport.dial(name, 5.0)

    assert wire.remote == f"127.0.0.1:{name.port}"
    await wire.stream.aclose()
    await (await listener.accept()).stream.aclose()
    await listener.aclose()


async def test_a_dial_ends_at_its_timeout(autojump_clock):
    class SlowResolver(FakeResolver):
        async def resolve(self, name):
            await trio.sleep_forever()

    with pytest.raises(DialError, match="within 2 s") as caught:
        await TcpTransport(SlowResolver()).dial(Address("tcp", "slow", 1), 2.0)

    assert caught.value.failure is DialFailure.TIMEOUT


async def test_an_address_in_use_names_the_process_in_the_way():
    transport = TcpTransport(FakeResolver())
    listener = await transport.listen(ANY)

    with pytest.raises(AddressInUse, match=f"process {os.getpid()} "):
        await transport.listen(listener.address)

    await listener.aclose()


def test_a_port_that_nobody_has_is_another_process():
    assert process_listening_on(0) == "another process"


async def test_an_address_of_another_host_cannot_be_listened_on():
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        await TcpTransport(FakeResolver()).listen(Address("tcp", "192.0.2.1", 0))


async def test_connections_do_not_wait_for_more_and_notice_dead_hosts():
    transport = TcpTransport(FakeResolver())
    listener = await transport.listen(ANY)

    wire = await transport.dial(listener.address, 5.0)

    assert isinstance(wire.stream, trio.SocketStream)
    sock = wire.stream.socket
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    await wire.stream.aclose()
    await listener.aclose()


@pytest.mark.parametrize(
    ("host", "written"),
    [
        ("10.0.0.1", "10.0.0.1:5"),
        ("::1", "[::1]:5"),
        ("::ffff:10.0.0.1", "10.0.0.1:5"),
        ("fe80::1%eth0", "[fe80::1%eth0]:5"),
    ],
)
def test_the_other_end_is_written_as_people_write_it(host, written):
    assert numeric_remote(host, 5) == written


async def test_an_encrypted_address_is_never_used_in_clear_text():
    transport = TcpTransport(FakeResolver())
    address = Address("tls", "127.0.0.1", 1)

    with pytest.raises(DialError, match="cannot encrypt"):
        await transport.dial(address, 1.0)
    with pytest.raises(ConfigError, match="cannot encrypt"):
        await transport.listen(address)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
async def test_the_kernel_tells_how_far_our_bytes_have_come():
    transport = TcpTransport(FakeResolver())
    listener = await transport.listen(ANY)
    wire = await transport.dial(listener.address, 5.0)
    accepted = await listener.accept()

    with trio.move_on_after(0.05):
        while True:  # nobody reads, so the buffers fill
            await wire.stream.send_all(b"x" * 65536)
    progress = wire.progress()
    assert progress is not None
    assert progress.arrived_bytes > 0 and progress.waiting_bytes > 0

    await accepted.stream.receive_some(progress.arrived_bytes)
    await wire.stream.aclose()
    assert wire.progress() is None
    await accepted.stream.aclose()
    await listener.aclose()
