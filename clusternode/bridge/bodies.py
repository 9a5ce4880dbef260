"""What a rule makes of a message: fields, filters, templates and bodies. Pure."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

import attrs

from clusternode.config.kinds import WrongValue, text_kind

FIELD: Final = re.compile(r"\{([a-z_]+)(?:\.([A-Za-z0-9_.-]+))?\}")
FIELDS: Final = (
    *("origin", "channel", "cluster", "node", "event", "message_id", "content_type"),
    *("body", "table", "key", "value", "aor"),
)
"""What templates and filters can name without a dot."""
DOTTED: Final = ("param", "json")
"""`param.NAME` of an event, `json.NAME` of a body."""
DEPTH_MAX: Final = 16
"""Names in one `json.A.B.C`."""
NESTED_MAX: Final = 64
"""Lists and objects within each other in a JSON body; deeper ones are no JSON for a bridge, for
how deep Python can write what it could read depends on who calls."""
JSON_CONTENT_TYPE: Final = "application/json"
TEXT_CONTENT_TYPE: Final = "text/plain"
BODIES: Final = ("bytes", "json", "text")


def check_field(name: str, rest: str) -> None:
    """See whether a message can have such a field.

    Raises:
        WrongValue: It cannot.
    """
    if name in DOTTED:
        if rest and rest.count(".") < DEPTH_MAX:
            return
    elif name in FIELDS and not rest:
        return
    raise WrongValue(f"fields of {', '.join(FIELDS)}, param.NAME and json.NAME, not {name}")


def _check_template(text: str) -> object:
    rest = FIELD.sub("", text)
    if "{" in rest or "}" in rest:
        raise WrongValue
    for name, more in FIELD.findall(text):
        check_field(name, more)
    return text


TEMPLATE = text_kind("template", "text with {origin}, {channel} … in it", _check_template)


@attrs.frozen
class Parcel:
    """What arrived at one end, as every rule sees it."""

    body: bytes
    content_type: str
    """Without a mark."""
    fields: Mapping[str, str] = attrs.field(factory=dict)
    """Field of `FIELDS` → its text; `body` and `content_type` need not be there."""
    parameters: Mapping[str, Any] = attrs.field(factory=dict)
    """Of an event."""

    def field(self, name: str, rest: str = "") -> str | None:
        """Return the text of a field; None where the parcel has none of that name."""
        if name == "param":
            return _as_text(_inside(self.parameters, rest))
        if name == "json":
            return _as_text(_inside(self._json(), rest))
        if name == "body":
            return self.body.decode("utf-8", "replace")
        if name == "content_type":
            return self.content_type
        return self.fields.get(name)

    def fill(self, template: str) -> str:
        """Return a template with the fields in it; what is not there becomes nothing."""
        return FIELD.sub(lambda match: self.field(match[1], match[2] or "") or "", template)

    def _json(self) -> object:
        try:
            return load_json_untrusted(self.body)
        except ValueError:
            return None

    def matches(self, filters: Mapping[str, Sequence[str]]) -> bool:
        """Tell whether each field matches one of its wildcards; one not there matches none."""
        for name, wildcards in filters.items():
            value = self.field(*split_name(name))
            if value is None or not any(fnmatchcase(value, each) for each in wildcards):
                return False
        return True


def split_name(name: str) -> tuple[str, str]:
    """Return the parts of `origin` or `json.a.b`."""
    head, _, rest = name.partition(".")
    return head, rest


def _inside(value: object, path: str) -> object:
    """Return what lies at `a.b.0` of a JSON value; None where there is nothing."""
    if isinstance(value, Mapping) and path in value:  # a name with dots in it
        return value[path]
    for name in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(name)
        elif isinstance(value, list) and name.isascii() and name.isdigit() and len(name) < 8:
            value = value[int(name)] if int(name) < len(value) else None
        else:
            return None
    return value


def load_json_untrusted(data: bytes | str) -> object:
    """Read JSON that can be written again.

    Raises:
        ValueError: It is none, or nested deeper than `NESTED_MAX`.
    """
    try:
        found = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None
    level = [found]
    for _ in range(NESTED_MAX + 1):
        level = [inner for each in level for inner in _members(each)]
        if not level:
            return found
    raise ValueError("nested too deep")


def _members(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _as_text(value: object) -> str | None:
    """Return a value as text that is Unicode: JSON can say half of a surrogate pair, too."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, default=plain)
    return text.encode("utf-8", "replace").decode()


def plain(value: object) -> str:
    """Write what is no JSON value as text, so that nobody's event is lost for it."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value)


def notification(name: str, parameters: Mapping[str, Any]) -> bytes:
    """Write an event as a JSON-RPC 2.0 notification."""
    found: dict[str, Any] = {"jsonrpc": "2.0", "method": name}
    if parameters:
        found["params"] = parameters
    return json.dumps(found, default=plain).encode()


def as_json(parcel: Parcel) -> bytes:
    """Write a parcel as one JSON object: where it comes from, and its body as far as it goes.

    The body is `json` where it is JSON, else `text` where it is UTF-8, else `base64`.
    """
    names = ("cluster", "origin", "channel", "message_id")
    found: dict[str, Any] = {name: parcel.fields[name] for name in names if parcel.fields.get(name)}
    found["content_type"] = parcel.content_type
    try:
        text = parcel.body.decode()
    except UnicodeDecodeError:
        found["base64"] = base64.b64encode(parcel.body).decode()
        return json.dumps(found).encode()
    try:
        found["json"] = load_json_untrusted(text)
    except ValueError:
        found["text"] = text
    return json.dumps(found).encode()
