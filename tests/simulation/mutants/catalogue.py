"""The mutants: what each breaks, which stories show it, and which invariant has to notice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from clusternode.core.membership import keepalive as keepalive_module
from clusternode.core.membership.asking import Asking
from clusternode.core.membership.exchange import Exchange
from clusternode.core.membership.health import Health
from clusternode.core.membership.keepalive import Keepalive
from clusternode.core.membership.links import Links
from clusternode.core.membership.members import Members, Merged
from clusternode.core.membership.membership import Membership
from clusternode.core.membership.passage import Passage
from clusternode.core.membership.relaying import Relaying
from clusternode.core.membership.rerouting import Rerouting
from clusternode.core.membership.twins import Twins
from clusternode.core.membership.ways import Ways
from clusternode.core.messaging.delivery import Deliveries
from clusternode.core.messaging.messaging import Messaging
from clusternode.core.messaging.requests import Requests
from clusternode.core.messaging.sending import Sending
from clusternode.core.messaging.streams import Receiving, Stream
from clusternode.core.node import Node
from clusternode.core.tunnels import Tunnels
from clusternode.core.types import ResultCode
from clusternode.core.wire.messages import Resume, Segment
from clusternode.core.wire.tunnel import Tunnel

Function = Callable[..., Any]


@attrs.frozen
class Mutant:
    """The core with one function replaced."""

    name: str
    what: str
    owner: Any
    """The class or the module that holds the function."""
    function: str
    make: Callable[[Function], Function]
    """Makes the wrong function from the right one."""
    stories: Sequence[str]
    """Files in scenarios/ without `.toml`, or `swarm:SEED`, in this order."""
    caught_by: Sequence[str]
    """Invariants of which at least one must be broken."""
    world: str = "model"

    def apply(self) -> None:
        """Swap the function: from now on this process runs the mutant."""
        setattr(self.owner, self.function, self.make(getattr(self.owner, self.function)))


MUTANTS: dict[str, Mutant] = {}


def mutant(
    owner: Any,
    function: str,
    stories: Sequence[str],
    caught_by: Sequence[str],
    world: str = "model",
) -> Callable[[Callable[[Function], Function]], Callable[[Function], Function]]:
    """Register what is decorated: it gets the right function and returns the wrong one.

    Its name, with dashes, is the mutant's; its docstring says what is wrong.
    """

    def register(make: Callable[[Function], Function]) -> Callable[[Function], Function]:
        name = make.__name__.replace("_", "-")
        what = (make.__doc__ or "").strip()
        MUTANTS[name] = Mutant(name, what, owner, function, make, stories, caught_by, world)
        return make

    return register


REACHED = "the-reachable-are-reached"
ONE_RESULT = "exactly-one-final-result"
TRUE = "true-results"
TWICE = "no-duplicate-delivery"
ORDER = "order-per-origin-and-channel"
REPLIES = "replies-accounted"
TABLE = "health-follows-table"
FLAPPING = "no-flapping-without-fault"
GHOST = "no-ghost-returns"
BOUNDED = "bounded-queues"
EVERYONE = "everyone-sees-everyone"
CONVERGED = "converged-digests"
DEAD = "the-dead-are-removed"
LEFT = "leavers-are-left"
HEARD = "a-clean-stop-is-heard"
NOTICED = "the-dead-are-noticed"
EARLY = "requests-end-early"
PATIENT = "nothing-is-given-up-early"
WAITS = "nobody-waits"
LINKS = "links-are-true"
DIRECT = "links-are-direct"
TWINS = "twins-are-told"
NODE = "no-node-fails"

BROKEN = ["resent-is-not-sent-twice", "load-over-broken-connections"]
BURST = ["burst-without-silent-loss"]


# Delivery.


@mutant(Stream, "take", BURST, [REACHED, BOUNDED])
def ack_never_sent(right: Function) -> Function:
    """A dropped ack: what was taken is never acknowledged."""

    def take(self: Stream, bytes_max: int) -> Any:
        self.receiving.acknowledged = self.receiving.last_received
        return right(self, bytes_max)

    return take


@mutant(Sending, "acknowledge_untrusted", BURST, [REACHED, BOUNDED])
def window_never_reopened(right: Function) -> Function:
    """Acknowledged frames are released, but their bytes are not."""

    def acknowledge(self: Sending, position: int) -> Any:
        before = self.unacknowledged_bytes
        answer = right(self, position)
        self.unacknowledged_bytes = before
        return answer

    return acknowledge


@mutant(Receiving, "resume_untrusted", BROKEN, [TWICE, TRUE, REACHED, ORDER])
def resume_forgets_what_was_received(right: Function) -> Function:
    """A resent frame is not deduplicated: a new connection counts from the peer's first held."""

    def resume(self: Receiving, peer_first_held: int) -> Any:
        self.last_received = peer_first_held - 1
        self.acknowledged = self.last_received

    return resume


@mutant(Deliveries, "_enqueue", ["arrives-after-a-long-stall"], [PATIENT])
def messages_expire_early(right: Function) -> Function:
    """What waits for its result is given up ten seconds before its time."""

    def enqueue(self: Deliveries, stream: Any, outgoing: Any) -> None:
        right(self, stream, attrs.evolve(outgoing, deadline=outgoing.deadline - 10.0))

    return enqueue


@mutant(Deliveries, "bind", BROKEN, [TWICE, TRUE, REACHED, ORDER])
def resume_is_off_by_one(right: Function) -> Function:
    """Resume tells one position less than was taken."""

    def bind(self: Deliveries, *arguments: Any) -> Any:
        resume = right(self, *arguments)
        return Resume(max(0, resume.last_received - 1), resume.first_held)

    return bind


@mutant(Sending, "resend_all", BROKEN, [ONE_RESULT, TRUE, REACHED])
def nothing_is_resent(right: Function) -> Function:
    """What was on the way when a connection broke is not sent again."""

    def resend_all(self: Sending) -> None:
        self.unacknowledged.clear()
        self.unacknowledged_bytes = 0

    return resend_all


@mutant(Sending, "resend_all", BROKEN, [TWICE, TRUE, REACHED, ORDER])
def the_head_is_resent_twice(right: Function) -> Function:
    """The first of the frames that a new connection carries goes out twice."""

    def resend_all(self: Sending) -> None:
        right(self)
        if self.resend:
            self.resend.appendleft(self.resend[0])

    return resend_all


@mutant(Sending, "settle_untrusted", ["forms-and-talks"], [REACHED, ONE_RESULT, WAITS])
def first_result_of_a_run_is_lost(right: Function) -> Function:
    """A lost result: a run of results is off by one at its beginning."""

    def settle(self: Sending, first: int, last: int) -> Any:
        return right(self, first, last) if first == last else right(self, first + 1, last)

    return settle


@mutant(Messaging, "receive_untrusted", ["forms-and-talks"], [TRUE, ONE_RESULT])
def result_before_the_handler_has_ended(right: Function) -> Function:
    """200 is given when a message arrives, as a queue would, and not when it was handled."""

    def receive(self: Messaging, stream: Stream, messages: Any, now: float) -> Any:
        first = stream.receiving.last_received
        answer = right(self, stream, messages, now)
        for number, message in enumerate(messages, first + 1):
            if type(message).__name__ == "Message":
                stream.put_result(number, 200)
        return answer

    return receive


@mutant(Sending, "put", BURST, [ORDER])
def last_in_first_out(right: Function) -> Function:
    """A message overtakes those that wait for the writer."""

    def put(self: Sending, outgoing: Any) -> None:
        right(self, outgoing)
        self.unsent.rotate(1)

    return put


@mutant(Deliveries, "_has_room", BURST, [BOUNDED])
def outbox_without_a_bound(right: Function) -> Function:
    """There is always room for one more message."""
    return lambda self, stream, size: True


@mutant(Deliveries, "expire", ["split-heals", "asymmetric-partition"], [ONE_RESULT])
def messages_never_expire(right: Function) -> Function:
    """What waits for its result waits for ever."""
    return lambda self, node_id, now: None


@mutant(Deliveries, "bind", ["restarted-within-a-second"], [TWICE, TRUE, ONE_RESULT, REACHED])
def a_new_incarnation_goes_on_where_the_old_one_was(right: Function) -> Function:
    """Positions are not bound to an incarnation: the next one gets what the last one got."""

    def bind(self: Deliveries, node_id: Any, hello: Any) -> Any:
        stream = self.streams.get(node_id)
        if stream is not None and stream.incarnation != hello.incarnation:
            stream.incarnation = hello.incarnation
            stream.receiving = Receiving()
            stream.sending.given = len(stream.sending.unacknowledged)
        return right(self, node_id, hello)

    return bind


# Requests.


@mutant(Stream, "put_result", ["reply-before-the-waiter"], [REPLIES])
def results_overtake_replies(right: Function) -> Function:
    """Results and replies have swapped their lanes: "done" arrives before the reply."""

    def put_result(self: Stream, position: int, code: int) -> None:
        self.receiving.open_requests.pop(position, None)
        self.sending.own_results().add(position, code)

    return put_result


@mutant(Requests, "timed_out", ["slow-handlers"], [REPLIES])
def requests_never_end(right: Function) -> Function:
    """A request without all of its answers waits beyond its timeout."""
    return lambda self, request: []


@mutant(Requests, "replied_untrusted", ["reply-before-the-waiter"], [REPLIES])
def the_first_reply_ends_it(right: Function) -> Function:
    """The first reply of anyone ends a request for all."""

    def replied(self: Requests, node_id: Any, reply: Any) -> Any:
        opened = self._by_tag.get(reply.tag)
        answer = right(self, node_id, reply)
        if opened is not None:
            for other in list(opened.waiting):
                self.finish(opened.request, other, answer)
        return answer

    return replied


@mutant(Requests, "finish", ["forms-and-talks"], [EARLY])
def requests_end_at_their_timeout(right: Function) -> Function:
    """The last node that is asked is waited for to the end, whether it is done or not."""

    def finish(self: Requests, request: Any, node_id: Any, code: Any) -> None:
        opened = self._open.get(request)
        if opened is None or len(opened.waiting) > 1:
            right(self, request, node_id, code)

    return finish


@mutant(Requests, "replied_untrusted", ["forms-and-talks"], [REPLIES])
def a_reply_is_acknowledged_and_dropped(right: Function) -> Function:
    """The replier is told 200, and nobody gets the reply."""
    return lambda self, node_id, reply: ResultCode.OK


# Members.


@mutant(Exchange, "digest_untrusted", ["seed-in-one-half", "halves-merge"], [EVERYONE, CONVERGED])
def digests_are_never_compared(right: Function) -> Function:
    """Tables that differ stay different: no exchange is ever begun."""
    return lambda self, link, digest, now: None


@mutant(Members, "_swap", ["killed-and-restarted"], [CONVERGED])
def the_digest_keeps_old_records(right: Function) -> Function:
    """A replaced record stays in the digest."""

    def swap(self: Members, row: Any, record: Any) -> None:
        row.record = record
        row.is_told = True
        self.digest ^= self._digest_of(record)

    return swap


@mutant(Members, "merge_untrusted", ["clean-stop-is-heard"], [LEFT, CONVERGED, EVERYONE])
def merge_ignores_versions(right: Function) -> Function:
    """A wrong merge: only the incarnation says which copy of a record is newer."""

    def merge(self: Members, record: Any, source: Any, now: float) -> Any:
        row = self.rows.get(record.node_id)
        if row is not None and row.record.version > 0:
            if record.incarnation <= row.record.incarnation:
                return Merged.IGNORED
        return right(self, record, source, now)

    return merge


@mutant(Members, "merge_untrusted", ["ghost-that-flaps"], [GHOST, TABLE])
def hearsay_makes_active(right: Function) -> Function:
    """A ghost that returns: whom others speak of is active, as in Kamailio."""

    def merge(self: Members, record: Any, source: Any, now: float) -> Any:
        merged = right(self, record, source, now)
        row = self.rows.get(record.node_id)
        if row is not None and not record.left and row.health is not Health.ACTIVE:
            self.set_health(row, Health.ACTIVE, "somebody said so", now)
        return merged

    return merge


@mutant(Membership, "_removed", ["killed-and-restarted", "seed-in-one-half"], [EVERYONE])
def the_removed_are_never_dialled(right: Function) -> Function:
    """Who is off the list is forgotten with its address."""

    def removed(self: Membership, node_id: Any, now: float) -> None:
        right(self, node_id, now)
        self.discovery.forget_node(node_id, now)

    return removed


@mutant(Members, "change_own", ["clean-stop-is-heard"], [HEARD])
def nobody_hears_of_a_clean_stop(right: Function) -> Function:
    """The last version of a record does not say that its node leaves."""
    return lambda self, **changed: right(self, **(changed | {"left": False}))


# Health.


@mutant(keepalive_module, "apply_ping_failed", ["one-lost-ping-is-forgiven"], [EVERYONE])
def thresholds_are_off_by_one(right: Function) -> Function:
    """A fail count that has reached its threshold is over it."""

    def failed(state: Any, fail_count: int, *arguments: Any, **named: Any) -> Any:
        health, counted = right(state, fail_count + 1, *arguments, **named)
        return health, counted - 1

    return failed


@mutant(Keepalive, "timed_out", ["killed-and-restarted"], [DEAD, EVERYONE])
def open_pings_never_fail(right: Function) -> Function:
    """A silent host is given more time for ever."""

    def timed_out(self: Keepalive, node_id: Any, now: float) -> bool:
        self.postpone(node_id, now)
        return False

    return timed_out


@mutant(Keepalive, "timed_out", ["killed-and-restarted"], [NOTICED])
def silence_is_forgiven_for_a_minute(right: Function) -> Function:
    """A silent host is given a minute more, and is noticed all the same."""
    looks: dict[Any, list[float]] = {}  # (keepalive, member) → when its open ping was looked at

    def timed_out(self: Keepalive, node_id: Any, now: float) -> bool:
        seen = looks.setdefault((id(self), node_id), [now])
        if now - seen[-1] > 10.0:
            seen[:] = [now]
        seen.append(now)
        if now - seen[0] > 60.0:
            return right(self, node_id, now)
        self.postpone(node_id, now)
        return False

    return timed_out


@mutant(Membership, "disconnected", ["a-reset-changes-nothing"], [FLAPPING])
def a_lost_connection_is_a_failed_ping(right: Function) -> Function:
    """A mere reset of a connection makes a member not_active."""

    def disconnected(self: Membership, link: Any, *arguments: Any, **named: Any) -> None:
        right(self, link, *arguments, **named)
        if self.keepalive.is_open(link.node_id):
            self.ping_failed(link.node_id, arguments[1])

    return disconnected


@mutant(Keepalive, "lagged", ["paused-node-blames-nobody", "swarm:1"], [FLAPPING])
def own_slowness_is_theirs(right: Function) -> Function:
    """A node that stood still counts the silence meanwhile against the others."""
    return lambda self, now: None


@mutant(Passage, "look", ["narrow-link-is-not-death"], [FLAPPING, EVERYONE])
def a_full_queue_is_death(right: Function) -> Function:
    """A ping behind a queue that moves fails like any other."""
    return lambda self, *arguments, **named: right(self, *arguments, **named) and False


@mutant(Members, "set_health", ["returns-over-a-bad-link", "killed-and-restarted"], [TABLE])
def events_tell_the_status_and_not_what_was_told(right: Function) -> Function:
    """The previous status of an event is the one before it, told or not."""

    def set_health(self: Members, row: Any, health: Any, *arguments: Any) -> None:
        if row.told is not None:
            row.told = row.health
        right(self, row, health, *arguments)

    return set_health


@mutant(Node, "_destinations", ["forms-and-talks", "rolling-restart"], [TRUE, REACHED, ONE_RESULT])
def one_destination_is_skipped(right: Function) -> Function:
    """The last of several destinations is called not active."""

    def destinations(self: Node, call: Any) -> Any:
        found = right(self, call)
        return [*found[:-1], (found[-1][0], False)] if len(found) > 1 else found

    return destinations


@mutant(Twins, "heard", ["twins-that-never-meet"], [TWINS])
def what_others_say_of_twins_is_ignored(right: Function) -> Function:
    """Who knows one process, and hears of another with its id, says nothing."""
    return lambda self, record, source, now: None


# Ways through others.


AT_ONCE = ["a-kill-is-known-at-once"]
CHANGING = ["a-relay-loses-its-link", "two-relays", "the-relay-dies", "returns-over-a-bad-link"]
AROUND = ["routes-around-a-broken-link", "back-to-the-direct-link", "the-relay-dies"]


@mutant(Rerouting, "saves", AROUND, [FLAPPING])
def nobody_is_asked_before_a_ping_fails(right: Function) -> Function:
    """A ping that the direct connection does not answer counts at once."""
    return lambda self, node_id, now, **named: False


@mutant(Asking, "_suspects", ["nine-cuts-at-once"], [FLAPPING])
def who_is_silent_is_no_relay(right: Function) -> Function:
    """Relays that do not answer us are not looked for over those that do."""
    return lambda self, node_id, now: []


@mutant(Asking, "may_wait", ["a-row-of-four-cut-by-cut"], [FLAPPING])
def all_refuse_once_and_it_has_failed(right: Function) -> Function:
    """Who is silent and whom all relays refuse is not asked for again, over anyone else."""
    return lambda self, node_id, path, now: False


@mutant(Asking, "take_turn", ["the-only-relay-is-reset"], [FLAPPING])
def a_turn_without_relays_is_not_waited_for(right: Function) -> Function:
    """Who is asked for while the links to all relays are being mended has failed."""

    def take_turn(self: Asking, node_id: Any, now: float) -> bool:
        return right(self, node_id, now) and bool(self.paths[node_id].asked)

    return take_turn


@mutant(Asking, "back", ["the-only-relay-is-reset"], [FLAPPING])
def who_asks_over_others_is_not_asked_back(right: Function) -> Function:
    """What relays said of a member counts, although its own ping has come over them since."""
    return lambda self, node_id, way, now: None


@mutant(Asking, "lagged", ["old-refusals-call-nobody-down"], [FLAPPING])
def old_refusals_count_after_standing_still(right: Function) -> Function:
    """What relays said before a node stood still is taken for news when it goes on."""
    return lambda self: None


@mutant(Asking, "_beyond", ["a-row-of-four-cut-by-cut"], [FLAPPING])
def who_is_reached_over_others_is_no_relay(right: Function) -> Function:
    """Only who is lost is looked for behind other relays, not who was reached over the silent."""
    return lambda self, node_id, now: self._suspects(node_id, now)


@mutant(Rerouting, "no_route_untrusted", AT_ONCE, [EVERYONE])
def refusals_of_relays_are_ignored(right: Function) -> Function:
    """Who says that it has no link is believed to have one, and other ways are not asked."""
    return lambda self, link, no_route, now: None


@mutant(Rerouting, "link_closed", ["the-relay-dies"], [LINKS])
def a_way_outlives_its_first_link(right: Function) -> Function:
    """A stale route is not dropped: what goes over a relay that is gone goes nowhere."""
    return lambda self, link, now: None


@mutant(Relaying, "_refuse", AT_ONCE, [EVERYONE])
def relays_are_silent(right: Function) -> Function:
    """A relay without a link drops what it cannot pass on and says nothing."""
    return lambda self, link, origin, destination, relays: None


@mutant(Rerouting, "_refused_by_all", ["restarted-behind-a-cut"], [EVERYONE])
def a_tunnel_that_all_refuse_is_kept(right: Function) -> Function:
    """A killed node is waited for although no relay has a link to it any more."""
    return lambda self, node_id, path, now: None


@mutant(
    Tunnel,
    "receive_untrusted",
    [*CHANGING, "tables-disagree"],
    [TWICE, REACHED, FLAPPING, ORDER, NODE],
)
def a_segment_is_taken_twice(right: Function) -> Function:
    """A routed duplicate is not recognised: its bytes count as the next ones."""

    def receive(self: Tunnel, segment: Segment) -> Any:
        return right(self, attrs.evolve(segment, offset=self.received))

    return receive


@mutant(Tunnel, "go_back", ["a-relay-loses-its-link"], [REACHED, ONE_RESULT, WAITS])
def what_a_relay_lost_stays_lost(right: Function) -> Function:
    """Segments that were on a way when it broke are not sent again."""
    return lambda self: None


@mutant(Links, "stays", ["back-to-the-direct-link"], [DIRECT])
def a_tunnel_is_as_good_as_a_link(right: Function) -> Function:
    """The direct connection is closed for the tunnel that is there already."""

    def stays(self: Links, link: Any, rival: Any) -> Any:
        return link.is_routed if link.is_routed != rival.is_routed else right(self, link, rival)

    return stays


@mutant(Tunnels, "dial", AROUND, [REACHED, ONE_RESULT, WAITS])
def ways_are_found_and_not_used(right: Function) -> Function:
    """Pings go around a broken link, and messages do not."""
    return lambda self, node_id, now: None


@mutant(Ways, "candidates", ["two-relays"], [EVERYONE])
def two_relays_are_one_too_many(right: Function) -> Function:
    """An off-by-one hop limit: only ways over one relay are asked."""
    return lambda self, *arguments: [way for way in right(self, *arguments) if len(way) == 1]
