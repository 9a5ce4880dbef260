"""Where messages come from and go to, as the configuration writes it: `channel:fraud@voip`."""

from __future__ import annotations

import attrs

from clusternode.config.kinds import NAME, WrongValue, text_kind
from clusternode.kafka.uri import TOPIC

ON_A_BUS = ("channel", "request", "table", "contacts")
"""Ends of a cluster or gateway, which have a far side that answers."""
KINDS = (*ON_A_BUS, "event", "kafka")
TYPED = ("table", "contacts")
"""Ends whose messages are understood, and so can be said in another world's words."""
NAME_FIELD = "{name}"
NAMES_MAX = 100
"""Names of one rule: more are a mistake."""
TABLE_NAME_LENGTH_MAX = 256
EXPECTED = (
    "channel:NAME[@CLUSTER], request:NAME[@CLUSTER], event:NAME[@CLUSTER],"
    " table:NAME@CLUSTER, contacts:DOMAIN@CLUSTER or kafka:CONNECTION/TOPIC"
)


@attrs.frozen
class End:
    """One end of a bridge, or where a notification goes."""

    kind: str
    """One of `KINDS`."""
    name: str
    """Of the channel, event (or a wildcard), shared table, location domain or topic."""
    where: str = ""
    """The cluster (empty: the first), or the connection."""

    def __str__(self) -> str:
        if self.kind == "kafka":
            return f"kafka:{self.where}/{self.name}"
        return f"{self.kind}:{self.name}" + (f"@{self.where}" if self.where else "")

    def fill(self, name: str) -> End:
        """Return the end with a name in place of `{name}`."""
        return attrs.evolve(self, name=self.name.replace(NAME_FIELD, name))


def _split(text: str) -> tuple[str, str, str]:
    """Return kind, names and place.

    Raises:
        WrongValue: It is no end.
    """
    kind, _, rest = text.partition(":")
    if kind == "kafka":
        where, _, names = rest.partition("/")
        NAME.read(where)
    else:
        names, at, where = rest.rpartition("@") if "@" in rest else (rest, "", "")
        if at and not where:
            raise WrongValue
        if kind in TYPED and not where:
            raise WrongValue(f"{kind}:NAME@CLUSTER: the cluster too")
    if kind not in KINDS or not names:
        raise WrongValue
    return kind, names, where


def _check_name(kind: str, name: str) -> None:
    if kind in ("channel", "request"):
        NAME.read(name)
    elif (kind == "kafka" and not TOPIC.fullmatch(name)) or (
        kind in TYPED and not 0 < len(name) <= TABLE_NAME_LENGTH_MAX
    ):
        raise WrongValue


def _read_source(text: str) -> object:
    kind, names, where = _split(text)
    found = tuple(End(kind, name.strip(), where) for name in names.split(","))
    if len(found) > NAMES_MAX or len(set(found)) < len(found):
        raise WrongValue(f"at most {NAMES_MAX} different names")
    for end in found:
        _check_name(kind, end.name)
    return found


def _read_target(text: str) -> object:
    kind, name, where = _split(text)
    _check_name(kind, name.replace(NAME_FIELD, "x"))
    return End(kind, name, where)


SOURCE = text_kind("string", EXPECTED, _read_source)
"""A text → one or more ends: names may be separated by commas."""
TARGET = text_kind("string", EXPECTED, _read_target)
"""A text → one end, whose name may hold `{name}`: the name at the other end."""


def check_filled(end: End) -> None:
    """See whether an end is one, now that its name is known.

    Raises:
        WrongValue: It is none.
    """
    _check_name(end.kind, end.name)
