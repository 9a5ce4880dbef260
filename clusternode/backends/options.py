"""The options in a URI, `…?key=value&key=value`: declared once, checked, and shown in the docs.

Values are percent-decoded (RFC 3986, section 2.1); so are paths, where a `?`, `%` or blank is
part of a name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from urllib.parse import quote, unquote

import attrs

from clusternode.backends.base import wrong_uri
from clusternode.config.kinds import Kind, Text, WrongValue
from clusternode.core.types import PORT_MAX

PATH_SAFE = "/:@!$'()*+,;=~-._"
"""What stands in a path of a URI as it is (RFC 3986, section 3.3)."""
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HOST = re.compile(r"[A-Za-z0-9._:%-]{1,253}")
_PORT = re.compile(r"[0-9]{1,5}")


@attrs.frozen(kw_only=True)
class Option:
    """One option of a back end."""

    name: str
    kind: Kind
    default: object
    help: str
    is_secret: bool = False
    """Shown as `***`."""


def read_options(
    scheme: str, rest: str, options: tuple[Option, ...], separator: str = "?"
) -> tuple[str, dict[str, object]]:
    """Split `rest` into what is before the options, as it stands, and every option's value.

    Raises:
        ConfigError: An option is unknown, given twice, or its value is wrong.
    """
    body, mark, query = rest.partition(separator)
    known = {option.name: option for option in options}
    values: dict[str, object] = {option.name: option.default for option in options}
    given: list[str] = []
    shown = f"{scheme}:{body}"
    if mark and not query:
        raise wrong_uri(shown, f"options after the {separator}, as key=value")
    for part in query.split("&") if query else ():
        key, equals, text = part.partition("=")
        if key not in known:
            close = difflib.get_close_matches(key, list(known), 1)
            hint = f"{close[0]}=" if close else ", ".join(f"{name}=" for name in known) or "none"
            raise wrong_uri(f"{shown}{separator}{key[:64]}=", f"an option of {scheme}: ({hint})")
        if not equals or key in given:
            raise wrong_uri(f"{shown}{separator}{key}", f"{key}=VALUE, once")
        given.append(key)
        try:
            values[key] = known[key].kind.read(Text(decode(text)))
        except (WrongValue, ValueError) as error:
            wrong = "***" if known[key].is_secret else text[:64]
            expected = str(error) if isinstance(error, WrongValue) and str(error) else ""
            expected = expected or known[key].kind.expected
            raise wrong_uri(f"{shown}{separator}{key}={wrong}", f"{key}= {expected}") from None
    return body, values


def decode(text: str) -> str:
    """Undo percent-encoding.

    Raises:
        ValueError: A `%` is not followed by two hexadecimal digits, or the result is not UTF-8.
    """
    if _ESCAPE.search(text):
        raise ValueError("a % that begins no escape")
    return unquote(text, errors="strict")


def encode(text: str) -> str:
    """Percent-encode what cannot stand in a path of a URI."""
    return quote(text, safe=PATH_SAFE, errors="surrogateescape")


def query_of(options: tuple[Option, ...], values: Mapping[str, object], mask: str | None) -> str:
    """Return `?key=value…` of what is not the default, in the order of declaration.

    `mask` stands for secrets; None shows them.
    """
    parts = [
        f"{option.name}={mask if option.is_secret and mask else encode(_text(values[option.name]))}"
        for option in options
        if values[option.name] != option.default
    ]
    return "?" + "&".join(parts) if parts else ""


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)


def read_path(scheme: str, text: str) -> str:
    """Return an absolute path, decoded.

    Raises:
        ConfigError: It is none.
    """
    expected = f"{scheme}:/PATH, absolute; ? % and blanks as %3F %25 %20"
    path = text.removeprefix("//") if text.startswith("///") else text
    try:
        path = decode(path)
    except ValueError:
        raise wrong_uri(f"{scheme}:{text}", expected) from None
    if not path.startswith("/") or "\0" in path or path.startswith("//"):
        raise wrong_uri(f"{scheme}:{text}", expected)
    return path


def read_host_port(scheme: str, text: str, *, form: str = "") -> tuple[str, int]:
    """Return host and port of `HOST:PORT`, an IPv6 address in brackets; with or without `//`.

    Raises:
        ConfigError: It is something else.
    """
    expected = form or f"{scheme}:HOST:PORT, an IPv6 address in brackets"
    host, separator, port = text.removeprefix("//").rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        separator = ""
    if not separator or not _HOST.fullmatch(host) or not _PORT.fullmatch(port):
        raise wrong_uri(f"{scheme}:{text}", expected)
    if not 1 <= int(port) <= PORT_MAX:
        raise wrong_uri(f"{scheme}:{text}", f"a port from 1 to {PORT_MAX}")
    return host.lower(), int(port)


def host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
