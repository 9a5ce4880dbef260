"""Notification addresses: which of a name's addresses are dialled, and what is told of them."""

from __future__ import annotations

from clusternode.core.events import (
    AddressReachable,
    AddressUnreachable,
    NameResolved,
    NameStale,
)
from clusternode.core.inputs import AddMember, Resolved, ResolvedAddress
from clusternode.core.membership.notification import is_numeric
from clusternode.core.settings import DiscoverySettings
from clusternode.core.types import Address, NodeId
from tests.core.harness import Lone, address_of

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


def state_of(lone: Lone, address: Address) -> str | None:
    rows = lone.node.snapshot(lone.now).addresses
    return next((row.state for row in rows if row.address == address), None)


def test_an_unreachable_notification_address_is_told_once_until_it_answers():
    lone = Lone(discovery=DiscoverySettings(notification_addresses=(A,)))
    lone.pass_time(0.0)
    for _ in range(3):
        lone.refuse(A)
    (event,) = lone.events_of(AddressUnreachable)
    assert event.reason == "refused: nobody"

    lone.open("n1", dialed=A)
    assert len(lone.events_of(AddressReachable)) == 1
    assert state_of(lone, A) == "connected"


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
    lone.refuse(A)

    assert lone.dials == [A, B]


def test_an_address_that_does_not_answer_gives_way_to_the_next_of_its_name():
    lone = named()
    resolve(lone, A, B)
    lone.refuse(A)
    lone.pass_time(0.0)
    assert lone.dials == [A, B]
    assert not lone.events_of(AddressUnreachable)

    lone.refuse(B)
    assert lone.events_of(AddressUnreachable)
    lone.pass_time(30.0)
    assert set(lone.dials) == {A, B}


def test_a_name_that_lists_ourselves_first_goes_on_to_the_others():
    lone = named()
    resolve(lone, OWN, A)
    lone.connect("n5", 100, dialed=OWN, nonce=b"n5".ljust(16))
    lone.pass_time(0.0)

    assert lone.dials == [OWN, A]
    lone.refuse(A)
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
    lone.refuse(C)
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


def test_an_added_name_is_looked_up():
    lone = Lone()
    for _ in range(2):
        lone.feed(AddMember(SRV))
    assert lone.resolves() == [SRV]
    lone.feed(AddMember(B))
    resolve(lone, A, B, name=SRV)
    resolve(lone, A, name=SRV)

    assert lone.dials == [B, A]


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
