"""The health of a member: states, signals and their one transition table.

Specified in docs/node-health.md, whose tables and diagram are made here. The parameters and their
meaning are those of Kamailio's `dmq` module 6.1 (README 3.9 to 3.12).
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterator, Mapping

import attrs

from clusternode.core.settings import HealthSettings
from clusternode.errors import LocalProtocolError


class Health(enum.Enum):
    """How reachable a member is by our own pings."""

    ACTIVE = "active"
    """Its last ping was answered, or too few failed since."""
    NOT_ACTIVE = "not_active"
    """It does not answer, or has not answered yet; it is pinged and dialled on."""
    DISABLED = "disabled"
    """It is about to be removed, at its next failed ping."""
    LEFT = "left"
    """It said that it leaves the cluster; failed pings change nothing any more."""
    REMOVED = "removed"
    """It is no member any more; its record is kept so that it does not return as a ghost."""

    __hash__ = object.__hash__
    """As equality: by identity. That of `enum` is a call for every look into a table."""


class Signal(enum.Enum):
    """What the outcome of a ping, or news about a member, means for its state."""

    ANSWERED = "ping answered"
    """It proved that our bytes arrived."""
    FAILED = "ping failed"
    """No path answered a ping, and neither a threshold nor a rule makes that a step."""
    NOT_ACTIVE_DUE = "ping failed, not_active due"
    """A ping failed over `fail_count_threshold_not_active`, or the member is protected."""
    DISABLED_DUE = "ping failed, disabled due"
    """A ping failed over `fail_count_threshold_disabled`, or failed pings are not counted."""
    REMOVAL_DUE = "ping failed, removal due"
    """A ping of a member failed that was disabled already."""
    LEAVE_HEARD = "leave heard"
    """The last version of its record says that it left."""
    RETURNED = "returned"
    """Its own HELLO was accepted, or somebody knows a larger incarnation of it."""


TRANSITIONS: Mapping[Health, Mapping[Signal, Health]] = {
    Health.ACTIVE: {
        Signal.ANSWERED: Health.ACTIVE,
        Signal.FAILED: Health.ACTIVE,
        Signal.NOT_ACTIVE_DUE: Health.NOT_ACTIVE,
        Signal.DISABLED_DUE: Health.DISABLED,
        Signal.LEAVE_HEARD: Health.LEFT,
    },
    Health.NOT_ACTIVE: {
        Signal.ANSWERED: Health.ACTIVE,
        Signal.FAILED: Health.NOT_ACTIVE,
        Signal.DISABLED_DUE: Health.DISABLED,
        Signal.LEAVE_HEARD: Health.LEFT,
    },
    Health.DISABLED: {
        Signal.ANSWERED: Health.ACTIVE,
        Signal.NOT_ACTIVE_DUE: Health.NOT_ACTIVE,
        Signal.REMOVAL_DUE: Health.REMOVED,
        Signal.LEAVE_HEARD: Health.LEFT,
    },
    Health.LEFT: {
        Signal.ANSWERED: Health.ACTIVE,
        Signal.FAILED: Health.LEFT,
        Signal.LEAVE_HEARD: Health.LEFT,
        Signal.RETURNED: Health.NOT_ACTIVE,
    },
    Health.REMOVED: {
        Signal.ANSWERED: Health.ACTIVE,
        Signal.FAILED: Health.REMOVED,
        Signal.LEAVE_HEARD: Health.REMOVED,
        Signal.RETURNED: Health.NOT_ACTIVE,
    },
}


def next_health(state: Health, signal: Signal) -> Health:
    """Look a transition up.

    Raises:
        LocalProtocolError: The table has no such pair, so the caller has a bug.
    """
    try:
        return TRANSITIONS[state][signal]
    except KeyError:
        raise LocalProtocolError(
            f"no transition from {state.value} at {signal.name}; there are "
            f"{', '.join(known.name for known in TRANSITIONS[state])}"
        ) from None


def apply_ping_answered(state: Health) -> Health:
    """Return the state after proof of life. The caller sets the fail count to 0."""
    if state is Health.ACTIVE:  # nearly every ping; spares the table's two hashes
        return state
    return next_health(state, Signal.ANSWERED)


def apply_ping_failed(
    state: Health, fail_count: int, settings: HealthSettings, *, is_protected: bool
) -> tuple[Health, int]:
    """Return the state and the fail count after a ping that no path answered.

    Args:
        state: The state before.
        fail_count: How many pings have failed since the last answer, without this one.
        settings: Which rules hold.
        is_protected: Whether one of the member's addresses is a notification address.
    """
    if settings.fail_count_enabled and state not in _OUTSIDE:
        fail_count += 1
    signal = signal_of_failed_ping(state, fail_count, settings, is_protected=is_protected)
    return next_health(state, signal), fail_count


def apply_left(state: Health) -> Health:
    """Return the state after the member's record said that it left."""
    return next_health(state, Signal.LEAVE_HEARD)


def apply_returned(state: Health) -> Health:
    """Return the state of a removed or left member that is back: it has yet to answer a ping."""
    return next_health(state, Signal.RETURNED)


def signal_of_failed_ping(
    state: Health, fail_count: int, settings: HealthSettings, *, is_protected: bool
) -> Signal:
    """Tell what a failed ping means; `fail_count` includes it where failures are counted.

    Both thresholds are strictly greater than, and a member takes at most one step per failed
    ping (Kamailio `dmq` README 3.11 and 3.12). A member that is a notification address, and every
    member without `remove_inactive`, is not_active at worst.
    """
    if state in _OUTSIDE:
        return Signal.FAILED
    is_kept = is_protected or not settings.remove_inactive
    if state is Health.DISABLED:  # a kept one was disabled by an operator
        return Signal.NOT_ACTIVE_DUE if is_kept else Signal.REMOVAL_DUE
    if not settings.fail_count_enabled:
        if not is_kept:
            return Signal.DISABLED_DUE
        return Signal.NOT_ACTIVE_DUE if state is Health.ACTIVE else Signal.FAILED
    if state is Health.NOT_ACTIVE:
        is_over = fail_count > settings.fail_count_threshold_disabled and not is_kept
        return Signal.DISABLED_DUE if is_over else Signal.FAILED
    is_over = fail_count > settings.fail_count_threshold_not_active
    return Signal.NOT_ACTIVE_DUE if is_over else Signal.FAILED


_OUTSIDE = (Health.LEFT, Health.REMOVED)  # their failed pings change nothing


@attrs.frozen
class TransitionRow:
    """One line of the full table: what one failed ping does to a member, by the settings."""

    state: Health
    fail_count_enabled: bool
    is_protected: bool
    """A notification address, or `remove_inactive = false`."""
    is_over_not_active: bool
    """Whether the fail count, with this failure, is over `fail_count_threshold_not_active`."""
    is_over_disabled: bool
    signal: Signal
    next_state: Health


def transition_rows() -> Iterator[TransitionRow]:
    """Enumerate what a failed ping does: every state by every combination of settings."""
    booleans = (True, False)
    for state, enabled, protected, over_not_active, over_disabled in itertools.product(
        Health, booleans, booleans, booleans, booleans
    ):
        settings = HealthSettings(
            fail_count_enabled=enabled,
            fail_count_threshold_not_active=0 if over_not_active else 1,
            fail_count_threshold_disabled=0 if over_disabled else 1,
        )
        signal = signal_of_failed_ping(state, 1, settings, is_protected=protected)
        yield TransitionRow(
            state=state,
            fail_count_enabled=enabled,
            is_protected=protected,
            is_over_not_active=over_not_active,
            is_over_disabled=over_disabled,
            signal=signal,
            next_state=next_health(state, signal),
        )


def diagram() -> str:
    """Draw the table as a Mermaid state diagram, for docs/node-health.md."""
    lines = ["stateDiagram-v2", f"    [*] --> {Health.NOT_ACTIVE.value}: heard of"]
    for state, row in TRANSITIONS.items():
        lines += [
            f"    {state.value} --> {after.value}: {signal.value}"
            for signal, after in row.items()
            if after is not state
        ]
    return "\n".join(lines)


def table_markdown() -> str:
    """Write both tables as Markdown, for docs/node-health.md."""
    return "\n".join([*_transition_lines(), "", *_failed_ping_lines()])


def _transition_lines() -> Iterator[str]:
    """Yield state × signal; a dash is a pair that cannot happen."""
    yield "| state | " + " | ".join(signal.value for signal in Signal) + " |"
    yield "|---|" + "---|" * len(Signal)
    for state, row in TRANSITIONS.items():
        cells = [row[signal].value if signal in row else "–" for signal in Signal]
        yield f"| `{state.value}` | " + " | ".join(cells) + " |"


def _failed_ping_lines() -> Iterator[str]:
    """Yield state × setting for a failed ping; a dash is a threshold that does not matter."""
    yield (
        "| state | `fail_count_enabled` | protected | over `fail_count_threshold_not_active` "
        "| over `fail_count_threshold_disabled` | after a failed ping |"
    )
    yield "|---|---|---|---|---|---|"
    for (state, enabled, protected), group in itertools.groupby(
        transition_rows(), key=lambda row: (row.state, row.fail_count_enabled, row.is_protected)
    ):
        rows = list(group)
        for row in _merged(rows):
            cells = [f"`{state.value}`", _yes(enabled), _yes(protected), *row]
            yield "| " + " | ".join(cells) + " |"


def _merged(rows: list[TransitionRow]) -> Iterator[tuple[str, str, str]]:
    """Merge the rows of one state and setting that do not depend on a threshold."""
    by_not_active = {row.is_over_not_active: row.next_state for row in rows}
    by_disabled = {row.is_over_disabled: row.next_state for row in rows}
    if len({row.next_state.value for row in rows}) == 1:
        yield "–", "–", f"`{rows[0].next_state.value}`"
    elif rows[0].state is Health.ACTIVE:
        for is_over, after in by_not_active.items():
            yield _yes(is_over), "–", f"`{after.value}`"
    else:
        for is_over, after in by_disabled.items():
            yield "–", _yes(is_over), f"`{after.value}`"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
