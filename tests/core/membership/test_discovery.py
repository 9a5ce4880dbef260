"""Whom a node dials, and when."""

from __future__ import annotations

import itertools

from clusternode.core.events import AddressUnreachable
from clusternode.core.inputs import (
    AddMember,
    DialFailed,
    DialFailure,
    Disconnected,
    RemoveMember,
    TimePassed,
)
from clusternode.core.membership.discovery import ADDRESSES_OF_NODE_MAX, address_of_untrusted
from clusternode.core.settings import DiscoverySettings
from clusternode.core.types import Address, NodeId
from clusternode.core.wire.messages import Records
from tests.core.harness import Lone, address_of, record_of

A, B, C = (address_of(one) for one in ("n1", "n2", "n3"))


def test_a_notification_address_is_dialled_for_ever_with_a_back_off_up_to_its_maximum():
    lone = Lone(discovery=DiscoverySettings(notification_addresses=(A, A), forget_after=60.0))
    gaps = []
    for _ in range(60):
        before = lone.now
        while not lone.dials:
            lone.pass_time(0.01)
        gaps.append(lone.now - before)
        assert lone.dials == [A]
        lone.dials.clear()
        lone.refuse(A)
    assert max(gaps[:2]) <= 0.21
    assert 2.0 < max(gaps) <= 5.01
    assert min(gaps[7:]) >= 2.49  # once it has reached its maximum, no less than half of it
    discovery = lone.node._membership.discovery
    for failures in range(1, 5):  # before, anything: those that failed together do not stay so
        assert min(discovery.backoff(failures) for _ in range(50)) < 0.2 * 2**failures / 8
    assert lone.now > 1060.0


def test_at_most_so_many_dials_start_within_any_second():
    lone = Lone(discovery=DiscoverySettings(dials_per_second=20.0))
    for number in range(60, 160):
        lone.feed(AddMember(address_of(f"n{number}")))
    starts: list[float] = []
    while len(lone.dials) < 100:
        lone.pass_time(0.05)
        starts += [lone.now] * (len(lone.dials) - len(starts))

    windows = zip(starts, starts[20:], strict=False)
    assert all(later - earlier >= 0.99 - 0.05 for earlier, later in windows)
    assert lone.now - 1000.0 < 10.0


def test_a_rate_of_less_than_one_a_second_still_dials():
    lone = Lone(discovery=DiscoverySettings(dials_per_second=0.5))
    for number in (60, 61):
        lone.feed(AddMember(address_of(f"n{number}")))
    lone.pass_time(1.9)
    assert len(lone.dials) == 1
    lone.pass_time(2.0)
    assert len(lone.dials) == 2


def test_an_added_address_is_dialled_until_it_is_forgotten():
    lone = Lone(discovery=DiscoverySettings(forget_after=30.0))
    lone.feed(AddMember(A))
    for _ in range(40):
        lone.pass_time(1.0)
        lone.refuse(A)
    lone.dials.clear()
    lone.pass_time(30.0)

    assert not lone.dials


def test_an_address_where_a_node_is_connected_is_not_claimed_by_another():
    lone = Lone()
    connection = lone.open("n1", dialed=A)
    lone.receive(connection, Records([record_of("n9", address=str(A))]))
    lone.pass_time(3.0, answers=(connection,))
    lone.feed(Disconnected(connection))
    lone.pass_time(0.0)

    assert lone.dials == [A]


def test_a_node_that_moves_about_is_dialled_at_its_last_addresses_only():
    lone = Lone()
    connection = lone.open("n1")
    for number in itertools.chain(range(20, 60)):
        record = record_of("n9", 1, number, address=f"tcp://10.0.0.{number}:5062")
        lone.receive(connection, Records([record]))

    assert len(lone.node._membership.discovery.targets) <= ADDRESSES_OF_NODE_MAX + 1


def test_notification_addresses_are_kept_however_often_a_node_moves():
    lone = Lone(
        discovery=DiscoverySettings(
            notification_addresses=tuple(address_of(f"n{number}") for number in range(20, 32))
        )
    )
    for number in range(20, 32):
        lone.open("n9", dialed=address_of(f"n{number}"))

    assert len(lone.node.snapshot(lone.now).addresses) == 12


def test_news_of_a_member_reset_its_back_off():
    lone = Lone()
    connection = lone.open("n1")
    lone.receive(connection, Records([record_of("n9", 1, 1)]))
    for _ in range(10):
        lone.feed(DialFailed(address_of("n9"), DialFailure.UNREACHABLE))
    lone.receive(connection, Records([record_of("n9", 1, 2)]))
    lone.pass_time(0.0)
    lone.dials.clear()
    lone.feed(DialFailed(address_of("n9"), DialFailure.UNREACHABLE))
    lone.pass_time(0.21)

    assert lone.dials == [address_of("n9")]


def test_a_dial_that_led_to_a_refused_connection_is_repeated_later():
    lone = Lone()
    lone.feed(AddMember(A))
    lone.pass_time(0.0)
    connection = lone.connect("n1", dialed=A)
    lone.feed(Disconnected(connection))
    lone.pass_time(4.9)
    assert lone.dials == [A]
    lone.pass_time(0.2)
    assert lone.dials == [A, A]


def test_a_removed_member_that_is_already_waiting_for_its_dial_keeps_its_appointment():
    lone = Lone()
    lone.feed(Disconnected(lone.open("n9")))
    lone.feed(RemoveMember(NodeId("n9")))
    lone.pass_time(0.0)

    assert lone.dials == [address_of("n9")]


def test_a_failed_dial_of_an_address_that_was_forgotten_is_harmless():
    lone = Lone()
    lone.refuse(A)

    assert lone.count("dials_failed_refused") == 1


def test_only_addresses_that_can_be_dialled_are_taken_from_others():
    assert address_of_untrusted("tcp://10.0.0.1:1") == Address("tcp", "10.0.0.1", 1)
    for text in ("", "tcp://x:0", "srv://example.net", "udp://x:1", "tcp://[::1", "tcp://x:99999"):
        assert address_of_untrusted(text) is None


def test_ourselves_at_an_address_that_was_forgotten_meanwhile_is_harmless():
    lone = Lone()
    own = lone.connect("n5", 100, dialed=C, nonce=b"n5".ljust(16))

    assert lone.closed[own] is None


def test_the_address_that_a_removed_member_had_moved_to_is_dialled():
    lone = Lone()
    connection = lone.open("n9")
    lone.receive(connection, Records([record_of("n9", 1, 2, address=str(C))]))
    lone.feed(RemoveMember(NodeId("n9")))
    lone.pass_time(6.0)

    assert C in lone.dials


def test_an_address_is_not_dialled_at_the_wake_up_that_forgets_it():
    lone = Lone(discovery=DiscoverySettings(forget_after=4.0))  # looked after every second
    seed = lone.open("n1")
    lone.pass_time(6.3, answers=(seed,))
    lone.receive(seed, Records([record_of("n2", silent_for=3.5)]))
    lone.now += 1.05  # forgotten after 0.7 s, to be dialled after 1 s
    lone.feed(TimePassed())

    assert not lone.dials
    assert lone.status("n2") is None


def test_an_address_that_nobody_answers_at_is_forgotten():
    lone = Lone(discovery=DiscoverySettings(forget_after=12.0))
    seed = lone.open("n1")
    lone.receive(seed, Records([record_of("n9")]))
    for _ in range(20):
        lone.pass_time(1.3, answers=(seed,))
        lone.refuse(address_of("n9"))

    assert ("dial", address_of("n9")) not in lone.node._context.timers


def test_a_dial_that_fails_after_its_node_has_connected_by_itself_changes_nothing():
    lone = Lone(discovery=DiscoverySettings(notification_addresses=(A,)))
    lone.pass_time(0.0)
    connection = lone.open("n1")
    lone.feed(DialFailed(A, DialFailure.TIMEOUT))
    lone.pass_time(6.0, answers=(connection,))

    assert lone.dials == [A]
    assert not lone.events_of(AddressUnreachable)
