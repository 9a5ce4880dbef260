"""The mark that travels with a relayed message: who sent it first, and where it has been.

It is a parameter of the content type, which our own protocol and SIP both carry and which who
does not know it ignores (RFC 2045 section 5.1); in Kafka it is made of headers. OpenSIPS has no
place for it. Pure. See docs/one-bus-from-three.md, "Never in a circle".
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Final

import attrs

from clusternode.core.wire.limits import CONTENT_TYPE_LENGTH_MAX

PARAMETER: Final = "bridged"
IDENTITY_LENGTH: Final = 10
"""60 bits: among a million messages of a loop window, two are equal once in two million windows."""
PLACE_LENGTH: Final = 5
"""30 bits for one of at most a few thousand ends."""
PATH_MAX: Final = 8
"""A message that has been at so many ends goes no further; the mark must fit."""
_MARK: Final = re.compile(
    rf";\s*{PARAMETER}=([A-Za-z0-9_-]{{{IDENTITY_LENGTH}}})"
    rf"((?:[A-Za-z0-9_-]{{{PLACE_LENGTH}}}){{0,{PATH_MAX}}})(?=;|$)"
)


def digest(text: str | bytes, length: int) -> str:
    """Return so many letters, of six bits each, that stand for a text."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    size = (length * 6 + 7) // 8
    found = hashlib.blake2b(data, digest_size=size).digest()
    return base64.urlsafe_b64encode(found).decode()[:length]


def number_of(text: str, bits: int) -> int:
    """Return a number of so many bits, at most 64, that stands for a text."""
    found = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(found, "big") >> (64 - bits)


def identity_of(*parts: object) -> str:
    """Return the identity of a message, made of what no other message shares."""
    return digest("\0".join(map(str, parts)), IDENTITY_LENGTH)


def place_of(end: str) -> str:
    """Return what stands for an end in a path."""
    return digest(end, PLACE_LENGTH)


@attrs.frozen
class Mark:
    """Who sent a message first, and the ends where it has been."""

    identity: str
    """`identity_of` cluster, node and number at the first bridge."""
    path: tuple[str, ...] = ()
    """`place_of` each end, oldest first."""

    @property
    def text(self) -> str:
        return self.identity + "".join(self.path)

    def visited(self, place: str) -> bool:
        return place in self.path

    @property
    def is_full(self) -> bool:
        return len(self.path) >= PATH_MAX

    def beside(self, *places: str) -> Mark:
        """Return the mark with more places; what is there already is not said twice."""
        more = tuple(each for each in dict.fromkeys(places) if each not in self.path)
        return Mark(self.identity, (*self.path, *more))

    def on(self, content_type: str) -> str | None:
        """Return the content type that carries this mark; None where it would be too long."""
        marked = f"{content_type};{PARAMETER}={self.text}"
        return marked if len(marked) <= CONTENT_TYPE_LENGTH_MAX else None


def split_untrusted(content_type: str) -> tuple[str, Mark | None]:
    """Return a content type without its mark, and the mark if there is one.

    The first one, of several: a bridge writes one, and leaves none that a stranger has put beside.
    """
    found = _MARK.search(content_type)
    if found is None:
        return content_type, None
    return _MARK.sub("", content_type), _mark(found[1], found[2])


def parse_untrusted(text: str) -> Mark | None:
    """Read the text of a mark; None when it is none."""
    found = _MARK.fullmatch(f";{PARAMETER}={text}")
    return None if found is None else _mark(found[1], found[2])


def _mark(identity: str, places: str) -> Mark:
    cut = range(0, len(places), PLACE_LENGTH)
    return Mark(identity, tuple(places[at : at + PLACE_LENGTH] for at in cut))
