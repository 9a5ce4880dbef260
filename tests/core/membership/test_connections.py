"""Which of several connections of one pair of nodes is kept, and what follows from its end."""

from __future__ import annotations

from clusternode.core.effects import Disconnect, Settle, Write
from clusternode.core.events import DuplicateId, NodeStateChanged, PeerMisbehaved
from clusternode.core.inputs import (
    Disconnected,
    FramesReceived,
    Leave,
    Publish,
    TimePassed,
    WriteReady,
)
from clusternode.core.membership.health import Health
from clusternode.core.membership.links import CONTROL_BYTES_MAX, WAITING_LINKS_MAX
from clusternode.core.settings import DiscoverySettings
from clusternode.core.types import (
    ChannelName,
    ConnectionId,
    DeliveryId,
    Incarnation,
    NodeId,
    ResultCode,
)
from clusternode.core.wire.limits import ENTRIES_MAX, STRANGERS_MAX
from clusternode.core.wire.messages import (
    Ack,
    Close,
    CloseReason,
    List,
    Message,
    Ping,
    Pong,
    Proof,
    Record,
    Records,
    Results,
    Resume,
    Run,
    Unknown,
    Want,
    WireMessage,
)
from tests.core.harness import Lone, address_of, hello_of, ids, record_of


def closed_for(lone: Lone, connection: ConnectionId) -> int | None:
    close = lone.closed[connection]
    return None if close is None else close.reason


def test_the_smaller_id_says_resume_first_and_the_answer_opens():
    lone = Lone()
    connection = lone.connect("n9")
    assert lone.of_type(Resume, connection) == [Resume(0, 1)]

    lone.receive(connection, Resume(0, 1))

    assert lone.is_open("n9")


def test_the_larger_id_waits_for_resume_and_answers_it():
    lone = Lone()
    connection = lone.connect("n1")
    assert not lone.sent[connection]

    lone.receive(connection, Resume(0, 1))

    assert lone.of_type(Resume, connection) == [Resume(0, 1)]
    assert lone.is_open("n1")


def test_of_crossing_dials_the_one_of_the_smaller_id_stays_whichever_came_first():
    lone = Lone()
    dialed = lone.connect("n9", dialed=address_of("n9"))
    accepted = lone.connect("n9")
    assert closed_for(lone, accepted) == CloseReason.DUPLICATE_CONNECTION

    lone.receive(dialed, Resume(0, 1))

    assert lone.is_open("n9")


def test_the_dialled_connection_replaces_an_accepted_one_that_is_not_open_yet():
    lone = Lone()
    accepted = lone.connect("n9")
    dialed = lone.connect("n9", dialed=address_of("n9"))

    assert closed_for(lone, accepted) == CloseReason.DUPLICATE_CONNECTION
    assert dialed not in lone.closed


def test_later_than_the_handshake_timeout_the_newer_connection_wins():
    lone = Lone()
    old = lone.open("n9", dialed=address_of("n9"))
    lone.pass_time(5.1, answers=(old,))
    newer = lone.connect("n9")

    assert closed_for(lone, old) == CloseReason.DUPLICATE_CONNECTION
    lone.receive(newer, Resume(0, 1))
    assert lone.is_open("n9")
    assert lone.status("n9") == "active"


def test_a_resume_that_the_smaller_id_has_outdated_does_not_close_the_open_connection():
    lone = Lone()
    ours = lone.connect("n1", dialed=address_of("n1"))
    theirs = lone.connect("n1")
    lone.receive(theirs, Resume(0, 1))
    lone.receive(ours, Resume(0, 1))  # said before n1 decided for its own dial

    assert theirs not in lone.closed
    assert lone.is_open("n1")

    lone.receive(ours, Close(CloseReason.DUPLICATE_CONNECTION))
    lone.feed(Disconnected(ours))
    assert lone.is_open("n1")
    assert lone.count("links_opened") == 1


def test_a_resume_that_was_held_back_opens_its_connection_when_the_other_one_ends():
    lone = Lone()
    ours = lone.connect("n1", dialed=address_of("n1"))
    theirs = lone.connect("n1")
    lone.receive(theirs, Resume(0, 1))
    lone.receive(ours, Resume(0, 1))

    lone.feed(Disconnected(theirs))

    assert lone.is_open("n1")
    assert lone.of_type(Resume, ours) == [Resume(0, 1)]


def test_what_was_acknowledged_since_a_resume_was_held_back_is_not_given_up_for_it():
    lone = Lone()
    ours = lone.connect("n1", dialed=address_of("n1"))
    theirs = lone.connect("n1")
    lone.receive(theirs, Resume(0, 1))
    lone.receive(ours, Resume(0, 1))  # said before n1 decided for the other one
    lone.receive(theirs, Pong(lone.of_type(Ping, theirs)[-1].number, 0))
    lone.feed(Publish(DeliveryId(1), ChannelName("news"), b"body"))
    lone.receive(theirs, Ack(1))

    lone.feed(Disconnected(theirs))
    assert closed_for(lone, ours) == CloseReason.DUPLICATE_CONNECTION
    assert lone.effects_of(Settle) == []

    newer = lone.connect("n1")
    lone.receive(newer, Resume(1, 1), Results([Run(1, 1, ResultCode.OK)]))
    assert lone.effects_of(Settle)[-1].results == [(DeliveryId(1), "n1", ResultCode.OK)]


def test_whoever_says_twice_that_it_has_less_than_it_acknowledged_has_forgotten():
    lone = Lone()
    old = lone.open("n1")
    lone.feed(Publish(DeliveryId(1), ChannelName("news"), b"body"))
    lone.receive(old, Ack(1))
    lone.feed(Disconnected(old))

    stale = lone.connect("n1")
    lone.receive(stale, Resume(0, 1))  # was on the way when n1 chose the one that has ended
    assert closed_for(lone, stale) == CloseReason.DUPLICATE_CONNECTION
    assert lone.effects_of(Settle) == []

    again = lone.connect("n1")
    lone.receive(again, Resume(0, 1))
    assert lone.is_open("n1")
    assert lone.effects_of(Settle)[-1].results == [(DeliveryId(1), "n1", ResultCode.TIMEOUT)]


def test_who_has_forgotten_what_it_took_is_believed_at_once_long_after_the_last_connection():
    lone = Lone()
    old = lone.open("n1")
    lone.feed(Publish(DeliveryId(1), ChannelName("news"), b"body"))
    lone.receive(old, Ack(1))
    lone.feed(Disconnected(old))
    lone.pass_time(lone.node.settings.discovery.handshake_timeout + 1.0)

    again = lone.connect("n1")
    lone.receive(again, Resume(0, 1))

    assert lone.is_open("n1")


def test_a_resume_for_a_newer_connection_replaces_the_open_one():
    lone = Lone()
    old = lone.open("n1")
    lone.pass_time(1.0, answers=(old,))
    newer = lone.open("n1")

    assert closed_for(lone, old) == CloseReason.DUPLICATE_CONNECTION
    assert newer not in lone.closed
    assert lone.status("n1") == "active"


def test_two_resumes_on_one_connection_are_a_fault():
    lone = Lone()
    connection = lone.open("n1")
    lone.receive(connection, Resume(0, 1))

    assert closed_for(lone, connection) == CloseReason.PROTOCOL_ERROR
    assert lone.events_of(PeerMisbehaved)


def test_a_resume_with_impossible_positions_is_a_fault():
    lone = Lone()
    old = lone.open("n1")
    lone.feed(Publish(DeliveryId(1), ChannelName("ch"), b"x"))
    lone.feed(Disconnected(old))
    connection = lone.connect("n1")
    lone.receive(connection, Resume(7, 1))

    assert closed_for(lone, connection) == CloseReason.PROTOCOL_ERROR


def test_nothing_but_resume_and_close_may_come_before_the_connection_is_open():
    messages: list[WireMessage] = [
        Ping(1, 1),
        Pong(1, 1),
        Ack(1),
        Records([]),
        List([]),
        Want([]),
        Message(ChannelName("ch"), "text/plain", b"", 1),
        hello_of("n1"),
        Proof(b""),
    ]
    for message in messages:
        lone = Lone()
        connection = lone.connect("n1")
        lone.receive(connection, message)
        assert closed_for(lone, connection) == CloseReason.PROTOCOL_ERROR, message


def test_unknown_types_are_counted_only():
    lone = Lone()
    connection = lone.open("n1")
    lone.receive(connection, Unknown(12))

    assert lone.count("unknown_types") == 1
    assert connection not in lone.closed


def test_a_connection_that_is_not_resumed_in_time_is_closed():
    lone = Lone()
    connection = lone.connect("n1")
    lone.pass_time(5.1)

    assert closed_for(lone, connection) == CloseReason.HANDSHAKE_TIMEOUT


def test_a_lost_connection_is_dialled_again_at_once_and_changes_nothing():
    lone = Lone()
    connection = lone.open("n9")
    lone.feed(Disconnected(connection))
    lone.pass_time(0.0)

    assert lone.dials == [address_of("n9")]
    assert lone.status("n9") == "active"


def test_a_replaced_connection_that_never_opens_leaves_its_address_to_be_dialled():
    lone = Lone()
    old = lone.open("n9", dialed=address_of("n9"))
    lone.pass_time(5.1, answers=(old,))
    newer = lone.connect("n9")
    lone.feed(Disconnected(newer))
    lone.pass_time(0.1)

    assert lone.dials == [address_of("n9")]


def test_after_a_duplicate_is_closed_by_the_peer_the_other_one_gets_time_to_open():
    lone = Lone()
    connection = lone.open("n1")
    lone.receive(connection, Close(CloseReason.DUPLICATE_CONNECTION))
    lone.feed(Disconnected(connection))
    lone.pass_time(0.9)
    assert not lone.dials

    lone.pass_time(0.2)
    assert lone.dials == [address_of("n1")]


def test_too_many_connections_of_one_node_are_refused():
    lone = Lone()
    first = [lone.connect("n1") for _ in range(WAITING_LINKS_MAX)]
    assert not lone.closed

    one_more = lone.connect("n1")

    assert closed_for(lone, one_more) == CloseReason.LIMIT
    assert not any(connection in lone.closed for connection in first)


def test_a_leaving_node_opens_no_connection():
    lone = Lone()
    lone.open("n1")
    lone.feed(Leave())
    connection = lone.connect("n9")

    assert closed_for(lone, connection) == CloseReason.BYE


def test_a_write_takes_control_frames_up_to_its_size_and_then_data():
    lone = Lone()
    connection = lone.open("n1")
    link = lone.node._links.get(connection)
    assert link is not None
    link.is_writing = True  # the kernel takes nothing
    digest = lone.node.snapshot(lone.now).digest
    for number in range(3):
        lone.feed(FramesReceived(connection, [Ping(number, digest)]))
    written = []
    for size in (65, 65536):
        (write,) = lone.node.step(lone.now, WriteReady(connection, size))
        assert isinstance(write, Write)
        pongs = [frame.message for frame in write.frames]
        written.append([pong.number for pong in pongs if isinstance(pong, Pong)])
    assert written == [[0, 1], [2]]
    assert link.control_bytes == 0


def test_a_peer_that_asks_without_reading_gets_no_more_answers():
    lone = Lone()
    connection = lone.open("n1")
    link = lone.node._links.get(connection)
    assert link is not None
    link.is_writing = True
    tags = tuple((f"k{index:02}", "x" * 250) for index in range(64))
    lone.receive(connection, Records([record_of("n1", 1, 2, tags=tags)]))
    for _ in range(CONTROL_BYTES_MAX // 16_000 + 1):
        lone.receive(connection, Want(ids("n1")))

    assert link.control_bytes <= CONTROL_BYTES_MAX
    assert lone.count("control_frames_dropped") > 0


def test_what_comes_for_a_forgotten_connection_is_harmless():
    lone = Lone()
    connection = lone.open("n1")
    lone.feed(Disconnected(connection, "garbage", misbehaved=True))
    lone.feed(Disconnected(connection))
    lone.receive(connection, Ping(1, 1))
    lone.feed(WriteReady(connection, 100))

    assert len(lone.events_of(PeerMisbehaved)) == 1


def test_what_precedes_a_close_is_taken_and_a_fault_in_it_ends_the_read():
    lone = Lone()
    connection = lone.open("n1")
    lone.receive(connection, Message(ChannelName("ch"), "t/p", b"", 1), Close(CloseReason.BYE))
    assert connection not in lone.closed

    other = lone.connect("n2")
    lone.receive(
        other, Message(ChannelName("ch"), "t/p", b"", 1), Close(CloseReason.BYE), Ping(1, 1)
    )
    assert closed_for(lone, other) == CloseReason.PROTOCOL_ERROR


def test_a_full_table_refuses_newcomers_but_makes_room_by_forgetting_who_left():
    lone = Lone()
    seed = lone.open("n1")
    many = [
        Record(
            NodeId(f"x{index}"),
            Incarnation(1),
            1,
            "tcp://10.1.0.1:1",
            left=index == 7,
            silent_for=5.0,
        )
        for index in range(STRANGERS_MAX)
    ]
    lone.receive(seed, Records(many))
    members = lone.node._membership.members
    for index in range(ENTRIES_MAX - 2 - STRANGERS_MAX):
        row = members.meet(NodeId(f"y{index}"), Incarnation(1), "tcp://10.1.0.2:1", lone.now)
        members.set_health(row, Health.ACTIVE, "it answered", lone.now)
    assert members.is_full

    room = lone.open("n2")
    refused = lone.connect("n3")

    assert room not in lone.closed
    assert "x7" not in members.rows
    assert closed_for(lone, refused) == CloseReason.LIMIT
    lone.receive(seed, Records([record_of("n4")]))
    assert lone.count("records_refused") == 1


def test_a_silent_connection_is_given_up_and_dialled_again_when_its_ping_fails():
    lone = Lone()
    connection = lone.open("n9")
    while connection not in lone.closed:
        lone.pass_time(0.1)

    assert lone.status("n9") == "not_active"
    assert lone.closed[connection] is None
    assert lone.dials[0] == address_of("n9")


def test_a_newcomer_of_another_incarnation_waits_until_the_old_one_has_answered():
    lone = Lone()
    old = lone.open("n1", 1)
    newcomer = lone.connect("n1", 2)
    lone.receive(newcomer, Resume(0, 1))
    assert newcomer not in lone.closed
    assert not lone.of_type(Resume, newcomer)

    lone.answer_ping(old)

    assert closed_for(lone, newcomer) == CloseReason.DUPLICATE_ID
    close = lone.closed[newcomer]
    assert close is not None and close.value == 1
    assert lone.events_of(DuplicateId)[0].node_id == "n1"
    assert lone.is_open("n1")


def test_an_answer_to_a_ping_from_before_the_newcomer_proves_nothing():
    lone = Lone()
    old = lone.connect("n1", 1)
    lone.receive(old, Resume(0, 1))
    asked = lone.of_type(Ping, old)[-1]
    newcomer = lone.connect("n1", 2)
    lone.receive(old, Pong(asked.number, 0))

    assert newcomer not in lone.closed


def test_a_newcomer_replaces_an_old_incarnation_that_does_not_answer():
    lone = Lone()
    old = lone.open("n1", 1)
    newcomer = lone.connect("n1", 2)
    lone.receive(newcomer, Resume(0, 1))
    lone.pass_time(2.1)

    assert closed_for(lone, old) == CloseReason.REPLACED
    assert lone.of_type(Resume, newcomer) == [Resume(0, 1)]
    lone.answer_ping(newcomer)
    assert lone.status("n1") == "active"
    assert lone.node.snapshot(lone.now).members[1].incarnation == 2


def test_a_newcomer_is_taken_when_the_old_connection_ends():
    lone = Lone()
    old = lone.open("n9", 1)
    newcomer = lone.connect("n9", 2)
    lone.feed(Disconnected(old))

    lone.receive(newcomer, Resume(0, 1))
    assert lone.is_open("n9")


def test_a_newcomer_need_not_wait_for_one_that_said_it_left():
    lone = Lone()
    old = lone.open("n9", 1)
    lone.receive(old, Records([record_of("n9", 1, 2, left=True)]))
    newcomer = lone.connect("n9", 2)

    assert lone.of_type(Resume, newcomer)
    assert closed_for(lone, old) == CloseReason.DUPLICATE_CONNECTION


def test_a_process_that_took_a_larger_incarnation_need_not_prove_itself():
    lone = Lone()
    lone.open("n9", 1, nonce=b"same".ljust(16))
    again = lone.connect("n9", 2, nonce=b"same".ljust(16))

    assert lone.of_type(Resume, again)


def test_two_incarnations_that_both_wait_are_told_apart_when_the_second_resumes():
    lone = Lone()
    first, second = lone.connect("n1", 1), lone.connect("n1", 2)
    lone.receive(first, Resume(0, 1))
    lone.receive(second, Resume(0, 1))
    assert lone.is_open("n1") and second not in lone.closed

    lone.receive(second, Resume(0, 1))
    assert closed_for(lone, second) == CloseReason.PROTOCOL_ERROR


def test_a_smaller_incarnation_than_is_known_is_told_the_known_one():
    lone = Lone()
    old = lone.open("n1", 7)
    lone.feed(Disconnected(old))
    stale = lone.connect("n1", 3)

    close = lone.closed[stale]
    assert close is not None
    assert (close.reason, close.value) == (CloseReason.STALE_INCARNATION, 7)


def test_an_incarnation_that_became_stale_while_it_waited_is_refused_at_its_resume():
    lone = Lone()
    seed = lone.open("n2")
    waiting = lone.connect("n1", 3)
    lone.receive(seed, Records([record_of("n1", 7)]))
    lone.receive(waiting, Resume(0, 1))

    assert closed_for(lone, waiting) == CloseReason.STALE_INCARNATION


def test_stopping_closes_connections_that_are_not_open_too():
    lone = Lone()
    waiting = lone.connect("n1")
    lone.feed(Leave())

    assert closed_for(lone, waiting) == CloseReason.BYE
    assert lone.effects_of(Disconnect)


def test_a_connection_whose_timer_is_due_when_it_has_just_opened_stays():
    lone = Lone(discovery=DiscoverySettings(handshake_timeout=2.01))
    old = lone.open("n1", 1)
    newcomer = lone.connect("n1", 2)
    lone.receive(newcomer, Resume(0, 1))
    lone.now += 2.02  # a late wake-up: the old one's ping and the newcomer's time are both over
    lone.feed(TimePassed())

    assert closed_for(lone, old) == CloseReason.REPLACED
    assert lone.is_open("n1")


def test_of_two_newcomers_that_wait_for_one_silent_process_the_later_stays():
    lone = Lone(discovery=DiscoverySettings(handshake_timeout=2.01))
    lone.open("n9", 1)
    first, second = lone.connect("n9", 2), lone.connect("n9", 2)
    lone.now += 2.02  # a late wake-up: the time of both newcomers is over as well
    lone.feed(TimePassed())

    assert closed_for(lone, first) == CloseReason.DUPLICATE_CONNECTION
    assert second not in lone.closed


def test_a_larger_incarnation_of_ours_is_said_to_newcomers_too():
    lone = Lone()
    old = lone.open("n9", 1)
    newcomers = [lone.connect("n9", 2), lone.connect("n9", 2)]
    lone.receive(newcomers[0], Close(CloseReason.STALE_INCARNATION, value=200))

    assert all(connection in lone.closed for connection in (old, *newcomers))


def test_of_two_connections_that_wait_the_end_of_one_leaves_the_other():
    lone = Lone()
    lone.feed(Disconnected(lone.open("n1")))
    first, second = lone.connect("n1"), lone.connect("n1")
    lone.feed(Disconnected(first))
    lone.receive(second, Resume(0, 1))

    assert lone.is_open("n1")


def test_a_member_that_left_is_forgotten_with_the_last_of_its_connections():
    lone = Lone()
    opened, waiting = lone.open("n1"), lone.connect("n1")
    lone.receive(opened, Records([record_of("n1", 1, 2, left=True)]))
    lone.feed(Disconnected(opened))
    assert "n1" in lone.node._messaging.deliveries.streams

    lone.feed(Disconnected(waiting))
    lone.pass_time(60.0)
    assert not lone.dials


def test_a_farewell_that_is_said_again_on_a_connection_that_crossed_it_is_believed_again():
    lone = Lone()
    first = lone.open("n1")
    crossing = lone.connect("n1")
    farewell = Records([record_of("n1", 1, 2, left=True)])
    lone.receive(first, farewell)
    lone.feed(Disconnected(first))
    events = len(lone.events_of(NodeStateChanged))
    lone.receive(crossing, Resume(0, 1), farewell)
    lone.answer_ping(crossing)

    assert lone.status("n1") == "left"
    assert len(lone.events_of(NodeStateChanged)) == events


def test_who_is_back_after_its_farewell_and_does_not_answer_has_left_and_not_failed():
    lone = Lone()
    first = lone.open("n1")
    crossing = lone.connect("n1")
    lone.receive(first, Records([record_of("n1", 1, 2, left=True)]))
    lone.feed(Disconnected(first))
    lone.receive(crossing, Resume(0, 1))
    assert lone.status("n1") == "not_active"
    lone.feed(Disconnected(crossing))
    lone.refuse(address_of("n1"))

    assert lone.status("n1") == "left"


def test_who_pings_after_its_farewell_on_the_first_connection_has_left():
    lone = Lone()
    connection = lone.connect("n9")
    farewell = Records([record_of("n9", 1, 2, left=True)])
    lone.receive(connection, Resume(0, 1), farewell, Ping(1, 0))

    assert lone.status("n9") == "left"
    assert not lone.events_of(NodeStateChanged)


def test_who_answers_after_its_farewell_is_back_and_can_fail():
    lone = Lone()
    first = lone.open("n1")
    lone.receive(first, Records([record_of("n1", 1, 2, left=True)]))
    lone.feed(Disconnected(first))
    again = lone.connect("n1")
    lone.receive(again, Resume(0, 1))
    lone.answer_ping(again)
    assert lone.status("n1") == "active"
    lone.feed(Disconnected(again))
    lone.refuse(address_of("n1"))

    assert lone.status("n1") == "not_active"


def test_data_that_breaks_the_protocol_ends_the_connection():
    lone = Lone()
    connection = lone.open("n1")
    lone.receive(connection, Results([Run(5, 5, 200)]))

    assert closed_for(lone, connection) == CloseReason.PROTOCOL_ERROR


def test_a_process_that_pings_first_on_a_crossing_connection_refuses_the_newcomer_with_its_id():
    lone = Lone()
    first = lone.connect("n9", 1)
    lone.receive(first, Resume(0, 1))  # it has not pinged yet
    newcomer = lone.connect("n9", 101)
    crossing = lone.connect("n9", 1, dialed=address_of("n5"))
    lone.pass_time(2.5)  # the ping that should tell whether the older one lives has failed

    lone.receive(crossing, Resume(0, 1), Records([record_of("n9")]), Ping(1, 0))
    if lone.of_type(Ping, crossing):
        lone.answer_ping(crossing)
    assert lone.status("n9") == "active"
    close = lone.closed[newcomer]
    assert close is not None
    assert close.reason == CloseReason.DUPLICATE_ID
    assert len(lone.events_of(DuplicateId)) == 1


def test_a_newcomer_is_let_in_when_what_replaced_the_older_connection_never_opens():
    lone = Lone()
    first = lone.open("n9", 1)
    newcomer = lone.connect("n9", 101)
    crossing = lone.connect("n9", 1, dialed=address_of("n5"))
    assert first in lone.closed

    lone.feed(Disconnected(crossing))
    assert newcomer not in lone.closed
    assert lone.of_type(Resume, newcomer)  # the larger id waits for it
    lone.receive(newcomer, Resume(0, 1), Records([record_of("n9", 101)]))
    assert lone.is_open("n9")
