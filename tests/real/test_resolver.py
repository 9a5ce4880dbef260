"""The resolver against a real DNS server."""

import signal

import dns.asyncbackend
import dns.asyncquery
import dns.flags
import dns.message
import pytest
import trio

from clusternode.core.types import Address
from clusternode.errors import ResolveError

pytestmark = pytest.mark.real

RECORDS = [
    "host-record=a.test,192.0.2.1,2001:db8::1",
    "host-record=b.test,192.0.2.2",
    "host-record=six.test,2001:db8::6",
    "cname=alias.test,a.test",
    "srv-host=_clusternode._tcp.test,b.test,5062,20,0",
    "srv-host=_clusternode._tcp.test,a.test,5063,10,5",
    "srv-host=_clusternode._tcp.test,b.test,5064,10,9",
    "srv-host=_lost._tcp.test,missing.test,5062,1,1",
    "txt-record=text.test,only text",
]


async def found(server, name, timeout=5.0):
    answers = await server.resolver(timeout).resolve(Address.parse(name))
    return [str(answer.address) for answer in answers]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tcp://b.test:7", ["tcp://192.0.2.2:7"]),
        ("tcp://a.test:7", ["tcp://192.0.2.1:7", "tcp://[2001:db8::1]:7"]),
        ("tcp://six.test:7", ["tcp://[2001:db8::6]:7"]),
        ("tcp://alias.test:7", ["tcp://192.0.2.1:7", "tcp://[2001:db8::1]:7"]),
    ],
)
async def test_a_host_has_all_its_addresses(dns_server, name, expected):
    await dns_server.start(RECORDS)

    assert await found(dns_server, name) == expected


async def test_a_service_has_the_priorities_and_weights_of_its_records(dns_server):
    await dns_server.start(RECORDS)

    answers = await dns_server.resolver().resolve(Address.parse("srv://_clusternode._tcp.test"))

    assert [(one.priority, one.weight, str(one.address)) for one in answers] == [
        (10, 9, "tcp://192.0.2.2:5064"),
        (10, 5, "tcp://192.0.2.1:5063"),
        (10, 5, "tcp://[2001:db8::1]:5063"),
        (20, 0, "tcp://192.0.2.2:5062"),
    ]


async def test_an_answer_too_long_for_a_datagram_is_asked_for_over_tcp(dns_server):
    count = 60
    await dns_server.start(
        [f"host-record=node-{number}.test,192.0.2.{number}" for number in range(count)]
        + [
            f"srv-host=_clusternode._tcp.test,node-{number}.test,5062,{number},1"
            for number in range(count)
        ]
    )
    query = dns.message.make_query("_clusternode._tcp.test", "SRV")
    datagram = await dns.asyncquery.udp(
        query,
        "127.0.0.1",
        port=dns_server.port,
        timeout=5.0,
        backend=dns.asyncbackend.get_backend("trio"),
    )
    assert datagram.flags & dns.flags.TC, "it did fit: this test shows nothing"

    addresses = await found(dns_server, "srv://_clusternode._tcp.test")

    assert addresses == [f"tcp://192.0.2.{number}:5062" for number in range(count)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tcp://missing.test:1", r"missing\.test \(A\): no such name"),
        ("srv://_missing._tcp.test", r"_missing\._tcp\.test \(SRV\): no such name"),
        ("srv://_lost._tcp.test", r"missing\.test \(A\): no such name"),
        ("tcp://text.test:1", r"text\.test \(A\): the name has no such record"),
        ("tcp://elsewhere.example:1", r"elsewhere\.example \(A\): no name server answers it"),
    ],
)
async def test_what_cannot_be_found_is_said_clearly(dns_server, name, text):
    await dns_server.start(RECORDS)

    with pytest.raises(ResolveError, match=text):
        await found(dns_server, name)


async def test_a_server_that_says_nothing_is_waited_for_until_the_timeout(dns_server):
    await dns_server.start(RECORDS)
    dns_server.send_signal(signal.SIGSTOP)
    began = trio.current_time()

    with pytest.raises(ResolveError, match=r"a\.test \(A\): no answer within 0\.5 s"):
        await found(dns_server, "tcp://a.test:1", timeout=0.5)

    assert trio.current_time() - began < 2.0
    dns_server.send_signal(signal.SIGCONT)
    assert await found(dns_server, "tcp://b.test:1") == ["tcp://192.0.2.2:1"]


async def test_a_server_that_is_gone_is_waited_for_until_the_timeout(dns_server):
    with pytest.raises(ResolveError, match=r"a\.test \(A\): no"):
        await found(dns_server, "tcp://a.test:1", timeout=0.5)


async def test_a_changed_answer_is_the_next_answer(dns_server):
    await dns_server.start([], hosts="192.0.2.1 moving.test\n")
    assert await found(dns_server, "tcp://moving.test:1") == ["tcp://192.0.2.1:1"]

    dns_server.change_hosts("192.0.2.2 moving.test\n")

    with trio.fail_after(5.0):
        while (await found(dns_server, "tcp://moving.test:1"))[0] != "tcp://192.0.2.2:1":  # noqa: ASYNC110
            await trio.sleep(0.02)
