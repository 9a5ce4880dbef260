"""The packet captures, replayed: our node in the place of one of the recorded ones.

It gets every datagram that the recorded node got, when that got it. What it sends itself is
answered as the recorded nodes answered then, or not at all where they were silent.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from random import Random

import attrs
import pytest

from clusternode.core.events import NodeStateChanged
from clusternode.core.sip_events import ContactReplicated, SipReplicated
from clusternode.core.types import ResultCode
from clusternode.gateways.kamailio.codec import SipRequest, SipResponse, parse_untrusted
from clusternode.gateways.kamailio.effects import Answer, Arrived, Effect, Raise, Send, Source
from clusternode.gateways.kamailio.node import KamailioNode
from clusternode.gateways.kamailio.settings import KamailioSettings
from clusternode.gateways.kamailio.translate import NamedAddress, PeerAddress

VECTORS = Path(__file__).resolve().parents[2] / "vectors" / "kamailio"
ALIVE_FOR = 6.0
"""A node that sends nothing for longer than a round of pings is dead."""


@attrs.frozen
class Datagram:
    at: float
    source: tuple[str, int]
    destination: tuple[str, int]
    data: bytes


def datagrams(path: Path) -> Iterator[Datagram]:
    """Read the UDP datagrams of a capture (libpcap format, Ethernet, IPv4, fragments joined)."""
    data = path.read_bytes()
    order = "<" if data[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
    at = 24
    while at < len(data):
        seconds, fraction, length, _ = struct.unpack_from(f"{order}IIII", data, at)
        packet = data[at + 16 : at + 16 + length]
        at += 16 + length
        if packet[12:14] != b"\x08\x00" or packet[23] != 17:
            continue
        start = 14 + (packet[14] & 15) * 4
        hosts = [".".join(map(str, packet[begin : begin + 4])) for begin in (26, 30)]
        ports = struct.unpack_from(">HH", packet, start)
        yield Datagram(
            seconds + fraction / 1e6,
            (hosts[0], ports[0]),
            (hosts[1], ports[1]),
            packet[start + 8 : 14 + struct.unpack_from(">H", packet, 16)[0]],
        )


class Replay:
    """Our node as `own` in the conversation of a capture."""

    def __init__(self, name: str, own: str, seeds: list[str]) -> None:
        self.recorded = list(datagrams(VECTORS / name))
        self.own = own
        self.now = self.recorded[0].at
        self.events: list[object] = []
        self.codes: dict[str, int] = {}  # Call-ID of a request to us → our answer
        self.answers = 0
        self.arrived: list[bytes] = []
        self.speaks: dict[str, list[float]] = {}  # host → when it sent something
        for each in self.recorded:
            self.speaks.setdefault(each.source[0], []).append(each.at)
        self.node = KamailioNode(
            "kamailio",
            KamailioSettings(
                server_address=PeerAddress("udp", own, 5060),
                notification_address=tuple(NamedAddress("udp", host, 5060) for host in seeds),
                htables={"ht": 3600},
            ),
            self.now,
            Random(1),
        )

    def run(self) -> None:
        self.take(self.node.start(self.now))
        for each in self.recorded:
            self.wait(each.at)
            if each.destination[0] != self.own:
                continue
            self.take(self.node.receive(self.now, each.data, Source(*each.source)))
        self.wait(self.now + 1)

    def wait(self, until: float) -> None:
        while (deadline := self.node.next_deadline()) is not None and deadline <= until:
            self.now = max(self.now, deadline)
            self.take(self.node.tick(self.now))
        self.now = until

    def take(self, wanted: list[Effect]) -> None:
        for effect in wanted:
            match effect:
                case Send():
                    self.answer(effect)
                case Answer(data=data):
                    answer = parse_untrusted(data)
                    assert isinstance(answer, SipResponse)
                    self.answers += 1
                    self.codes.setdefault(answer.headers["Call-ID"], answer.code)
                case Raise(event=event):
                    self.events.append(event)
                case Arrived(ticket=ticket, message=message):
                    self.arrived.append(message.body)
                    self.take(self.node.finish(self.now, [(ticket, ResultCode.OK)]))

    def answer(self, sent: Send) -> None:
        """Answer a request of ours as the recorded node did at that time."""
        host = sent.address.host
        if not any(self.now <= at <= self.now + ALIVE_FOR for at in self.speaks.get(host, ())):
            return
        request = parse_untrusted(sent.data)
        assert isinstance(request, SipRequest)
        body = self.list_of(host) if request.channel == "notification_peer" else b""
        head = [b"SIP/2.0 200 OK", *sent.data.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:5]]
        head += [
            f"Call-ID: {request.call_id}".encode(),
            b"Content-Length: %d" % len(body),
            b"",
            b"",
        ]
        answer = b"\r\n".join(head) + body
        self.take(self.node.receive(self.now, answer, Source(host, 5060)))

    def list_of(self, host: str) -> bytes:
        """Return the member list that a recorded node said last, by a request or an answer."""
        found = b""
        for each in self.recorded:
            if each.at > self.now:
                break
            if each.source[0] == host and b"sip:notification_peer@" in each.data[:400]:
                body = each.data.partition(b"\r\n\r\n")[2]
                found = body if b"status=" in body else found
        return found

    def requests_to_us(self) -> dict[str, SipRequest]:
        """Return Call-ID → request, of what the recorded node was asked by others."""
        found = {}
        for each in self.recorded:
            message = parse_untrusted(each.data) if each.destination[0] == self.own else None
            if isinstance(message, SipRequest) and each.source[0] != self.own:
                found[message.call_id] = message
        return found

    def statuses_of(self, host: str) -> list[str]:
        return [
            event.status
            for event in self.events
            if isinstance(event, NodeStateChanged) and event.node_id == f"{host}:5060"
        ]


CAPTURES = {
    "cluster-563-join-ping-channels-htable-clean-stop.pcap": ("127.0.5.3", ["127.0.5.1"]),
    "cluster-563-register-kill-return-seedloss.pcap": ("127.0.5.2", ["127.0.5.1"]),
    "cluster-563-foreign-agent-joins.pcap": ("127.0.5.4", ["127.0.5.1"]),
    "cluster-563-usrloc.pcap": ("127.0.5.3", ["127.0.5.1"]),
    "cluster-master-join-kill-flapping.pcap": ("127.0.6.1", []),
    "cluster-master-foreign-agent-slsend.pcap": ("127.0.6.1", []),
}


@pytest.fixture(scope="module", params=sorted(CAPTURES))
def replayed(request) -> Replay:
    own, seeds = CAPTURES[request.param]
    replay = Replay(request.param, own, seeds)
    replay.run()
    return replay


def test_every_recorded_request_is_answered_as_a_kamailio_would(replayed):
    unanswered = [
        request
        for call_id, request in replayed.requests_to_us().items()
        if call_id not in replayed.codes and request.method != "ACK"
    ]
    refused = {
        (request.method, request.channel, replayed.codes[call_id])
        for call_id, request in replayed.requests_to_us().items()
        if replayed.codes.get(call_id) != 200
    }

    assert unanswered == []
    # The user agents of the recordings were strangers: 403 for what is no copy of a node.
    assert {method for method, _, _ in refused} <= {"MESSAGE", "REGISTER", "KDMQ"}
    assert not any(channel in ("notification_peer", "htable") for _, channel, _ in refused)


def test_nothing_recorded_is_malformed_to_us(replayed):
    assert replayed.node.counters.malformed == 0


def test_who_was_killed_goes_once_and_does_not_flap():
    replay = Replay("cluster-master-join-kill-flapping.pcap", "127.0.6.1", [])
    replay.run()

    statuses = replay.statuses_of("127.0.6.3")
    killed = statuses.index("not_active")
    assert statuses[:killed] == ["active"]
    assert statuses[killed : killed + 3] == ["not_active", "disabled", "removed"]


def test_who_stopped_is_removed_and_the_others_stay():
    name = "cluster-563-join-ping-channels-htable-clean-stop.pcap"
    replay = Replay(name, "127.0.5.3", ["127.0.5.1"])
    replay.run()

    assert replay.statuses_of("127.0.5.1") == ["active"]
    assert replay.statuses_of("127.0.5.2") == ["active", "not_active", "disabled", "removed"]
    assert b"hello from n2" in replay.arrived
    assert len(replay.arrived) == len(set(replay.arrived))


def test_recorded_copies_and_contacts_become_events():
    registers = Replay("cluster-563-register-kill-return-seedloss.pcap", "127.0.5.1", ["127.0.5.2"])
    registers.run()
    contacts = Replay("cluster-563-usrloc.pcap", "127.0.5.3", ["127.0.5.1"])
    contacts.run()

    copies = [event for event in registers.events if isinstance(event, SipReplicated)]
    assert copies and copies[0].method == "REGISTER"
    assert copies[0].headers["Contact"] == ["<sip:alice@127.0.0.1:7777>"]
    seen = [event for event in contacts.events if isinstance(event, ContactReplicated)]
    assert {event.aor for event in seen if event.aor}
