"""JSON forms of what cachedb_local and usrloc replicate: for events, scripts and the bridge.

A form is one object: `action`, and the fields of the value in `replication` by their names.

| capability | action | other members |
| --- | --- | --- |
| cachedb-local-repl | insert | collection, key, value (or value_base64 when it is no UTF-8), ttl |
| cachedb-local-repl | remove | collection, key |
| usrloc-contact-repl | aor_insert | domain, aor, label, next_contact_label, attributes |
| usrloc-contact-repl | aor_delete | domain, aor |
| usrloc-contact-repl | insert, update | domain, aor, contact, contact_id, callid, user_agent, path, attr, received, instance, expires, q, sock, cseq, flags, cflags, methods, last_modified, attributes, match_mode, match_parameters |
| usrloc-contact-repl | delete | domain, aor, contact, callid, cseq, match_mode, match_parameters |

Times are Unix seconds, `ttl` seconds from now, `q` thousandths. In what is read, members that have a
default may be missing, and unknown ones are refused.
"""  # noqa: E501 - a table has long lines

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, Final, TypeAlias, TypeVar

import attrs

from clusternode.errors import BodyTooLarge, LocalProtocolError, RemoteProtocolError
from clusternode.gateways.opensips.fields import STRING_SIZE_MAX, printable
from clusternode.gateways.opensips.replication import (
    MATCH_PARAMETERS_MAX,
    NOBODY,
    AorDelete,
    AorInsert,
    CacheChange,
    CacheInsert,
    CacheRemove,
    Contact,
    ContactDelete,
    ContactInsert,
    ContactUpdate,
    Location,
    Match,
    cache_packet,
    location_packet,
    read_cache_untrusted,
    read_location_untrusted,
)

T = TypeVar("T", bound=attrs.AttrsInstance)
Form: TypeAlias = dict[str, Any]

_ACTIONS: Final[Mapping[type, str]] = {
    CacheInsert: "insert",
    CacheRemove: "remove",
    AorInsert: "aor_insert",
    AorDelete: "aor_delete",
    ContactInsert: "insert",
    ContactUpdate: "update",
    ContactDelete: "delete",
}


def action_of(change: CacheChange | Location) -> str:
    return _ACTIONS[type(change)]


def cache_form(change: CacheChange) -> Form:
    """Return the JSON form of a change of a cache."""
    form: Form = {"action": action_of(change)}
    form |= _plain(change)
    if isinstance(change, CacheInsert):
        form |= value_form(form.pop("value"))
    return form


def value_form(value: bytes) -> Form:
    """Return a value as the member `value`, or `value_base64` where it is no UTF-8."""
    try:
        return {"value": value.decode()}
    except UnicodeDecodeError:
        return {"value_base64": base64.b64encode(value).decode()}


def read_cache_form_untrusted(body: bytes) -> CacheChange:
    """Read a JSON form of a change of a cache.

    Raises:
        RemoteProtocolError: It is none.
    """
    return _checked_cache(_read_cache_form(_object(body)))


def _read_cache_form(form: Form) -> CacheChange:
    match form.pop("action", None):
        case "insert":
            if "value_base64" in form:
                form["value"] = _decode_base64(form.pop("value_base64"))
            elif isinstance(form.get("value"), str):
                form["value"] = _encode(form["value"], "value")
            return _make(CacheInsert, form)
        case "remove":
            return _make(CacheRemove, form)
    raise RemoteProtocolError("action: expected insert or remove")


def location_form(change: Location) -> Form:
    """Return the JSON form of a change of the location table."""
    form: Form = {"action": action_of(change)}
    match change:
        case ContactInsert(contact, rule) | ContactUpdate(contact, rule):
            return form | _plain(contact) | _match_form(rule)
        case ContactDelete():
            form |= _plain(change)
            del form["match"]
            return form | _match_form(change.match)
        case _:
            return form | _plain(change)


def _match_form(rule: Match) -> Form:
    return {"match_mode": rule.mode, "match_parameters": [*map(printable, rule.parameters)]}


def read_location_form_untrusted(body: bytes) -> Location:
    """Read a JSON form of a change of the location table.

    Raises:
        RemoteProtocolError: It is none.
    """
    return _checked_location(_read_location_form(_object(body)))


def _read_location_form(form: Form) -> Location:
    action = form.pop("action", None)
    if not form.get("aor"):
        raise RemoteProtocolError("aor: missing or empty")
    match action:
        case "aor_insert":
            return _make(AorInsert, form)
        case "aor_delete":
            return _make(AorDelete, form)
        case "insert" | "update" | "delete":
            rule = _take_match(form)
            if action == "delete":
                return _make(ContactDelete, form | {"match": rule})
            contact = _make(Contact, form)
            return (
                ContactInsert(contact, rule) if action == "insert" else ContactUpdate(contact, rule)
            )
    raise RemoteProtocolError("action: expected aor_insert, aor_delete, insert, update or delete")


def _take_match(form: Form) -> Match:
    mode = form.pop("match_mode", 1)
    parameters = form.pop("match_parameters", [])
    if type(mode) is not int or not -1 <= mode <= 2:
        raise RemoteProtocolError("match_mode: expected -1 to 2")
    if not isinstance(parameters, list) or len(parameters) > MATCH_PARAMETERS_MAX:
        raise RemoteProtocolError(f"match_parameters: expected at most {MATCH_PARAMETERS_MAX}")
    for name in parameters:
        if not isinstance(name, str):
            raise RemoteProtocolError("match_parameters: expected texts")
        _encode(name, "match_parameters")
    return Match(mode, tuple(parameters))


def _checked_cache(change: CacheChange) -> CacheChange:
    try:
        return read_cache_untrusted(cache_packet(NOBODY, change))
    except (BodyTooLarge, LocalProtocolError) as error:
        raise RemoteProtocolError(str(error)) from None


def _checked_location(change: Location) -> Location:
    try:
        read_location_untrusted(location_packet(NOBODY, change))
    except (BodyTooLarge, LocalProtocolError) as error:
        raise RemoteProtocolError(str(error)) from None
    return change


# --- JSON ---------------------------------------------------------------------------------------


def _plain(value: attrs.AttrsInstance) -> Form:
    """Return the fields of a value; text that is no UTF-8 loses what cannot be shown."""
    return {
        name: printable(item) if isinstance(item, str) else item
        for name, item in attrs.asdict(value, recurse=False).items()
    }


def _object(body: bytes) -> Form:
    try:
        form = json.loads(body)
    except (ValueError, RecursionError):
        raise RemoteProtocolError("no JSON") from None
    if not isinstance(form, dict):
        raise RemoteProtocolError("no JSON object")
    return form


def _make(type_: type[T], form: Form) -> T:
    """Make a value whose fields have the types of its class, or of their defaults.

    Raises:
        RemoteProtocolError: A member is missing, unknown or of another type.
    """
    fields = attrs.fields_dict(type_)
    for name, value in form.items():
        if name not in fields:
            raise RemoteProtocolError(f"{name[:64]!r}: no such member")
        _check_type(name, value, str(fields[name].type))
    missing = [name for name, field in fields.items() if field.default is attrs.NOTHING]
    missing = [name for name in missing if name not in form]
    if missing:
        raise RemoteProtocolError(f"missing: {', '.join(missing)}")
    return type_(**form)


def _check_type(name: str, value: object, expected: str) -> None:
    if isinstance(value, bool) or type(value).__name__ not in expected.split(" | "):
        raise RemoteProtocolError(f"{name}: expected {expected}")
    if isinstance(value, str):
        _encode(value, name)


def _encode(text: str, name: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can say
        raise RemoteProtocolError(f"{name}: no Unicode") from None
    if len(data) > STRING_SIZE_MAX:
        raise RemoteProtocolError(f"{name}: {len(data)} bytes, at most {STRING_SIZE_MAX}")
    return data


def _decode_base64(value: object) -> bytes:
    try:
        return base64.b64decode(value, validate=True)  # type: ignore[arg-type]  # caught below
    except (TypeError, ValueError, binascii.Error):
        raise RemoteProtocolError("value_base64: no Base64") from None
