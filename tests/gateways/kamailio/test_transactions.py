"""Transactions under lost, doubled and reordered datagrams."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from clusternode.gateways.kamailio.transactions import (
    MEMORY,
    T2,
    ClientTransactions,
    ServerTransactions,
)

TIMEOUT = 30.0
WIRE_LIFETIME = MEMORY - TIMEOUT
"""No network of ours keeps a datagram for longer."""


def test_copies_go_out_as_kamailio_sends_them():
    client: ClientTransactions[str] = ClientTransactions()
    client.open(100.0, "b", "KDMQ", b"x", "context", deadline=130.0)
    sent = [0.0]
    timed_out = []
    while (deadline := client.next_deadline()) is not None:
        due = client.due(deadline)
        sent += [deadline - 100.0 for _ in due.again]
        timed_out += [deadline - 100.0 for _ in due.timed_out]

    assert sent == [0, 0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5]
    assert timed_out == [30.0]


def test_nothing_is_sent_again_over_a_stream():
    client: ClientTransactions[str] = ClientTransactions()
    client.open(0.0, "b", "KDMQ", b"x", "c", deadline=30.0, is_reliable=True)

    assert client.next_deadline() == 30.0
    assert len(client.due(30.0).timed_out) == 1


def test_a_provisional_answer_ends_nothing_and_slows_the_copies_down():
    client: ClientTransactions[str] = ClientTransactions()
    client.open(0.0, "b", "KDMQ", b"x", "c", deadline=30.0)

    assert client.answer("b", "KDMQ", 100) is None
    assert len(client.due(0.5).again) == 1
    assert client.next_deadline() == 0.5 + T2
    ended = client.answer("b", "KDMQ", 200)
    assert ended is not None and ended.context == "c"


def test_an_answer_of_another_method_is_none_of_ours():
    client: ClientTransactions[str] = ClientTransactions()
    client.open(0.0, "b", "KDMQ", b"x", "c", deadline=30.0)

    assert client.answer("b", "REGISTER", 200) is None
    assert client.late == 1
    assert len(client) == 1


def test_the_oldest_requests_are_forgotten_where_a_bound_is_reached():
    server = ServerTransactions(count_max=3, answer_bytes_max=10)
    for key in range(5):
        assert server.is_new(0.0, key)
    assert len(server) == 3
    assert not server.is_new(0.0, 4)
    server.answered(3, b"12345678")
    server.answered(4, b"12345678")
    assert server.answer_to(3) is None
    assert server.answer_to(4) == b"12345678"
    assert server.is_new(MEMORY + 1, 4)


class LossyPair(RuleBasedStateMachine):
    """A client and a server with a wire between them that loses, doubles and reorders.

    Whatever the wire does: the server handles each request at most once, the client ends each
    exactly once, and what it is told was answered was handled.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.client: ClientTransactions[int] = ClientTransactions()
        self.server = ServerTransactions()
        self.requests: list[tuple[int, float]] = []  # on the wire, and since when
        self.answers: list[int] = []
        self.opened = 0
        self.handled: dict[int, int] = {}
        self.waiting: list[int] = []  # being handled
        self.ended: dict[int, str] = {}

    @rule()
    def send(self) -> None:
        number = self.opened
        self.opened += 1
        self.client.open(self.now, f"b{number}", "KDMQ", b"", number, deadline=self.now + TIMEOUT)
        self.requests.append((number, self.now))

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), fate=st.sampled_from(["deliver", "lose", "double"]))
    def carry_request(self, data, fate) -> None:
        number, sent_at = self.requests.pop(data.draw(st.integers(0, len(self.requests) - 1)))
        if fate == "double":
            self.requests.append((number, sent_at))
        if fate == "lose" or self.now - sent_at > WIRE_LIFETIME:
            return
        if self.server.is_new(self.now, number):
            self.handled[number] = self.handled.get(number, 0) + 1
            self.waiting.append(number)
        elif self.server.answer_to(number) is not None:
            self.answers.append(number)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def finish(self, data) -> None:
        number = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        self.server.answered(number, b"200")
        self.answers.append(number)

    @precondition(lambda self: self.answers)
    @rule(data=st.data(), fate=st.sampled_from(["deliver", "lose", "double"]))
    def carry_answer(self, data, fate) -> None:
        number = self.answers.pop(data.draw(st.integers(0, len(self.answers) - 1)))
        if fate == "double":
            self.answers.append(number)
        if fate == "lose":
            return
        transaction = self.client.answer(f"b{number}", "KDMQ", 200)
        if transaction is not None:
            assert number not in self.ended
            assert self.handled[number] == 1
            self.ended[number] = "answered"

    @rule(seconds=st.floats(0.01, 5.0))
    def wait(self, seconds) -> None:
        until = self.now + seconds
        while (deadline := self.client.next_deadline()) is not None and deadline <= until:
            self.now = max(self.now, deadline)
            due = self.client.due(self.now)
            self.requests += [(transaction.context, self.now) for transaction in due.again]
            for transaction in due.timed_out:
                assert transaction.context not in self.ended
                self.ended[transaction.context] = "timed out"
        self.now = until

    @invariant()
    def each_request_is_open_or_ended_and_handled_at_most_once(self) -> None:
        assert len(self.client) + len(self.ended) == self.opened
        assert all(count == 1 for count in self.handled.values())


TestLossyPair = LossyPair.TestCase
TestLossyPair.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
