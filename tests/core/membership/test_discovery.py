"""Whom a node dials, and when."""

from __future__ import annotations

import itertools

from clusternode.core.events import (
    AddressReachable,
    AddressUnreachable,
    NameResolved,
    NameStale,
)
from clusternode.core.inputs import (
    AddMember,
    DialFailed,
    DialFailure,
    Disconnected,
    RemoveMember,
    Resolved,
    ResolvedAddress,
    TimePassed,
)
from clusternode.core.membership.discovery import (
    ADDRESSES_OF_NODE_MAX,
    address_of_untrusted,
    is_numeric,
)
from clusternode.core.settings import DiscoverySettings
from clusternode.core.types import Address, NodeId
from clusternode.core.wire.messages import Records
from tests.core.harness import Lone, address_of, record_of

NAME = Address("tcp", "seeds.example", 5062)
SRV = Address("srv", "_clusternode._tcp.example", 0)
A, B, C = (address_of(one) for one in ("n1", "n2", "n3"))
OWN = address_of("n5")


def named(*, multi_notify: bool = False) -> Lone:
    settings = DiscoverySettings(notification_addresses=(NAME,), multi_notify=multi_notify)
    return Lone(discovery=settings)


def resolve(lone: Lone, *addresses: Address, name: Address = NAME, error: str | None = None):
    lone.feed(Resolved(name, [ResolvedAddress(address) for address in addresses], error))
    lone.pass_time(0.0)


def refuse(lone: Lone, address: Address) -> None:
    lone.feed(DialFailed(address, DialFailure.REFUSED, "nobody"))


def state_of(lone: Lone, address: Address) -> str | None:
    rows = lone.node.snapshot(lone.now).addresses
    return next((row.state for row in rows if row.address == address), None)


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
        refuse(lone, A)
    assert max(gaps[:2]) <= 0.21
    assert 2.0 < max(gaps) <= 5.01
    assert lone.now > 1060.0


def test_an_unreachable_notification_address_is_told_once_until_it_answers():
    lone = Lone(discovery=DiscoverySettings(notification_addresses=(A,)))
    lone.pass_time(0.0)
    for _ in range(3):
        refuse(lone, A)
    (event,) = lone.events_of(AddressUnreachable)
    assert event.reason == "refused: nobody"

    lone.open("n1", dialed=A)
    assert len(lone.events_of(AddressReachable)) == 1
    assert state_of(lone, A) == "connected"


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


def test_a_name_is_looked_up_and_its_best_address_dialled():
    lone = named()
    assert lone.resolves() == [NAME]
    assert state_of(lone, NAME) == "resolving"
    resolve(lone, A, B)

    assert lone.dials == [A]
    assert state_of(lone, NAME) == "resolved"
    assert state_of(lone, A) == "dialing"


def test_with_multi_notify_every_address_of_a_name_is_dialled():
    lone = named(multi_notify=True)
    resolve(lone, A, B, B)
    refuse(lone, A)

    assert lone.dials == [A, B]


def test_an_address_that_does_not_answer_gives_way_to_the_next_of_its_name():
    lone = named()
    resolve(lone, A, B)
    refuse(lone, A)
    lone.pass_time(0.0)
    assert lone.dials == [A, B]
    assert not lone.events_of(AddressUnreachable)

    refuse(lone, B)
    assert lone.events_of(AddressUnreachable)
    lone.pass_time(30.0)
    assert set(lone.dials) == {A, B}


def test_a_name_that_lists_ourselves_first_goes_on_to_the_others():
    lone = named()
    resolve(lone, OWN, A)
    lone.connect("n5", 100, dialed=OWN, nonce=b"n5".ljust(16))
    lone.pass_time(0.0)

    assert lone.dials == [OWN, A]
    refuse(lone, A)
    lone.pass_time(10.0)
    assert lone.dials.count(OWN) == 1


def test_a_name_that_listed_only_ourselves_is_followed_when_it_lists_another():
    lone = named()
    resolve(lone, OWN)
    lone.connect("n5", 100, dialed=OWN, nonce=b"n5".ljust(16))
    lone.pass_time(60.0)
    assert lone.resolves() == [NAME, NAME]
    resolve(lone, OWN, A)

    assert lone.dials == [OWN, A]


def test_a_new_answer_keeps_the_address_in_use_and_drops_those_that_vanished():
    lone = named()
    resolve(lone, A, B)
    lone.open("n1", dialed=A)
    resolve(lone, B, A)
    assert lone.dials == [A]

    resolve(lone, C)
    assert lone.dials == [A, C]
    assert state_of(lone, B) is None
    refuse(lone, C)
    resolve(lone, B)
    lone.dials.clear()
    lone.pass_time(30.0)
    assert C not in lone.dials


def test_a_name_that_cannot_be_resolved_is_tried_again_and_told_once():
    lone = named()
    resolve(lone, error="SERVFAIL")
    resolve(lone, error="SERVFAIL")
    assert state_of(lone, NAME) == "unresolved"
    lone.pass_time(6.0)
    assert len(lone.resolves()) == 2
    assert len(lone.events_of(AddressUnreachable)) == 1

    resolve(lone, A)
    resolve(lone, error="SERVFAIL")
    assert state_of(lone, NAME) == "resolved"


def test_a_name_that_dns_has_lost_for_minutes_is_told_once_while_its_address_serves_on():
    lone = named()
    resolve(lone, A)
    for _ in range(4):
        lone.pass_time(100.0)
        resolve(lone, error="SERVFAIL")
    (stale,) = lone.events_of(NameStale)
    assert stale.address == str(NAME)
    assert stale.reason == "SERVFAIL"
    assert 300.0 <= stale.seconds < 400.0
    assert state_of(lone, NAME) == "resolved"

    resolve(lone, A)
    resolve(lone, A)

    (again,) = lone.events_of(NameResolved)
    assert again.address == str(NAME)
    resolve(lone, error="SERVFAIL")
    assert len(lone.events_of(NameStale)) == 1


def test_a_name_that_is_still_being_looked_up_is_not_asked_for_again():
    lone = named()
    lone.pass_time(130.0)

    assert lone.resolves() == [NAME]


def test_an_answer_to_nothing_is_ignored():
    lone = Lone()
    resolve(lone, A)

    assert not lone.dials


def test_addresses_of_a_name_are_tried_by_priority_and_then_by_weight():
    lone = named()
    answers = [
        ResolvedAddress(A, 10, 0),
        ResolvedAddress(B, 5, 0),
        ResolvedAddress(C, 5, 100),
    ]
    lone.feed(Resolved(NAME, answers))
    lone.pass_time(0.0)

    assert lone.dials == [C]


def test_a_member_behind_a_name_is_protected_though_another_address_of_it_is_in_use():
    lone = named()
    resolve(lone, A, B)
    lone.open("n1", dialed=A)
    silent = lone.open("n2")
    members = {one.node_id: one for one in lone.node.snapshot(lone.now).members}

    assert members[NodeId("n1")].notification and members[NodeId("n2")].notification
    assert silent not in lone.closed


def test_an_added_address_is_dialled_until_it_is_forgotten():
    lone = Lone(discovery=DiscoverySettings(forget_after=30.0))
    lone.feed(AddMember(A))
    for _ in range(40):
        lone.pass_time(1.0)
        refuse(lone, A)
    lone.dials.clear()
    lone.pass_time(30.0)

    assert not lone.dials


def test_an_added_name_is_looked_up():
    lone = Lone()
    for _ in range(2):
        lone.feed(AddMember(SRV))
    assert lone.resolves() == [SRV]
    lone.feed(AddMember(B))
    resolve(lone, A, B, name=SRV)
    resolve(lone, A, name=SRV)

    assert lone.dials == [B, A]


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

    assert len(lone.node._membership.discovery._targets) <= ADDRESSES_OF_NODE_MAX + 1


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
    refuse(lone, A)

    assert lone.count("dials_failed_refused") == 1


def test_only_addresses_that_can_be_dialled_are_taken_from_others():
    assert address_of_untrusted("tcp://10.0.0.1:1") == Address("tcp", "10.0.0.1", 1)
    for text in ("", "tcp://x:0", "srv://example.net", "udp://x:1", "tcp://[::1", "tcp://x:99999"):
        assert address_of_untrusted(text) is None


def test_numeric_addresses_need_no_look_up():
    assert is_numeric(Address("tls", "2001:db8::1", 1))
    assert not is_numeric(NAME)
    assert not is_numeric(SRV)


def test_a_name_that_stands_for_a_connected_node_dials_nobody():
    lone = named()
    lone.open("n1")
    resolve(lone, A)

    assert not lone.dials
    assert state_of(lone, A) == "connected"


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
        refuse(lone, address_of("n9"))

    assert ("dial", address_of("n9")) not in lone.node._context.timers


def test_a_dial_that_fails_after_its_node_has_connected_by_itself_changes_nothing():
    lone = Lone(discovery=DiscoverySettings(notification_addresses=(A,)))
    lone.pass_time(0.0)
    connection = lone.open("n1")
    lone.feed(DialFailed(A, DialFailure.TIMEOUT))
    lone.pass_time(6.0, answers=(connection,))

    assert lone.dials == [A]
    assert not lone.events_of(AddressUnreachable)
