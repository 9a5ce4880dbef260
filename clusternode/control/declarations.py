"""How a call of the control socket is declared: what it takes and what it returns."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Parameter:
    """One parameter of a call."""

    name: str
    type: str
    """string, text, number, seconds, boolean, strings, values or object."""
    help: str
    required: bool = False
    default: object = None


@attrs.frozen(kw_only=True)
class Call:
    """One call: what it takes and what it returns."""

    name: str
    help: str
    parameters: tuple[Parameter, ...] = ()
    result: str
    item: str = ""
    """What each notification of the stream before the result holds; empty: no stream."""

    @property
    def is_stream(self) -> bool:
        return bool(self.item)
