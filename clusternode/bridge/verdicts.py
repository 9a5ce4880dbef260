"""From results of the far side to what the sender is told. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from clusternode.bridge.engine import Refusal
from clusternode.bus.interface import NodeOutcome
from clusternode.core.effects import Outcome
from clusternode.core.types import ResultCode

CODES: Final[Mapping[Refusal, ResultCode]] = {
    Refusal.FILTERED: ResultCode.NOT_FOUND,
    Refusal.LOOPED: ResultCode.NOT_FOUND,
    Refusal.REPEATED: ResultCode.OK,
    Refusal.BUSY: ResultCode.BUSY,
    Refusal.LIMITED: ResultCode.BUSY,
    Refusal.UNREADABLE: ResultCode.BAD_REQUEST,
}
"""What the sender is told; 404: for this rule it is as if nobody listened here."""
TAKEN: Final = (ResultCode.OK, ResultCode.QUEUED)


def verdict(results: Mapping[Any, ResultCode]) -> ResultCode:
    """Return what the far side as a whole says: 200 when every node that is there has it.

    202 where nobody says more than that he holds it, as a standing-by agent of the next bridge.
    A node that is certainly away (480, 503) or does not listen (404) has no say where another
    took it. What may have happened (408, 500) comes before what certainly did not.
    """
    codes = list(results.values())
    others = [code for code in codes if code not in TAKEN]
    if any(code in TAKEN for code in codes):
        away = (ResultCode.NOT_FOUND, ResultCode.UNAVAILABLE, ResultCode.LEAVING)
        others = [code for code in others if code not in away]
        if not others:
            return ResultCode.OK if ResultCode.OK in codes else ResultCode.QUEUED
    if not others:
        return ResultCode.UNAVAILABLE
    return next((code for code in others if not code.definite), others[0])


def combine(codes: Sequence[ResultCode]) -> ResultCode:
    """Return what the sender is told of a message that several rules have had.

    202 where one of them only holds it: that is not yet the 200 of its chosen agent.
    """
    wrong = [code for code in codes if code not in (*TAKEN, ResultCode.NOT_FOUND)]
    if wrong:
        return next((code for code in wrong if not code.definite), wrong[0])
    for code in (ResultCode.QUEUED, ResultCode.OK):
        if code in codes:
            return code
    return ResultCode.NOT_FOUND


def verdict_of_request(outcomes: Mapping[Any, NodeOutcome]) -> ResultCode:
    """Return 200 where somebody had nothing to say, else why nobody has."""
    if any(each.outcome is Outcome.NOTHING for each in outcomes.values()):
        return ResultCode.OK
    return verdict({node_id: each.code for node_id, each in outcomes.items()})
