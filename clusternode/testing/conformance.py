"""What every `Transport` must do, as checks that a test suite runs over each of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from clusternode.core.inputs import DialFailure
from clusternode.core.types import Address
from clusternode.errors import AddressInUse
from clusternode.runtime.transport import DialError, Listener, Transport, Wire

TIMEOUT: Final = 5.0
MANY_BYTES: Final = 3 * 1024 * 1024
"""More than any buffer between the two ends holds."""


async def _connected(transport: Transport, address: Address) -> tuple[Listener, Wire, Wire]:
    listener = await transport.listen(address)
    dialed = await transport.dial(listener.address, TIMEOUT)
    return listener, dialed, await listener.accept()


async def _close(listener: Listener, *wires: Wire) -> None:
    for wire in wires:
        await wire.stream.aclose()
    await listener.aclose()


async def bytes_arrive_in_both_directions(transport: Transport, address: Address) -> None:
    """What one end sends, the other receives."""
    listener, dialed, accepted = await _connected(transport, address)
    for one, other in ((dialed, accepted), (accepted, dialed)):
        await one.stream.send_all(b"hello")
        assert bytes(await other.stream.receive_some(100)) == b"hello"
    await _close(listener, dialed, accepted)


async def a_large_write_waits_for_its_reader(transport: Transport, address: Address) -> None:
    """Back-pressure, and nothing is lost, reordered or read beyond the limit given."""
    listener, dialed, accepted = await _connected(transport, address)
    data = bytes(range(256)) * (MANY_BYTES // 256)
    received = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dialed.stream.send_all, data)
        while len(received) < len(data):
            part = await accepted.stream.receive_some(4096)
            assert 0 < len(part) <= 4096
            received += part
    assert received == data
    await _close(listener, dialed, accepted)


async def closing_is_seen_after_the_last_byte(transport: Transport, address: Address) -> None:
    """What was written before the end still arrives."""
    listener, dialed, accepted = await _connected(transport, address)
    await dialed.stream.send_all(b"bye")
    await dialed.stream.aclose()
    assert bytes(await accepted.stream.receive_some(100)) == b"bye"
    assert not await accepted.stream.receive_some(100)
    await _close(listener, accepted)


async def half_closing_leaves_the_other_direction_open(
    transport: Transport, address: Address
) -> None:
    """A farewell can be read while the other side still writes."""
    listener, dialed, accepted = await _connected(transport, address)
    assert isinstance(dialed.stream, trio.abc.HalfCloseableStream)
    await dialed.stream.send_eof()
    assert not await accepted.stream.receive_some(100)
    await accepted.stream.send_all(b"still here")
    assert bytes(await dialed.stream.receive_some(100)) == b"still here"
    await _close(listener, dialed, accepted)


async def a_dial_to_nobody_is_refused(transport: Transport, address: Address) -> None:
    """REFUSED says that the host is there and the process is not."""
    listener = await transport.listen(address)
    free = listener.address
    await listener.aclose()
    try:
        await transport.dial(free, TIMEOUT)
    except DialError as error:
        caught = error
    else:
        raise AssertionError("a dial to where nobody listens succeeded")
    assert caught.failure is DialFailure.REFUSED
    assert str(free) in str(caught)


async def an_address_is_listened_on_once(transport: Transport, address: Address) -> None:
    """The second listener learns that, and what of, something is in its way."""
    listener = await transport.listen(address)
    try:
        await transport.listen(listener.address)
    except AddressInUse as error:
        caught = error
    else:
        raise AssertionError("two listeners on one address")
    finally:
        await listener.aclose()
    assert str(listener.address) in str(caught)
    await (await transport.listen(listener.address)).aclose()  # free again


async def remotes_are_named_with_their_port(transport: Transport, address: Address) -> None:
    """`remote` is `host:port`, and the dialler's is the address that was dialled."""
    listener, dialed, accepted = await _connected(transport, address)
    assert dialed.remote.endswith(f":{listener.address.port}")
    assert accepted.remote.rpartition(":")[2].isdecimal()
    assert accepted.remote_host
    await _close(listener, dialed, accepted)


async def closing_a_listener_keeps_its_connections(transport: Transport, address: Address) -> None:
    """Who is connected stays connected."""
    listener, dialed, accepted = await _connected(transport, address)
    await listener.aclose()
    await accepted.stream.send_all(b"x")
    assert bytes(await dialed.stream.receive_some(1)) == b"x"
    await _close(listener, dialed, accepted)


TRANSPORT_CHECKS: Final[tuple[Callable[[Transport, Address], Awaitable[None]], ...]] = (
    bytes_arrive_in_both_directions,
    a_large_write_waits_for_its_reader,
    closing_is_seen_after_the_last_byte,
    half_closing_leaves_the_other_direction_open,
    a_dial_to_nobody_is_refused,
    an_address_is_listened_on_once,
    remotes_are_named_with_their_port,
    closing_a_listener_keeps_its_connections,
)
"""Each takes a transport and an address with port 0, and raises AssertionError."""
