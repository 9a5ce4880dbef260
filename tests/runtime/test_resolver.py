"""The resolver against a small DNS server on loopback; a real one is used by the `real` tests."""

import contextlib

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
import trio

from clusternode.core.types import Address
from clusternode.errors import ConfigError, ResolveError
from clusternode.runtime.resolver import (
    DnsResolver,
    parse_nameserver,
    read_hosts_file,
)

ZONE = {
    ("a.example.", "A"): ["192.0.2.2", "192.0.2.1"],
    ("a.example.", "AAAA"): ["2001:db8::1"],
    ("b.example.", "A"): ["192.0.2.3"],
    ("_cn._tcp.example.", "SRV"): [
        "20 0 5063 b.example.",
        "10 5 5062 a.example.",
        "10 9 5064 b.example.",
        "30 0 5065 missing.example.",
    ],
    ("_none._tcp.example.", "SRV"): ["0 0 0 ."],
    ("_lost._tcp.example.", "SRV"): ["0 0 1 missing.example."],
    ("empty.example.", "TXT"): ['"only text"'],
}


@contextlib.asynccontextmanager
async def dns_server(rcode=None):
    """Answers from `ZONE`, or everything with one error."""
    sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    await sock.bind(("127.0.0.1", 0))

    async def serve():
        while True:
            data, sender = await sock.recvfrom(4096)
            query = dns.message.from_wire(data)
            response = dns.message.make_response(query)
            response.flags |= dns.flags.RA
            question = query.question[0]
            name, kind = question.name.to_text(), question.rdtype.name
            if rcode is not None:
                response.set_rcode(rcode)
            elif (name, kind) in ZONE:
                rrset = dns.rrset.from_text(name, 5, "IN", kind, *ZONE[name, kind])
                response.answer.append(rrset)
            elif not any(known == name for known, _ in ZONE):
                response.set_rcode(dns.rcode.NXDOMAIN)
            await sock.sendto(response.to_wire(), sender)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield f"127.0.0.1:{sock.getsockname()[1]}"
        nursery.cancel_scope.cancel()
    sock.close()


@pytest.fixture
async def server():
    async with dns_server() as nameserver:
        yield nameserver


def resolver_at(server, tmp_path, hosts="", timeout=2.0):
    file = tmp_path / "hosts"
    file.write_text(hosts)
    return DnsResolver([server], hosts_file=file, timeout=timeout)


async def test_a_host_has_its_ipv4_addresses_first_and_in_a_fixed_order(server, tmp_path):
    answers = await resolver_at(server, tmp_path).resolve(Address.parse("tcp://a.example:7"))

    assert [str(answer.address) for answer in answers] == [
        "tcp://192.0.2.1:7",
        "tcp://192.0.2.2:7",
        "tcp://[2001:db8::1]:7",
    ]


async def test_a_service_has_the_targets_priorities_and_weights_of_its_records(server, tmp_path):
    answers = await resolver_at(server, tmp_path).resolve(Address.parse("srv://_cn._tcp.example"))

    found = [(answer.priority, answer.weight, str(answer.address)) for answer in answers]
    assert found == [
        (10, 9, "tcp://192.0.2.3:5064"),
        (10, 5, "tcp://192.0.2.1:5062"),
        (10, 5, "tcp://192.0.2.2:5062"),
        (10, 5, "tcp://[2001:db8::1]:5062"),
        (20, 0, "tcp://192.0.2.3:5063"),
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tcp://missing.example:1", r"missing\.example \(A\): no such name"),
        ("tcp://empty.example:1", r"empty\.example \(A\): the name has no such record"),
        ("srv://_none._tcp.example", "no such service"),
        ("srv://_lost._tcp.example", r"missing\.example \(A\): no such name"),
        ("srv://_cn._udp.example", r"_cn\._udp\.example \(SRV\): no such name"),
    ],
)
async def test_what_cannot_be_found_is_said_clearly(server, tmp_path, name, text):
    with pytest.raises(ResolveError, match=text):
        await resolver_at(server, tmp_path).resolve(Address.parse(name))


async def test_a_server_that_fails_is_said_clearly(tmp_path):
    async with dns_server(dns.rcode.SERVFAIL) as server:
        with pytest.raises(ResolveError, match="no name server answers it"):
            await resolver_at(server, tmp_path).resolve(Address.parse("tcp://a.example:1"))


@pytest.mark.slow
async def test_a_server_that_is_dead_is_said_clearly(tmp_path):
    async with dns_server() as server:
        pass

    with pytest.raises(ResolveError, match=r"a\.example \(A\): no"):
        await resolver_at(server, tmp_path, timeout=0.3).resolve(Address.parse("tcp://a.example:1"))


async def test_numbers_localhost_and_the_hosts_file_need_no_server(tmp_path):
    hosts = "2001:db8::5 edge-1 # comment\n192.0.2.5\tEdge-1.example edge-1\nnonsense edge-2\n"
    resolver = resolver_at("127.0.0.1:9", tmp_path, hosts)

    async def hosts_of(text):
        return [answer.address.host for answer in await resolver.resolve(Address.parse(text))]

    assert await hosts_of("tcp://192.0.2.9:1") == ["192.0.2.9"]
    assert await hosts_of("tcp://[2001:db8::9]:1") == ["2001:db8::9"]
    assert await hosts_of("tcp://localhost:1") == ["127.0.0.1", "::1"]
    assert await hosts_of("tcp://EDGE-1:1") == ["192.0.2.5", "2001:db8::5"]
    assert await hosts_of("tcp://edge-1.example:1") == ["192.0.2.5"]


def test_a_hosts_file_that_is_missing_is_empty(tmp_path):
    assert read_hosts_file(tmp_path / "hosts") == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", ("192.0.2.1", 53)),
        ("192.0.2.1:5353", ("192.0.2.1", 5353)),
        ("2001:db8::1", ("2001:db8::1", 53)),
        ("[2001:db8::1]:5353", ("2001:db8::1", 5353)),
    ],
)
def test_name_servers_are_numbers_with_or_without_a_port(text, expected):
    assert parse_nameserver(text) == expected


@pytest.mark.parametrize("text", ["", "dns.test", "192.0.2.1:0", "192.0.2.1:x", "192.0.2.1:65536"])
def test_other_name_servers_are_refused(text):
    with pytest.raises(ConfigError, match="nameservers"):
        parse_nameserver(text)
