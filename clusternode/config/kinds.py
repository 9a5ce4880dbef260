"""The kinds of values that a key of the configuration can have, and how each is read.

`Kind.read` takes what TOML gives, or the text of an environment variable or option, and returns
the value that the settings object holds.
"""

from __future__ import annotations

import enum
import ipaddress
import math
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs

from clusternode.core.types import NAME_PATTERN, PORT_MAX, Address
from clusternode.core.wire.codec import is_tag_value
from clusternode.core.wire.limits import TAG_VALUE_LENGTH_MAX, TAGS_MAX
from clusternode.errors import ConfigError

LIST_LENGTH_MAX = 1024
"""More entries in a configuration than that are a mistake."""
SOCKET_PATH_BYTES_MAX = 107
"""`sun_path` of Linux holds 108 bytes with the final zero (unix(7))."""
INTEGER_MAX = 2**53
"""The largest whole number that every JSON reader gives back unchanged."""
SECONDS_MAX = 366 * 86400.0


class WrongValue(ValueError):
    """A value is not of its kind; the text, if any, says what was expected instead."""


class Text(str):
    """A value from the environment or an option: TOML value syntax, or a bare string."""

    __slots__ = ()


@attrs.frozen
class Kind:
    """What a value must be (`expected`, for people) and how it is read."""

    name: str
    """One or two words for the reference page."""
    expected: str
    convert: Callable[[object], object]
    """Raises `WrongValue`."""
    is_list: bool = False

    def read(self, value: object) -> object:
        """Return the converted value.

        Raises:
            WrongValue: It is not of this kind.
        """
        if not isinstance(value, Text):
            return self.convert(value)
        try:
            return self.convert(parse_text(value))
        except WrongValue:
            bare = [part.strip() for part in value.split(",")] if self.is_list else str(value)
            return self.convert(bare)


def parse_text(text: str) -> object:
    """Read `text` as one TOML value, or return it unchanged when it is none."""
    try:
        table = tomllib.loads(f"value = {text}\n")
    except (ValueError, RecursionError):
        return str(text)
    return table["value"] if list(table) == ["value"] else str(text)


def text_kind(name: str, expected: str, check: Callable[[str], object]) -> Kind:
    """Return a kind for strings that `check` turns into the value, or refuses."""

    def convert(value: object) -> object:
        if not isinstance(value, str) or "\0" in value:
            raise WrongValue
        return check(value)

    return Kind(name, expected, convert)


def _convert_boolean(value: object) -> object:
    if not isinstance(value, bool):
        raise WrongValue
    return value


BOOLEAN = Kind("boolean", "true or false", _convert_boolean)


def integer(minimum: int, maximum: int = INTEGER_MAX) -> Kind:
    """Return the kind of whole numbers between two bounds, both allowed."""

    def convert(value: object) -> object:
        if not isinstance(value, int) or isinstance(value, bool):
            raise WrongValue
        if not minimum <= value <= maximum:
            raise WrongValue
        return value

    upper = "" if maximum == INTEGER_MAX else f" and at most {maximum}"
    return Kind("integer", f"a whole number of at least {minimum}{upper}", convert)


def number(minimum: float, maximum: float = SECONDS_MAX, *, unit: str = "seconds") -> Kind:
    """Return the kind of numbers between two bounds, both allowed, as floats."""

    def convert(value: object) -> object:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise WrongValue
        if not minimum <= value <= maximum or not math.isfinite(value):
            raise WrongValue
        return float(value)

    expected = f"a number of {unit} of at least {minimum:g} and at most {maximum:.12g}"
    return Kind(unit, expected, convert)


def choice(*words: str) -> Kind:
    def check(text: str) -> object:
        if text not in words:
            raise WrongValue
        return text

    return text_kind("string", "one of " + ", ".join(words), check)


def member_of(enumeration: type[enum.Enum]) -> Kind:
    """Return the kind of the values of an enumeration of strings."""
    words = [str(member.value) for member in enumeration]

    def check(text: str) -> object:
        if text not in words:
            raise WrongValue
        return enumeration(text)

    return text_kind("string", "one of " + ", ".join(words), check)


def _check_name(text: str) -> object:
    if NAME_PATTERN.fullmatch(text) is None:
        raise WrongValue
    return text


NAME = text_kind("name", "1 to 64 of the characters A-Z a-z 0-9 . _ : -", _check_name)


def _check_path(text: str) -> object:
    if not text or not _is_utf8(text):
        raise WrongValue
    return Path(text)


PATH = text_kind("path", "a path", _check_path)


def _check_socket_path(text: str) -> object:
    if not text or not _is_utf8(text) or len(text.encode()) > SOCKET_PATH_BYTES_MAX:
        raise WrongValue
    return Path(text)


SOCKET_PATH = text_kind(
    "path", f"a path of at most {SOCKET_PATH_BYTES_MAX} bytes", _check_socket_path
)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parse_address(text: str) -> Address:
    try:
        address = Address.parse(text)
    except ConfigError as error:
        raise WrongValue(error.expected) from None
    return address


def address_kind(*, srv: bool, wildcard: bool, port_zero: bool = False) -> Kind:
    """Return the kind of addresses, with or without SRV names and unspecified hosts."""
    expected = "tcp://HOST:PORT or tls://HOST:PORT" + (" or srv://NAME" if srv else "")
    expected += ", an IPv6 address in brackets"

    def check(text: str) -> object:
        address = _parse_address(text)
        if address.scheme == "srv":
            if not srv:
                raise WrongValue
            return address
        if address.port == 0 and not port_zero:
            raise WrongValue("a port from 1 to 65535")
        if not wildcard and _is_unspecified(address.host):
            raise WrongValue("an address that others can dial; put the one to bind into `listen`")
        return address

    return text_kind("address", expected, check)


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _check_nameserver(text: str) -> object:
    host, separator, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise WrongValue
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise WrongValue from None
    if not separator or not (port.isascii() and port.isdigit() and len(port) <= len("65535")):
        raise WrongValue
    if not 1 <= int(port) <= PORT_MAX:
        raise WrongValue
    return text


NAMESERVER = text_kind("ip:port", "IP:PORT, an IPv6 address in brackets", _check_nameserver)


def list_of(kind: Kind, *, length_min: int = 0) -> Kind:
    """Return the kind of lists, as tuples, whose entries are all of `kind`."""
    expected = f"a list of {kind.name} values ({kind.expected})"

    def convert(value: object) -> object:
        if not isinstance(value, list | tuple):
            raise WrongValue
        if not length_min <= len(value) <= LIST_LENGTH_MAX:
            raise WrongValue(f"{expected}, {length_min} to {LIST_LENGTH_MAX} of them")
        entries = []
        for index, entry in enumerate(value):
            try:
                entries.append(kind.read(entry))
            except WrongValue as error:
                wanted = str(error) or kind.expected
                raise WrongValue(f"{wanted} (entry {index + 1} of the list)") from None
        return tuple(entries)

    return Kind(f"list of {kind.name}", expected, convert, is_list=True)


def _check_any_text(text: str) -> object:
    if not _is_utf8(text):
        raise WrongValue
    return text


STRING = text_kind("string", "a string", _check_any_text)


def _convert_tags(value: object) -> object:
    if not isinstance(value, Mapping) or len(value) > TAGS_MAX:
        raise WrongValue
    for key, text in value.items():
        if not isinstance(key, str) or NAME_PATTERN.fullmatch(key) is None:
            raise WrongValue(f"tag keys of {NAME.expected}")
        if not isinstance(text, str) or not _is_utf8(text):
            raise WrongValue(f"a string for the tag {key}")
        if not is_tag_value(text):  # other nodes would refuse our record
            length = f"at most {TAG_VALUE_LENGTH_MAX} bytes"
            raise WrongValue(f"{length} without control characters for the tag {key}")
    return {key: str(text) for key, text in value.items()}


TAGS = Kind("table", f"a table of at most {TAGS_MAX} strings", _convert_tags)


def _convert_environment(value: object) -> object:
    if not isinstance(value, Mapping) or len(value) > LIST_LENGTH_MAX:
        raise WrongValue
    for key, text in value.items():
        if not isinstance(key, str) or not key or "=" in key or "\0" in key or not _is_utf8(key):
            raise WrongValue("names of environment variables as keys")
        if not isinstance(text, str) or "\0" in text or not _is_utf8(text):
            raise WrongValue(f"a string for the variable {key}")
    return {key: str(text) for key, text in value.items()}


ENVIRONMENT = Kind("table", "a table of strings", _convert_environment)


def _convert_secrets(value: object) -> object:
    if not isinstance(value, str) or not value.split():
        raise WrongValue
    return tuple(value.split())


SECRETS = Kind("string", "one or more words", _convert_secrets)
"""From the environment only; values are never shown."""


def _check_nodes(text: str) -> object:
    key, separator, value = text.partition("=")
    if text == "*" or NAME_PATTERN.fullmatch(text) is not None:
        return text
    if not separator or NAME_PATTERN.fullmatch(key) is None or not _is_utf8(value):
        raise WrongValue
    return text


NODES = text_kind("node", "a node id, a tag as KEY=VALUE, or *", _check_nodes)
