"""Whatever the gateway is told, what it sends is what every Kamailio parses and can hold."""

from __future__ import annotations

import re
from random import Random

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from clusternode.core.types import DeliveryId, RequestId, ResultCode
from clusternode.gateways.kamailio.effects import Answer, Arrived, Resolve, Send, Source
from clusternode.gateways.kamailio.node import KamailioNode
from clusternode.gateways.kamailio.settings import KamailioSettings
from clusternode.gateways.kamailio.translate import NamedAddress, PeerAddress

OWN = "10.0.0.99"
HOSTS = [f"10.0.0.{number}" for number in range(1, 35)]

# Written from the trap list of the reference and not from our code.
ACTIVE_LINE = (
    rb"sip:\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}:\d{1,5}(;transport=(tcp|tls))?;status=active\r\n"
)
LIST = re.compile(rb"(%b){0,28}sip:10\.0\.0\.99:5060;status=active\r\n" % ACTIVE_LINE)
LEAVE = re.compile(rb"sip:10\.0\.0\.99:5060;status=disabled\r\n")
HEADERS = (b"Via", b"To", b"From", b"CSeq", b"Call-ID", b"Content-Length", b"Max-Forwards")

statuses = st.sampled_from(
    ["active", "disabled", "pending", "timeout", "not_active", "Active", "", "activ", "x y"]
)
uris = st.one_of(
    st.sampled_from(HOSTS).map(lambda host: f"sip:{host}:5060"),
    st.sampled_from(
        [
            "sip:[::1]:5060", "sip:kam1.example.org:5060", "sip:10.0.0.1", "sip:u@10.0.0.1:5060",
            "sips:10.0.0.1:5061", "sip:10.0.0.2:5060;transport=tcp", "sip:255.255.255.255:5060",
            "sip:224.0.0.1:5060", "sip:0.0.0.0:5060", "sip:10.0.0.1:99999", "", "garbage",
            f"sip:{OWN}:5060", "sip:10.0.0.3:5060;x=y", "sip:10.0.0.4:5061;transport=tls",
        ]
    ),
)  # fmt: skip
lines = st.builds(lambda uri, status: f"{uri};status={status}" if status else uri, uris, statuses)
lists = st.builds(
    lambda many, end: end.join(many).encode(),
    st.lists(lines, max_size=40),
    st.sampled_from(["\r\n", "\n", "\r\n\r\n"]),
)
big_list = st.just("".join(f"sip:{host}:5060;status=active\r\n" for host in HOSTS).encode())
bodies = st.one_of(lists, big_list, st.binary(max_size=100), st.just(b'{"action":1}'))
channels = st.sampled_from(["notification_peer", "chan1", "htable", "usrloc", "Notification_Peer"])


class NeverHarm(RuleBasedStateMachine):
    """Feeds one gateway everything, and reads everything that it sends."""

    @initialize(
        seeds=st.lists(st.sampled_from([*HOSTS[:3], "kam1.example.org"]), max_size=3),
        multi_notify=st.booleans(),
        counts=st.booleans(),
    )
    def begin(self, seeds, multi_notify, counts) -> None:
        self.now = 1000.0
        self.number = 0
        self.asked: dict[bytes, bytes] = {}  # Call-ID of a request to us → its channel
        self.sent: list[Send] = []
        self.tickets: list[int] = []
        self.names: list[NamedAddress] = []
        self.node = KamailioNode(
            "kamailio",
            KamailioSettings(
                server_address=PeerAddress("udp", OWN, 5060),
                notification_address=tuple(NamedAddress("udp", host, 5060) for host in seeds),
                multi_notify=multi_notify,
                fail_count_enabled=counts,
                htables={"ht": 60},
            ),
            self.now,
            Random(1),
        )
        self.take(self.node.start(self.now))

    def take(self, wanted) -> None:
        for effect in wanted:
            match effect:
                case Send(data=data):
                    self.check_request(data)
                    self.sent.append(effect)
                case Answer(data=data):
                    self.check_answer(data)
                case Arrived(ticket=ticket):
                    self.tickets.append(ticket)
                case Resolve(name=name):
                    self.names.append(name)

    def check_request(self, data: bytes) -> None:
        head, separator, body = data.partition(b"\r\n\r\n")
        assert separator
        first, *rest = head.split(b"\r\n")
        found = dict(line.split(b": ", 1) for line in rest)
        assert all(name in found for name in HEADERS)
        assert int(found[b"Content-Length"]) == len(body)
        assert int(found[b"Max-Forwards"]) >= 1
        channel = first.removeprefix(b"KDMQ sip:").partition(b"@")[0]
        assert channel
        if channel == b"notification_peer":
            self.check_list(body)
            is_leave = LEAVE.fullmatch(body) is not None
            assert not body or LIST.fullmatch(body) or (is_leave and self.node.is_leaving)

    def check_list(self, body: bytes) -> None:
        used = 0
        for line in body.split(b"\r\n")[:-1]:
            uri = line.partition(b";status")[0]
            assert used + len(uri) + 32 <= 1024
            used += len(line) + 2

    def check_answer(self, data: bytes) -> None:
        head, separator, body = data.partition(b"\r\n\r\n")
        assert separator
        first, *rest = head.split(b"\r\n")
        found = dict(line.split(b": ", 1) for line in rest)
        assert int(found[b"Content-Length"]) == len(body)
        assert not first.startswith(b"SIP/2.0 408")
        if body:
            assert self.asked[found[b"Call-ID"]] == b"notification_peer"
            assert first == b"SIP/2.0 200 OK"
            assert found[b"Content-Type"] == b"text/plain"
            self.check_list(body)
            assert LIST.fullmatch(body)

    @rule(
        host=st.sampled_from(HOSTS),
        channel=channels,
        body=bodies,
        max_forwards=st.sampled_from(["0", "1", "2", "70", "x"]),
        method=st.sampled_from(["KDMQ", "KDMQ", "KDMQ", "REGISTER", "INVITE", "OPTIONS", "ACK"]),
        is_spoofed=st.booleans(),
        content_type=st.sampled_from(["text/plain", "text/x-clusternode-request", "a\x01b"]),
    )
    def receive(self, host, channel, body, max_forwards, method, is_spoofed, content_type) -> None:
        self.number += 1
        call_id = f"c{self.number}".encode()
        self.asked[call_id] = channel.encode() if method == "KDMQ" else b""
        head = (
            f"{method} sip:{channel}@{OWN}:5060 SIP/2.0\r\n"
            f"Via: SIP/2.0/UDP {host};branch=z9hG4bK{self.number}\r\n"
            f"To: <sip:{channel}@{OWN}:5060>\r\nFrom: <sip:{channel}@{host}:5060>;tag=x\r\n"
            f"CSeq: 10 {method}\r\nCall-ID: c{self.number}\r\nMax-Forwards: {max_forwards}\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        source = Source("192.0.2.66" if is_spoofed else host, 5060)
        self.take(self.node.receive(self.now, head.encode() + body, source))

    @rule(
        code=st.sampled_from([100, 200, 200, 200, 202, 404, 408, 500, 699]),
        body=bodies,
        data=st.data(),
    )
    def answer(self, code, body, data) -> None:
        if not self.sent:
            return
        self.answer_one(self.sent.pop(data.draw(st.integers(0, len(self.sent) - 1))), code, body)

    @rule(body=st.one_of(st.just(b""), big_list))
    def everybody_answers(self, body) -> None:
        waiting, self.sent = self.sent, []
        for sent in waiting:
            self.answer_one(sent, 200, body)

    def answer_one(self, sent: Send, code: int, body: bytes) -> None:
        head = sent.data.partition(b"\r\n\r\n")[0].split(b"\r\n")
        kept = [line for line in head[1:] if not line.startswith(b"Content-")]
        length = f"Content-Length: {len(body)}".encode()
        reply = b"\r\n".join([f"SIP/2.0 {code} X".encode(), *kept, length, b"", b""]) + body
        self.take(self.node.receive(self.now, reply, Source(sent.address.host, 5060)))

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 40.0]))
    def wait(self, seconds) -> None:
        until = self.now + seconds
        while (deadline := self.node.next_deadline()) is not None and deadline <= until:
            self.now = max(self.now, deadline)
            self.take(self.node.tick(self.now))
        self.now = until

    @rule(data=st.binary(max_size=200))
    def garbage(self, data) -> None:
        self.take(self.node.receive(self.now, data, Source("192.0.2.1", 1)))

    @rule(
        channel=st.sampled_from(["chan1", "htable"]),
        body=bodies,
        to=st.one_of(st.none(), st.lists(st.sampled_from(HOSTS).map("{}:5060".format), max_size=3)),
    )
    def publish(self, channel, body, to) -> None:
        self.number += 1
        self.take(
            self.node.publish(
                self.now, DeliveryId(self.number), channel, body, "text/plain", destinations=to
            )
        )

    @rule(body=bodies)
    def ask(self, body) -> None:
        self.number += 1
        self.take(
            self.node.ask(
                self.now, RequestId(self.number), "chan1", body, "x/y", 5.0, destinations=None
            )
        )

    @rule(code=st.sampled_from(list(ResultCode)))
    def finish(self, code) -> None:
        if self.tickets:
            self.take(self.node.finish(self.now, [(self.tickets.pop(), code)]))

    @rule(hosts=st.lists(st.sampled_from(HOSTS), max_size=3))
    def resolve(self, hosts) -> None:
        if self.names:
            name = self.names.pop()
            addresses = [PeerAddress("udp", host, 5060) for host in hosts]
            self.take(self.node.resolved(self.now, name, addresses))

    @rule()
    def send_fails(self) -> None:
        if self.sent:
            self.take(self.node.send_failed(self.now, self.sent[-1].branch))

    @rule()
    def leave(self) -> None:
        if self.number > 30 and not self.node.is_leaving:
            self.take(self.node.leave(self.now, lambda: None))

    @invariant()
    def everything_is_bounded(self) -> None:
        if hasattr(self, "node"):
            assert len(self.node.membership.members) <= 256
            assert len(self.names) <= 64 * 10


TestNeverHarm = NeverHarm.TestCase
TestNeverHarm.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
