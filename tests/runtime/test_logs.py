import logging

import trio

from clusternode.core import events
from clusternode.runtime.eventlog import EventLog
from clusternode.runtime.logs import KEYS_MAX, RateLimitedLog

logger = logging.getLogger("test")


async def test_one_line_per_key_and_interval_and_the_rest_is_counted(autojump_clock, caplog):
    log = RateLimitedLog(logger, interval=60.0)

    for _ in range(3):
        log.warn_about("a", "%s again", "a")
    log.warn_about("b", "%s again", "b")
    await trio.sleep(61)
    log.warn_about("a", "%s again", "a")

    assert caplog.messages == ["a again", "b again", "a again (and 2 more like this)"]


async def test_the_keys_that_are_remembered_are_bounded(caplog):
    log = RateLimitedLog(logger)

    for number in range(KEYS_MAX + 1):
        log.warn_about(str(number), "line")
    log.warn_about(str(KEYS_MAX), "suppressed")
    log.warn_about("0", "forgotten")

    assert caplog.messages[-1] == "forgotten"
    assert "suppressed" not in caplog.messages


async def test_changes_of_state_and_faults_are_logged(caplog):
    caplog.set_level(logging.INFO)
    log = EventLog()

    log.note(events.NodeStateChanged("voip", "n2", 1, "active", "new", "it answers"))
    log.note(events.PeerMisbehaved("voip", "", "192.0.2.1:9", "garbage"))
    log.note(events.PeerUp("voip", "n2", "tcp://192.0.2.2:1"))

    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert "n2: new -> active (it answers)" in caplog.messages[0]
    assert "an unknown node at 192.0.2.1:9: garbage" in caplog.messages[1]
