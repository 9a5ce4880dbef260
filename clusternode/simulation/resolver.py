"""Scripted DNS: what each name resolves to, how long that takes, or how it fails."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from clusternode.core.inputs import Resolved, ResolvedAddress
from clusternode.core.types import Address, Seconds

ANSWER_DELAY: Seconds = 0.002
"""A resolver in the same building that has the answer in its cache."""


@attrs.frozen
class Answer:
    """What one name resolves to from now on. Answers are addresses, best first."""

    addresses: Sequence[Address] = ()
    error: str | None = None
    delay: Seconds = ANSWER_DELAY


class ScriptedResolver:
    """Names without an answer do not exist."""

    def __init__(self) -> None:
        self._answers: dict[str, Answer] = {}  # name → answer

    def script(self, name: str, answer: Answer) -> None:
        self._answers[name] = answer

    def resolve(self, name: Address) -> tuple[Seconds, Resolved]:
        """Return how long the answer takes, and the answer.

        SRV answers carry the port of each target; for A and AAAA the port is that of the name.
        """
        answer = self._answers.get(name.host)
        if answer is None:
            return ANSWER_DELAY, Resolved(name, error=f"{name.host}: no such name")
        if answer.error is not None:
            return answer.delay, Resolved(name, error=answer.error)
        found = [
            ResolvedAddress(
                address if name.scheme == "srv" else Address(name.scheme, address.host, name.port)
            )
            for address in answer.addresses
        ]
        return answer.delay, Resolved(name, addresses=found)
