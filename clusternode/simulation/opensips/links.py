"""The link with one neighbour, as the clusterer module keeps it: one timer and seven rows."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import Final

import attrs

from clusternode.core.types import Instant, Seconds

NEVER: Final[Instant] = -1e9
"""Before all time: finite, so that differences of two of them are zero."""


class LinkState(enum.Enum):
    """How the own end sees the link."""

    RESTART_PINGING = "restart pinging"
    """Where every link begins."""
    RETRY_SEND_FAIL = "retry, send failed"
    RESTARTED = "restarted"
    RETRYING = "retrying"
    UP = "up"
    DOWN = "down"


@attrs.frozen
class Timing:
    """Parameters of the module, in seconds; the defaults are its own."""

    ping_interval: Seconds = 4.0
    ping_timeout: Seconds = 1.0
    node_timeout: Seconds = 60.0
    seed_fallback_interval: Seconds = 5.0
    sync_timeout: Seconds = 15.0

    @property
    def tick(self) -> Seconds:
        """The greatest common divisor of the three times of pings."""
        times = (self.ping_interval, self.ping_timeout, self.node_timeout)
        return math.gcd(*(round(time * 1000) for time in times)) / 1000


@attrs.define
class Link:
    """Counters and times of one link."""

    state: LinkState = LinkState.RESTART_PINGING
    retries_left: int = 0
    last_ping: Instant = NEVER
    last_pong: Instant = NEVER
    last_sent: Instant = NEVER
    """When something of a module or script went to this neighbour; counts as a ping."""
    last_received: Instant = NEVER
    last_ping_went_out: bool = False

    @property
    def is_up(self) -> bool:
        return self.state is LinkState.UP

    def tick(
        self, now: Instant, timing: Timing, retries: int, ping: Callable[[bool], bool]
    ) -> LinkState:
        """Do what is due at a tick of the timer; return the state that the link must take.

        Args:
            now: The present.
            timing: The parameters.
            retries: no_ping_retries of the neighbour.
            ping: Sends a ping, which asks for the list of nodes or not; returns whether it went
                out.
        """
        since_ping = now - self.last_ping
        was_answered = 0 < self.last_pong - self.last_ping < timing.ping_timeout
        is_overdue = not was_answered and since_ping >= timing.ping_timeout
        match self.state:
            case LinkState.RESTART_PINGING:
                return self.probe(retries, ping)
            case LinkState.RETRY_SEND_FAIL if since_ping >= timing.ping_timeout:
                self.retries_left -= 1
                if ping(True):
                    return LinkState.RETRYING
                return LinkState.DOWN if self.retries_left <= 0 else LinkState.RETRY_SEND_FAIL
            case LinkState.UP if is_overdue and now - self.last_sent >= timing.ping_timeout:
                return self._first_retry(retries, ping)
            case LinkState.RESTARTED if is_overdue:
                return self._first_retry(retries, ping)
            case LinkState.RETRYING if is_overdue:
                if self.retries_left <= 0:
                    return LinkState.DOWN
                if not ping(True):
                    return LinkState.RETRY_SEND_FAIL
                self.retries_left -= 1
            case LinkState.DOWN if since_ping >= timing.node_timeout:
                if ping(True):
                    return LinkState.RESTARTED
                self.retries_left = retries
                return LinkState.RETRY_SEND_FAIL if retries else LinkState.DOWN
            case LinkState.UP if min(
                since_ping, now - self.last_sent
            ) >= timing.ping_interval and not ping(False):
                self.retries_left = retries
                return LinkState.RETRY_SEND_FAIL if retries else LinkState.DOWN
        return self.state

    def probe(self, retries: int, ping: Callable[[bool], bool]) -> LinkState:
        """Begin anew with a ping."""
        if ping(True):
            return LinkState.RESTARTED
        self.retries_left = retries
        return LinkState.RETRY_SEND_FAIL if retries else LinkState.DOWN

    def _first_retry(self, retries: int, ping: Callable[[bool], bool]) -> LinkState:
        if not retries:
            return LinkState.DOWN
        if not ping(True):
            self.retries_left = retries
            return LinkState.RETRY_SEND_FAIL
        self.retries_left = retries - 1
        return LinkState.RETRYING

    def pong(self, now: Instant, timing: Timing) -> bool:
        """Take an answer; return whether it brings the link up."""
        was_heard_of = now - self.last_received < timing.ping_timeout
        self.last_pong = self.last_received = now
        is_in_time = 0 < now - self.last_ping < timing.ping_timeout
        match self.state:
            case LinkState.UP:
                return False
            case LinkState.RESTARTED | LinkState.RETRYING:
                return is_in_time or was_heard_of
            case _:
                is_race = self.last_ping_went_out and now - self.last_ping < timing.ping_timeout
                return is_race and (is_in_time or was_heard_of)
