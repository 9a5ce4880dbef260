"""POSIX extended regular expressions in time linear in the text, whoever wrote the expression.

Kamailio lets any node say "remove all keys that match this" (sht_rm_name_re). The engine of the
standard library takes exponential time for expressions that are made for it, so one datagram
could stop the agent; this one simulates a Thompson automaton. It knows what `regcomp(3)` with
REG_EXTENDED knows, but for back-references and collating elements.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Final

import attrs

LENGTH_MAX: Final = 256
REPEAT_MAX: Final = 255
"""RE_DUP_MAX of POSIX."""
STATES_MAX: Final = 512
DEPTH_MAX: Final = 32

CLASSES: Final = {
    "alpha": string.ascii_letters,
    "digit": string.digits,
    "alnum": string.ascii_letters + string.digits,
    "upper": string.ascii_uppercase,
    "lower": string.ascii_lowercase,
    "space": string.whitespace,
    "blank": " \t",
    "punct": string.punctuation,
    "xdigit": string.hexdigits,
    "print": string.ascii_letters + string.digits + string.punctuation + " ",
    "graph": string.ascii_letters + string.digits + string.punctuation,
    "cntrl": "".join(map(chr, range(32))) + "\x7f",
}

Test = Callable[[str], bool]


class BadPattern(ValueError):
    """It is no expression, or one beyond the bounds."""


@attrs.define
class _State:
    """`test` None is an empty step; `anchor` is ^ or $."""

    test: Test | None = None
    anchor: str = ""
    after: list[int] = attrs.Factory(list)


@attrs.frozen
class _Fragment:
    start: int
    end: int
    """An empty state that leads nowhere yet."""


class Regex:
    """A compiled expression.

    Raises:
        BadPattern: It is none, or too large.
    """

    def __init__(self, pattern: str) -> None:
        if len(pattern) > LENGTH_MAX:
            raise BadPattern(f"{len(pattern)} characters, at most {LENGTH_MAX}")
        self._pattern = pattern
        self._at = 0
        self._depth = 0
        self._states: list[_State] = []
        whole = self._alternatives()
        if self._at != len(pattern):
            raise BadPattern("unmatched )")
        self._start, self._end = whole.start, whole.end
        self.steps = 0
        """How much work all searches took together."""

    def search(self, text: str) -> bool:
        """Tell whether any part of the text matches."""
        current: dict[int, None] = {}
        for position in range(len(text) + 1):
            self._add(current, self._start, position, len(text))
            if self._end in current:
                return True
            if position == len(text):
                break
            character = text[position]
            after: dict[int, None] = {}
            self.steps += len(current)
            for index in current:
                state = self._states[index]
                if state.test is not None and state.test(character):
                    for target in state.after:
                        self._add(after, target, position + 1, len(text))
            current = after
            if self._end in current:
                return True
        return False

    def _add(self, found: dict[int, None], index: int, position: int, length: int) -> None:
        waiting = [index]
        while waiting:
            index = waiting.pop()
            if index in found:
                continue
            state = self._states[index]
            if state.anchor == "^" and position != 0:
                continue
            if state.anchor == "$" and position != length:
                continue
            found[index] = None
            if state.test is None:
                waiting += state.after

    # --- the parser: alternatives > sequence > repeated > atom ------------------------------------

    def _new(self, test: Test | None = None, anchor: str = "") -> int:
        if len(self._states) >= STATES_MAX:
            raise BadPattern(f"more than {STATES_MAX} states")
        self._states.append(_State(test, anchor))
        return len(self._states) - 1

    def _single(self, test: Test | None = None, anchor: str = "") -> _Fragment:
        start, end = self._new(test, anchor), self._new()
        self._states[start].after.append(end)
        return _Fragment(start, end)

    def _peek(self) -> str:
        return self._pattern[self._at] if self._at < len(self._pattern) else ""

    def _next(self) -> str:
        character = self._peek()
        if not character:
            raise BadPattern("ends too early")
        self._at += 1
        return character

    def _alternatives(self) -> _Fragment:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise BadPattern(f"more than {DEPTH_MAX} groups in one another")
        branches = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            branches.append(self._sequence())
        self._depth -= 1
        if len(branches) == 1:
            return branches[0]
        start, end = self._new(), self._new()
        for branch in branches:
            self._states[start].after.append(branch.start)
            self._states[branch.end].after.append(end)
        return _Fragment(start, end)

    def _sequence(self) -> _Fragment:
        whole = self._single()
        while self._peek() and self._peek() not in "|)":
            part = self._repeated()
            self._states[whole.end].after.append(part.start)
            whole = _Fragment(whole.start, part.end)
        return whole

    def _repeated(self) -> _Fragment:
        begin = self._at
        fragment = self._atom()
        end = self._at
        while self._peek() and self._peek() in "*+?{":
            minimum, maximum = self._counts()
            after = self._at
            fragment = self._repeat(begin, end, fragment, minimum, maximum)
            self._at = after
            if self._peek() and self._peek() in "*+?{":  # a** is a*, and a+{2} is nobody's key
                if self._peek() not in "*+?":
                    raise BadPattern("a repetition of a repetition")
                self._at += 1
                fragment = self._repeat(begin, end, fragment, 0, None)
                self._at = after + 1
        return fragment

    def _counts(self) -> tuple[int, int | None]:
        match self._next():
            case "*":
                return 0, None
            case "+":
                return 1, None
            case "?":
                return 0, 1
        close = self._pattern.find("}", self._at)
        if close < 0:
            raise BadPattern("no }")
        low, comma, high = self._pattern[self._at : close].partition(",")
        self._at = close + 1
        for text in (low, high):
            if text and not (text.isascii() and text.isdigit() and len(text) < 4):
                raise BadPattern("no number in { }")
        minimum = int(low or 0)
        maximum = (int(high) if high else None) if comma else minimum
        if minimum > REPEAT_MAX or (maximum is not None and not minimum <= maximum <= REPEAT_MAX):
            raise BadPattern(f"repeated more than {REPEAT_MAX} times")
        return minimum, maximum

    def _repeat(
        self, begin: int, end: int, first: _Fragment, minimum: int, maximum: int | None
    ) -> _Fragment:
        """Chain copies of the atom at begin:end; each copy is parsed anew."""
        copies = max(minimum, 1) if maximum is None else maximum
        start = self._new()
        last = self._new()
        states = self._states
        tail = start
        if minimum == 0:
            states[start].after.append(last)
        for number in range(copies):
            if number == 0:
                copy = first
            else:
                self._at = begin
                copy = self._atom()
                assert self._at == end, "an atom reads the same twice"
            states[tail].after.append(copy.start)
            tail = copy.end
            if number + 1 >= minimum:
                states[tail].after.append(last)
        if maximum is None:
            states[tail].after.append(copy.start)
        return _Fragment(start, last)

    def _atom(self) -> _Fragment:
        character = self._next()
        match character:
            case "(":
                inner = self._alternatives()
                if self._next() != ")":
                    raise BadPattern("no )")
                return inner
            case "^" | "$":
                return self._single(anchor=character)
            case ".":
                return self._single(_any)
            case "[":
                return self._single(self._bracket())
            case "*" | "+" | "?" | "{" | ")":
                raise BadPattern(f"nothing before {character}")
            case "\\":
                literal = self._next()
                if literal.isalnum():
                    raise BadPattern(f"\\{literal} means nothing in POSIX")
                return self._single(literal.__eq__)
            case _:
                return self._single(character.__eq__)

    def _bracket(self) -> Test:
        is_negated = self._peek() == "^"
        if is_negated:
            self._at += 1
        members: set[str] = set()
        ranges: list[tuple[str, str]] = []
        is_first = True
        while is_first or self._peek() != "]":
            is_first = False
            character = self._next()
            if character == "[" and self._peek() in (":", ".", "="):
                members.update(self._class())
                continue
            following = self._pattern[self._at : self._at + 2]
            if len(following) == 2 and following[0] == "-" and following[1] != "]":
                self._at += 2
                if following[1] < character:
                    raise BadPattern("a range that runs backwards")
                ranges.append((character, following[1]))
            else:
                members.add(character)
        self._at += 1

        def test(text: str) -> bool:
            is_in = text in members or any(low <= text <= high for low, high in ranges)
            return is_in != is_negated

        return test

    def _class(self) -> str:
        close = self._pattern.find(":]", self._at + 1)
        name = self._pattern[self._at + 1 : close]
        if self._peek() != ":" or close < 0 or name not in CLASSES:
            raise BadPattern("no such class of characters")
        self._at = close + 2
        return CLASSES[name]


def _any(_: str) -> bool:
    return True
