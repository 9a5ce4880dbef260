"""The golden vectors of tests/vectors/protocol.toml, in both directions."""

from __future__ import annotations

import tomllib
from pathlib import Path

import attrs
import pytest

from clusternode.core.membership.digest import digest_of_record
from clusternode.core.wire import messages, schema
from clusternode.core.wire.codec import decode_untrusted, encode
from clusternode.core.wire.framing import HEADER, HEADER_SIZE, MAGIC
from clusternode.core.wire.messages import CloseReason, Hello, ListEntry, Record, Run
from clusternode.core.wire.proof import Direction, proof_of, transcript_of
from clusternode.core.wire.session import Session
from clusternode.errors import RemoteProtocolError

ROOT = next(parent for parent in Path(__file__).parents if (parent / "pyproject.toml").exists())
VECTORS = tomllib.loads((ROOT / "tests" / "vectors" / "protocol.toml").read_text("utf-8"))
NESTED = {"records": Record, "entries": ListEntry, "runs": Run}  # field → class of its elements


def by_name(kind):
    return pytest.mark.parametrize(
        "vector", [pytest.param(vector, id=vector["name"]) for vector in VECTORS[kind]]
    )


def build(cls, fields):
    """Make a value from a table: `_hex` is bytes, arrays of tables are nested records."""
    values: dict[str, object] = {}
    for field, value in fields.items():
        if field.endswith("_hex"):
            values[field.removesuffix("_hex")] = bytes.fromhex(value)
        elif field in NESTED:
            values[field] = [build(NESTED[field], element) for element in value]
        elif (cls is Record or field == "relays") and isinstance(value, list):
            values[field] = tuple(tuple(e) if isinstance(e, list) else e for e in value)
        else:
            values[field] = value
    return cls(**values)


def built(vector):
    return build(getattr(messages, vector["class"]), vector["fields"])


def decoded(vector):
    data = bytes.fromhex(vector["hex"])
    magic, size, type_, _flags = HEADER.unpack_from(data)
    assert (magic, size, type_) == (MAGIC, len(data), vector["type"])
    return decode_untrusted(type_, data[HEADER_SIZE:])


@by_name("message")
def test_a_message_is_encoded_as_the_vector_says(vector):
    assert encode(built(vector)).hex() == vector["hex"]


@by_name("message")
def test_a_vector_is_decoded_to_its_message(vector):
    message, expected = decoded(vector), built(vector)

    assert message == expected
    assert attrs.astuple(message) == attrs.astuple(expected)  # with what equality leaves out


@by_name("accepted")
def test_what_others_may_send_is_understood(vector):
    assert decoded(vector) == built(vector)


@by_name("refused")
def test_what_is_wrong_is_refused_with_the_reason_of_the_vector(vector):
    hello = build(Hello, VECTORS["message"][0]["fields"])
    session = Session.listen(lambda cluster: hello if cluster == hello.cluster else None)
    if vector["after_handshake"]:
        session.receive_data_untrusted(encode(hello))

    with pytest.raises(RemoteProtocolError) as raised:
        session.receive_data_untrusted(bytes.fromhex(vector["hex"]))

    assert raised.value.reason == CloseReason[vector["reason"]]


@pytest.mark.parametrize("vector", VECTORS["digest"])
def test_a_record_has_the_digest_of_the_vector(vector):
    digest = digest_of_record(vector["node_id"], vector["incarnation"], vector["version"])

    assert f"{digest:016x}" == vector["digest_hex"]


@pytest.mark.parametrize("vector", VECTORS["proof"])
def test_a_secret_is_proved_as_the_vector_says(vector):
    hellos = (bytes.fromhex(vector[f"{side}_hello_hex"]) for side in ("client", "server"))
    transcript = transcript_of(*hellos)
    secret = vector["secret"].encode()

    for direction in Direction:
        mac = proof_of(secret, direction, transcript)
        assert mac.hex() == vector[f"{direction.value.decode()}_mac_hex"]


def test_every_type_has_a_vector():
    assert {vector["type"] for vector in VECTORS["message"]} == schema.TYPES
