"""Two halves and a cable that is cut at any time: one true result each, handled at most once."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from clusternode.core.settings import ChannelSettings
from clusternode.core.types import OverflowPolicy, ResultCode
from clusternode.core.wire.messages import Message, Request
from tests.core.messaging.halves import Cable, Half

SIDES = st.sampled_from(["a", "b"])
CHANNELS = {
    "drop": ChannelSettings(overflow=OverflowPolicy.DROP_OLDEST),
    "wait": ChannelSettings(overflow=OverflowPolicy.WAIT),
}


class TwoHalves(RuleBasedStateMachine):
    """The model: what was sent, what was taken, what its handlers said."""

    def __init__(self) -> None:
        super().__init__()
        limits = {"window_bytes": 2000, "outbox_bytes": 4000, "body_size_max": 1000}
        self.halves = {name: Half(name, channels=CHANNELS, **limits) for name in "ab"}
        self.cable = Cable(self.halves["a"], self.halves["b"])
        self.cable.pump()
        self.sent: dict[bytes, tuple[str, int]] = {}  # body → (sender, delivery)
        self.requests: dict[tuple[str, int], int] = {}  # (asker, request) → replies of a 200
        self.outcomes: dict[bytes, ResultCode] = {}  # body of a message → what its handler said
        self.answers: dict[str, list[tuple[Half, str, int]]] = {}  # tag → replies given
        self.count = 0

    def other(self, name: str) -> str:
        return "b" if name == "a" else "a"

    @rule(
        name=SIDES,
        channel=st.sampled_from(["ch", "drop", "wait"]),
        sizes=st.lists(st.integers(10, 900), min_size=1, max_size=5),
    )
    def publish(self, name, channel, sizes):
        for size in sizes:
            self.count += 1
            body = b"%08d" % self.count + b"." * size
            delivery = self.halves[name].publish(self.other(name), body=body, channel=channel)
            self.sent[body] = (name, delivery)

    @rule(name=SIDES, timeout=st.sampled_from([0.5, 3.0, 10.0, 100.0]))
    def ask(self, name, timeout):
        request = self.halves[name].ask(self.other(name), timeout=timeout)
        self.requests[name, request] = 0

    @precondition(lambda self: self.requests)
    @rule(name=SIDES)
    def cancel_the_newest_request(self, name):
        open_ = [
            one for who, one in self.requests if who == name and one not in self.halves[name].ended
        ]
        if open_:
            self.halves[name].cancel(open_[-1])
            del self.requests[name, open_[-1]]

    @precondition(lambda self: any(half.to_handle for half in self.halves.values()))
    @rule(name=SIDES, replies=st.integers(0, 2), ok=st.booleans())
    def handle_one(self, name, replies, ok):
        half = self.halves[name] if self.halves[name].to_handle else self.halves[self.other(name)]
        origin, _, _, message = half.to_handle[0]
        code = ResultCode.OK if ok else ResultCode.FAILED
        if isinstance(message, Request):
            said = [half.answer(origin, message.tag, b"%d" % one) for one in range(replies)]
            self.answers[message.tag] = [(half, origin, one) for one in said]
        else:
            assert message.body not in self.outcomes
            self.outcomes[message.body] = code
        half.handle(1, code)

    @precondition(lambda self: self.cable.is_up)
    @rule(name=SIDES, bytes_max=st.sampled_from([1, 500, 100_000]))
    def write(self, name, bytes_max):
        self.cable.write(self.halves[name], bytes_max)

    @precondition(lambda self: self.cable.is_up)
    @rule(name=SIDES, count=st.integers(1, 5))
    def read(self, name, count):
        self.cable.read(self.halves[name], count)

    @precondition(lambda self: self.cable.is_up)
    @rule(name=SIDES)
    def exchange(self, name):
        self.cable.write(self.halves[name])
        self.cable.read(self.halves[self.other(name)])

    @rule()
    def pump(self):
        self.cable.pump()

    @precondition(lambda self: not self.cable.is_up)
    @rule(opens=st.booleans())
    def connect(self, opens):
        self.cable.begin()
        if opens:
            self.cable.read(self.halves["b"])
            self.cable.read(self.halves["a"])

    @precondition(lambda self: self.cable.is_up)
    @rule(blames=st.sampled_from([None, "a", "b"]))
    def cut(self, blames):
        self.cable.cut(blames=None if blames is None else self.halves[blames])

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 4.0, 16.0]))
    def wait(self, seconds):
        for half in self.halves.values():
            half.advance_to(half.now + seconds)

    @precondition(lambda self: not self.cable.is_up)
    @rule(name=SIDES)
    def the_member_is_removed(self, name):
        self.halves[name].gone(self.other(name))

    @rule(name=SIDES)
    def the_member_is_disabled(self, name):
        self.halves[name].disabled(self.other(name))

    @invariant()
    def the_books_balance(self):
        for half in self.halves.values():
            half.check()

    @invariant()
    def each_is_taken_at_most_once_and_in_order(self):
        for half in self.halves.values():
            for channel in ("ch", "drop", "wait"):
                bodies = [
                    message.body
                    for _, _, message in half.taken
                    if isinstance(message, Message) and message.channel == channel
                ]
                assert bodies == sorted(set(bodies))

    @invariant()
    def no_result_comes_twice_or_is_false(self):
        for body, (name, delivery) in self.sent.items():
            codes = self.halves[name].results.get((delivery, self.other(name)), [])
            assert len(codes) <= 1
            if codes and codes[0] is ResultCode.OK:
                assert self.outcomes[body] is ResultCode.OK

    def teardown(self):
        for _ in range(3):
            for half in self.halves.values():
                half.advance_to(half.now + 0.5)
            self.cable.pump()
        a, b = (self.halves[name].stream(self.other(name)) for name in "ab")
        assert a.sending.given == b.receiving.last_received
        assert b.sending.given == a.receiving.last_received
        for half in self.halves.values():
            half.advance_to(half.now + 200.0)
            half.check()
        self._check_results()
        for name, half in self.halves.items():
            half.advance_to(half.now + 200.0)
            stream = half.stream(self.other(name))
            assert not stream.sending.pending
            assert not stream.sending.asking
            assert not stream.waiting
        super().teardown()

    def _check_results(self):
        taken = {
            message.body
            for half in self.halves.values()
            for _, _, message in half.taken
            if isinstance(message, Message)
        }
        for body, (name, delivery) in self.sent.items():
            (code,) = self.halves[name].results[delivery, self.other(name)]
            if code is ResultCode.OK:
                assert self.outcomes[body] is ResultCode.OK
            if code.definite:
                assert body not in taken
        for name, request in self.requests:
            half = self.halves[name]
            assert half.ended.count(request) == 1
            ((_, outcome, final),) = half.finished[request]
            replies = half.replies.get(request, [])
            if final == ResultCode.OK:
                assert outcome == ("replied" if replies else "nothing")
                for answerer, origin, delivery in self.answers[f"{name}-{request}"]:
                    # No reply was overtaken by the end of its request.
                    assert answerer.results[delivery, origin] != [ResultCode.NOT_FOUND]


TestTwoHalves = TwoHalves.TestCase
TestTwoHalves.settings = settings(max_examples=60, stateful_step_count=80, deadline=None)
