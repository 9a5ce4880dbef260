import logging

import trio

from clusternode.core import events
from clusternode.runtime.bounds import LOG_INTERVAL, LOG_KEYS_MAX, LOG_LINES_MAX
from clusternode.runtime.eventlog import EventLog
from clusternode.runtime.logs import RateLimitedLog

logger = logging.getLogger("test")


async def test_one_line_per_key_and_interval_and_the_rest_is_counted(autojump_clock, caplog):
    log = RateLimitedLog(logger, interval=60.0)

    for _ in range(3):
        log.warn_about("a", "%s again", "a")
    log.warn_about("b", "%s again", "b")
    await trio.sleep(61)
    log.warn_about("a", "%s again", "a")

    assert caplog.messages == ["a again", "b again", "a again (and 2 more like this)"]


async def test_one_cause_has_one_line_a_minute(autojump_clock, caplog):
    log = RateLimitedLog(logger)

    for _ in range(600):
        log.warn_about("cause", "line")
        await trio.sleep(0.1)
    assert len(caplog.messages) == 1
    log.warn_about("cause", "line")

    assert caplog.messages[1:] == ["line (and 599 more like this)"]


async def test_all_causes_together_have_a_bounded_number_of_lines(autojump_clock, caplog):
    log = RateLimitedLog(logger)

    for number in range(LOG_LINES_MAX + 5):
        log.warn_about(str(number), "line")
    assert len(caplog.messages) == LOG_LINES_MAX
    await trio.sleep(LOG_INTERVAL + 1)
    log.warn_about("later", "line")

    assert caplog.messages[-1] == "line (5 warnings about others were left out)"


async def test_the_causes_that_are_remembered_are_bounded(autojump_clock, caplog):
    log = RateLimitedLog(logger, interval=1000.0)

    for number in range(LOG_KEYS_MAX + 1):
        log.warn_about(str(number), "line")
        await trio.sleep(1000.0 / LOG_LINES_MAX + 0.1)

    assert len(log._last) == LOG_KEYS_MAX


async def test_changes_of_state_and_faults_are_logged(caplog):
    caplog.set_level(logging.INFO)
    log = EventLog()

    log.note(events.NodeStateChanged("voip", "n2", 1, "active", "new", "it answers"))
    log.note(events.PeerMisbehaved("voip", "", "192.0.2.1:9", "garbage"))
    log.note(events.PeerUp("voip", "n2", "tcp://192.0.2.2:1"))

    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert "n2: new -> active (it answers)" in caplog.messages[0]
    assert "an unknown node at 192.0.2.1:9: garbage" in caplog.messages[1]
