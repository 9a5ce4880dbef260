"""The location table of usrloc: events, and a copy that follows OpenSIPS's rules."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from clusternode.core.events import LimitReached
from clusternode.core.sip_events import LocationReplicated
from clusternode.errors import BodyTooLarge, LocalProtocolError, Overloaded
from clusternode.gateways.opensips.capabilities import Capabilities
from clusternode.gateways.opensips.contacts import CONTACTS_OF_AOR_MAX, Contacts
from clusternode.gateways.opensips.messages import (
    CONTACTS,
    ModulePacket,
    Sync,
    SyncEnd,
    SyncRequest,
    Trailer,
)
from clusternode.gateways.opensips.replication import (
    AorDelete,
    AorInsert,
    Contact,
    ContactDelete,
    ContactInsert,
    ContactUpdate,
    Location,
    Match,
    location_chunk,
    location_packet,
    read_location_chunk_untrusted,
    read_location_untrusted,
)
from clusternode.gateways.opensips.sync import SyncSettings
from tests.gateways.opensips.around import Around

FROM_1 = Trailer(1, 1, 4)
BOB = Contact("location", "bob", "sip:bob@10.0.0.1", contact_id=7 << 14 | 5, callid="c1", cseq=10)


class Stage:
    """A node that keeps contacts, synced from node 1 unless told otherwise."""

    def __init__(self, *, is_synced: bool = True, **limits: int) -> None:
        self.around = Around()
        self.capabilities = Capabilities(self.around, SyncSettings())
        self.around.states[1, CONTACTS] = True
        self.table = Contacts(self.around, self.capabilities, **limits)
        self.capabilities.start()
        self.around.taken()
        if is_synced:
            self.capabilities.received(SyncEnd(FROM_1, CONTACTS, 0))
            self.around.raised()

    def receive(self, *changes: Location) -> None:
        for change in changes:
            self.capabilities.received(location_packet(FROM_1, change))

    def uris(self, aor: str = "bob") -> list[str]:
        return [contact.contact for contact in self.table.contacts(aor)]

    def given(self) -> list[Location]:
        """Return what a node gets that asks us."""
        self.capabilities.received(SyncRequest(Trailer(1, 2, 4), CONTACTS))
        packets = [packet for packet in self.around.taken() if isinstance(packet, Sync)]
        chunks = [chunk for packet in packets for chunk in packet.chunks]
        return [read_location_chunk_untrusted(chunk, 5) for chunk in chunks]


def test_a_registration_and_its_end_are_events_with_the_fields_of_opensips():
    stage = Stage()
    stage.receive(
        AorInsert("location", "bob", 7, 6),
        ContactInsert(BOB),
        ContactUpdate(attrs.evolve(BOB, cseq=11, user_agent="phone")),
    )
    assert stage.table.contacts("bob") == (attrs.evolve(BOB, cseq=11, user_agent="phone"),)
    stage.receive(
        ContactDelete("location", "bob", BOB.contact, "c1", 12), AorDelete("location", "bob")
    )

    assert stage.table.aors() == []
    events = stage.around.raised()
    assert all(isinstance(event, LocationReplicated) for event in events)
    assert [(event.action, event.aor) for event in events] == [
        ("aor_insert", "bob"),
        ("insert", "bob"),
        ("update", "bob"),
        ("delete", "bob"),
        ("aor_delete", "bob"),
    ]
    assert events[2].contact["user_agent"] == "phone"
    assert events[2].contact["contact"] == "sip:bob@10.0.0.1"
    assert "action" not in events[2].contact


def test_a_contact_without_its_address_of_record_makes_one_with_the_label_in_its_id():
    stage = Stage()

    stage.receive(ContactInsert(BOB))

    assert stage.given() == [AorInsert("location", "bob", 7, 6), ContactInsert(BOB)]


def test_a_late_change_of_the_same_call_is_not_taken_and_one_of_another_call_is():
    stage = Stage()
    stage.receive(ContactInsert(BOB))

    stage.receive(ContactUpdate(attrs.evolve(BOB, cseq=9, user_agent="late")))
    stage.receive(ContactDelete("location", "bob", BOB.contact, "c1", 9))
    assert stage.table.contacts("bob") == (BOB,)
    other = attrs.evolve(BOB, callid="c2", cseq=1)
    stage.receive(ContactInsert(other))

    assert stage.table.contacts("bob") == (BOB, other)


def test_the_numbers_of_another_call_say_nothing_about_what_is_late():
    stage = Stage()
    stage.receive(ContactInsert(BOB))
    other = attrs.evolve(BOB, callid="c2", cseq=1)

    stage.receive(ContactUpdate(other, Match(0)))

    assert stage.table.contacts("bob") == (other,)


def test_what_is_removed_makes_room():
    stage = Stage(bytes_max=50)

    for _ in range(10):
        stage.receive(ContactInsert(BOB), AorDelete("location", "bob"))
        stage.receive(ContactInsert(BOB))
        stage.receive(ContactDelete("location", "bob", BOB.contact, "c1", 10))

    assert stage.table.is_complete
    assert stage.around.announced[-1] == (CONTACTS, True)


@pytest.mark.parametrize(
    ("rule_", "uri", "callid", "is_same"),
    [
        (Match(1), "sip:bob@10.0.0.1;x=1;y=2", "c1", True),
        (Match(1), "sip:bob@10.0.0.1;x=1;y=2", "other", False),
        (Match(0), "sip:bob@10.0.0.1;x=1;y=2", "other", True),
        (Match(-1), "sip:bob@10.0.0.1;x=1;y=2", "other", True),
        (Match(2, ("X",)), "sip:bob@10.9.9.9;x=1", "other", True),
        (Match(2, ("x", "y")), "sip:bob@10.9.9.9;x=1", "other", False),
        (Match(2, ("z",)), "sip:bob@10.9.9.9", "other", False),
        (Match(2), "sip:bob@10.0.0.1;x=1;y=2", "c1", False),
    ],
)
def test_a_change_finds_its_contact_by_the_match_rule(rule_, uri, callid, is_same):
    stage = Stage()
    stage.receive(ContactInsert(attrs.evolve(BOB, contact="sip:bob@10.0.0.1;x=1;y=2")))

    stage.receive(ContactUpdate(attrs.evolve(BOB, contact=uri, callid=callid, cseq=20), rule_))

    assert len(stage.uris()) == (1 if is_same else 2)


def test_expired_contacts_are_given_to_nobody_and_then_dropped():
    stage = Stage()
    stage.receive(ContactInsert(attrs.evolve(BOB, expires=stage.around.unix_now + 30)))
    stage.receive(ContactInsert(attrs.evolve(BOB, aor="eve", expires=0)))
    stage.around.now += 30.0

    assert stage.uris() == []
    assert [type(change) for change in stage.given()] == [AorInsert, AorInsert, ContactInsert]
    stage.table.tick()
    assert stage.table.aors() == ["eve"]
    assert (stage.table.next_deadline() or 0.0) > stage.around.now


def test_a_sync_is_events_of_contacts_and_makes_us_a_donor_of_the_same():
    stage = Stage(is_synced=False)
    changes: list[Location] = [AorInsert("location", "bob", 7, 6, "{}"), ContactInsert(BOB)]
    chunks = tuple(location_chunk(change) for change in changes)  # type: ignore[arg-type]  # no deletes

    stage.capabilities.received(Sync(FROM_1, CONTACTS, 5, chunks))
    assert stage.given() == [], "not before it is whole"
    stage.capabilities.received(SyncEnd(FROM_1, CONTACTS, 2))

    assert stage.table.is_synced
    actions = [getattr(event, "action", "") for event in stage.around.raised()]
    assert actions == ["sync", ""]
    assert stage.given() == changes


def test_what_is_removed_while_it_is_given_is_not_given():
    stage = Stage()
    stage.receive(ContactInsert(BOB), ContactInsert(attrs.evolve(BOB, aor="eve")))
    chunks = stage.table.chunks()
    next(chunks)

    stage.receive(AorDelete("location", "eve"))

    assert len([*chunks]) == 1


def test_what_we_publish_goes_to_every_node_and_is_kept():
    stage = Stage()

    assert stage.table.publish(ContactInsert(BOB)) == 3

    sent = stage.around.taken()
    assert [packet.trailer.destination for packet in sent] == [1, 2, 3]
    assert read_location_untrusted(sent[0]) == ContactInsert(BOB)
    assert stage.table.contacts("bob") == (BOB,)
    assert stage.around.raised() == []


def test_what_cannot_be_sent_or_kept_is_refused_to_the_caller():
    stage = Stage(contacts_max=1)
    stage.table.publish(ContactInsert(BOB))
    stage.around.taken()
    with pytest.raises(Overloaded):
        stage.table.publish(ContactInsert(attrs.evolve(BOB, aor="eve")))
    with pytest.raises(BodyTooLarge):
        stage.table.publish(ContactUpdate(attrs.evolve(BOB, attributes="x" * 65_400)))
    with pytest.raises(LocalProtocolError):
        stage.table.publish(ContactUpdate(attrs.evolve(BOB, expires=2**70)))

    assert stage.around.taken() == []


def test_packets_that_cannot_be_read_are_counted():
    stage = Stage()

    stage.capabilities.received(ModulePacket(FROM_1, CONTACTS, 6, 1, b""))

    assert stage.around.counted["location_packets_refused"] == 1


@pytest.mark.parametrize(
    ("limits", "kept"),
    [({"contacts_max": 3}, 3), ({"aors_max": 2}, 2), ({"bytes_max": 70}, 2), ({}, 5)],
)
def test_contacts_beyond_a_bound_are_refused_and_end_our_being_a_donor(limits, kept):
    stage = Stage(**limits)

    for number in range(5):
        stage.receive(ContactInsert(attrs.evolve(BOB, aor=f"user {number}")))

    assert sum(len(stage.uris(aor)) for aor in stage.table.aors()) == kept
    limits_reached = [each for each in stage.around.raised() if isinstance(each, LimitReached)]
    assert len(limits_reached) == (kept < 5)
    assert stage.around.announced[-1] == (CONTACTS, kept == 5)


def test_contacts_of_one_address_of_record_are_bounded():
    stage = Stage()

    for number in range(CONTACTS_OF_AOR_MAX + 5):
        stage.receive(ContactInsert(attrs.evolve(BOB, callid=f"call {number}")))

    assert len(stage.uris()) == CONTACTS_OF_AOR_MAX
    assert stage.around.counted["contacts_refused"] == 5


class ContactsMachine(RuleBasedStateMachine):
    """The table against a dictionary by (address of record, contact, call), while time goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage()
        self.model: dict[tuple[str, str, str], Contact] = {}
        self.aors: set[str] = set()

    keys = st.tuples(st.sampled_from("AB"), st.sampled_from("xy"), st.sampled_from("12"))

    @rule(key=keys, cseq=st.integers(0, 3), lifetime=st.integers(0, 40), is_update=st.booleans())
    def put(self, key, cseq, lifetime, is_update):
        aor, uri, callid = key
        expires = self.stage.around.unix_now + lifetime if lifetime else 0
        contact = Contact("location", aor, uri, callid=callid, cseq=cseq, expires=expires)
        self.stage.receive(ContactUpdate(contact) if is_update else ContactInsert(contact))
        old = self.model.get(key)
        if old is None or cseq >= old.cseq:
            self.model[key] = contact

    @rule(key=keys, cseq=st.integers(0, 3))
    def delete(self, key, cseq):
        aor, uri, callid = key
        self.stage.receive(ContactDelete("location", aor, uri, callid, cseq))
        if key in self.model and cseq >= self.model[key].cseq:
            del self.model[key]

    @rule(aor=st.sampled_from("AB"))
    def delete_aor(self, aor):
        self.stage.receive(AorDelete("location", aor))
        self.model = {key: contact for key, contact in self.model.items() if key[0] != aor}

    @rule(seconds=st.sampled_from([1.0, 9.0, 20.0]))
    def wait(self, seconds):
        self.stage.around.now += seconds
        due = self.stage.table.next_deadline()
        if due is not None and due <= self.stage.around.now:
            self.stage.table.tick()
            now = self.stage.around.unix_now
            self.model = {
                key: each
                for key, each in self.model.items()
                if each.expires == 0 or each.expires > now
            }

    @invariant()
    def it_holds_what_the_model_holds(self):
        now = self.stage.around.unix_now
        seen = {
            (contact.aor, contact.contact, contact.callid): contact
            for aor in self.stage.table.aors()
            for contact in self.stage.table.contacts(aor)
        }
        assert seen == {
            key: each for key, each in self.model.items() if each.expires == 0 or each.expires > now
        }


TestContacts = ContactsMachine.TestCase
TestContacts.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
