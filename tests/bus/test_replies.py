import pytest
import trio

from clusternode.bus.replies import REPLIES_WAITING_BYTES, REPLIES_WAITING_MAX, MeshReplies
from clusternode.core.effects import Outcome, Replied
from clusternode.core.types import NodeId, RequestId, ResultCode, Tag

N1, N2, N3 = NodeId("n1"), NodeId("n2"), NodeId("n3")


def reply_of(node_id, body=b"x"):
    return Replied(RequestId(1), node_id, Tag("t"), body, "text/plain", 200)


@pytest.fixture
def cancelled():
    return []


@pytest.fixture
def replies(cancelled):
    replies = MeshReplies(Tag("t"), 10.0, lambda: cancelled.append(True))
    replies.fix_asked([N1, N2, N3])
    return replies


async def test_replies_come_in_order_and_end_when_all_have_finished(replies, cancelled):
    replies.add(reply_of(N2, b"1"), 10.5)
    replies.add(reply_of(N1, b"2"), 11.0)
    for node_id in (N1, N2):
        replies.finish(node_id, Outcome.REPLIED, ResultCode.OK)
    replies.finish(N3, Outcome.FAILED, ResultCode.BUSY)
    replies.end()

    gathered = await replies.gather()

    assert [(reply.node_id, reply.body, reply.round_trip_s) for reply in gathered] == [
        (N2, b"1", 0.5),
        (N1, b"2", 1.0),
    ]
    outcomes = replies.outcomes
    assert [(outcomes[n].outcome, outcomes[n].replies) for n in replies.asked] == [
        (Outcome.REPLIED, 1),
        (Outcome.REPLIED, 1),
        (Outcome.FAILED, 0),
    ]
    assert cancelled == []


async def test_a_reader_is_woken_by_each_reply(replies, nursery, autojump_clock):
    async def answer():
        for number in range(3):
            await trio.sleep(1)
            replies.add(reply_of(N1, b"%d" % number), trio.current_time())
        replies.end()

    nursery.start_soon(answer)

    assert [reply.text async for reply in replies] == ["0", "1", "2"]


async def test_leaving_early_closes_the_request_and_names_everyone(replies, cancelled):
    replies.add(reply_of(N1), 11.0)
    replies.finish(N2, Outcome.NOTHING, ResultCode.OK)

    async with replies:
        pass

    assert cancelled == [True]
    assert {node_id: outcome.outcome for node_id, outcome in replies.outcomes.items()} == {
        N1: Outcome.REPLIED,
        N2: Outcome.NOTHING,
        N3: Outcome.UNANSWERED,
    }


async def test_cancelling_the_reader_closes_the_request(replies, cancelled, autojump_clock):
    with trio.move_on_after(1) as scope:
        await replies.gather()

    assert scope.cancelled_caught
    assert cancelled == [True]


async def test_the_first_reply_closes_the_request_once(replies, cancelled):
    replies.add(reply_of(N2, b"1"), 11.0)

    first = await replies.first()
    replies.close()

    assert first is not None
    assert first.body == b"1"
    assert cancelled == [True]


async def test_nobody_replied_is_none(replies, cancelled):
    replies.end()

    assert await replies.first() is None
    assert cancelled == []


async def test_replies_that_nobody_reads_are_bounded(replies):
    for _ in range(REPLIES_WAITING_MAX + 5):
        replies.add(reply_of(N1), 11.0)

    assert replies.dropped == 5


async def test_large_replies_that_nobody_reads_are_bounded_too(replies, caplog):
    body = bytes(REPLIES_WAITING_BYTES // 4)
    for _ in range(6):
        replies.add(reply_of(N1, body), 11.0)
    assert replies.dropped == 2
    assert len(caplog.records) == 1

    await anext(replies)
    replies.add(reply_of(N1, body), 11.0)
    replies.end()

    assert len(await replies.gather()) == 4
    assert replies.dropped == 2
