"""The driver: inputs from inside effects, its timer, lags, and the state."""

import pytest
import trio

from clusternode.core.inputs import KnownMember, Publish
from clusternode.core.settings import NodeSettings
from clusternode.core.types import Address, ChannelName, DeliveryId, Incarnation, NodeId
from clusternode.runtime.driver import LAG_THRESHOLD, Driver, Surroundings
from clusternode.runtime.jobs import Jobs
from clusternode.testing.fakes import FakeResolver


class NotingLinks:
    def __init__(self):
        self.dialed = []
        self.counters = {"dials": 7}

    def dial(self, address):
        self.dialed.append(str(address))

    def output_ready(self, effect): ...
    def write(self, effect): ...
    def write_each(self, effect): ...
    def disconnect(self, effect): ...
    def measure(self, effect): ...


class NotingObserver:
    """Notes effects, and feeds an input from inside each `settle` up to `depth`."""

    def __init__(self, driver, depth=0):
        self.driver = driver
        self.depth = depth
        self.calls = []
        self.events = []

    def settle(self, effect):
        self.calls.append(("settle begins", effect.results[0][0]))
        if self.depth:
            self.depth -= 1
            self.driver.feed(publish(effect.results[0][0] + 1))
        self.calls.append(("settle ends", effect.results[0][0]))

    def fan_out(self, effect):
        self.calls.append(("fan out", effect.delivery))

    def emit(self, event):
        self.events.append(event)

    def handle(self, effect): ...
    def asked(self, effect): ...
    def replied(self, effect): ...
    def request_finished(self, effect): ...
    def request_ended(self, effect): ...


def publish(number):
    nobody = [NodeId("nobody")]
    return Publish(DeliveryId(number), ChannelName("c"), b"", destinations=nobody)


def settings_of(**options):
    return NodeSettings(
        node_id=NodeId("n1"),
        cluster="voip",
        incarnation=Incarnation(1),
        address=Address.parse("tcp://10.0.0.1:5062"),
        **options,
    )


@pytest.fixture
async def observer(nursery):
    driver = Driver(settings_of())
    observer = NotingObserver(driver)
    jobs = Jobs()
    driver.attach(Surroundings(NotingLinks(), observer, FakeResolver(), jobs, None))
    await nursery.start(jobs.run)
    await nursery.start(driver.run)
    return observer


async def test_an_input_from_inside_an_effect_waits_for_the_effects_before_it(
    observer, autojump_clock
):
    observer.driver.start()
    observer.depth = 2

    observer.driver.feed(publish(1))

    settled = [call for call in observer.calls if call[0] != "fan out"]
    assert settled == [
        ("settle begins", 1),
        ("settle ends", 1),
        ("settle begins", 2),
        ("settle ends", 2),
        ("settle begins", 3),
        ("settle ends", 3),
    ]


async def test_inputs_before_the_start_wait_for_it(observer, autojump_clock):
    observer.driver.feed(publish(1))
    assert observer.calls == []

    observer.driver.start()

    assert ("settle ends", 1) in observer.calls


async def test_known_members_are_dialled_and_dialled_again_in_time(observer, autojump_clock):
    address = Address.parse("tcp://10.0.0.2:5062")

    observer.driver.start([KnownMember(NodeId("n2"), address, 1.0)])
    await trio.sleep(1)

    assert observer.driver._around.links.dialed == ["tcp://10.0.0.2:5062"]


async def test_a_loop_that_stood_still_is_told_to_the_node_first(observer, mock_clock, caplog):
    observer.driver.start([KnownMember(NodeId("n2"), Address.parse("tcp://10.0.0.2:5062"), 1.0)])
    due = observer.driver.node.next_deadline()
    assert due is not None

    mock_clock.jump(due - trio.current_time() + 10 * LAG_THRESHOLD)
    observer.driver.feed(publish(1))

    lagged = [event for event in observer.events if event.ALIAS == "node:lagged"]
    assert [event.seconds for event in lagged] == [pytest.approx(10 * LAG_THRESHOLD)]
    assert "stood still" in caplog.text
    await trio.testing.wait_all_tasks_blocked()
    assert observer.driver.counters["loop_lags"] == 1


async def test_the_snapshot_has_the_counters_of_all_parts(observer, autojump_clock):
    observer.driver.start()

    counters = observer.driver.snapshot().counters

    assert counters["dials"] == 7
    assert counters["feeds"] >= 1
