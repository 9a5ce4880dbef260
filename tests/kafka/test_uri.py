"""The grammar of `kafka:` URIs: everything of event_kafka's README, and what it only logs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusternode.errors import ConfigError
from clusternode.kafka.uri import masked, parse_brokers, parse_uri, read_topics


def test_the_example_of_the_opensips_article_is_read():
    uri = parse_uri("127.0.0.1:9092/topic1?g.linger.ms=100&t.message.timeout.ms=1000")

    assert (uri.brokers, uri.topic) == ("127.0.0.1:9092", "topic1")
    assert uri.properties == {"linger.ms": "100", "message.timeout.ms": "1000"}


def test_several_brokers_ipv6_and_a_missing_port_are_read():
    assert parse_uri("k1:9093,[::1]:9094,k2/t").brokers == "k1:9093,[::1]:9094,k2:9092"


def test_the_call_id_can_be_the_key():
    assert parse_uri("k/t?key=callid").key == "callid"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9092", "with a topic"),
        ("127.0.0.1:9092/", "with a topic"),
        ("/t", "brokers as HOST:PORT"),
        ("k/a/b", "a topic of 1 to 249"),
        ("k/t?", "properties after"),
        ("k/t?g.linger.ms", "NAME=VALUE"),
        ("k/t?linger.ms=1", "g.NAME for a global property"),
        ("k/t?x.linger.ms=1", "g.NAME for a global property"),
        ("k/t?g.a=b=c", "one `=`"),
        ("k/t?key=from", "key=callid"),
        ("k/t?t.linger.ms=5", "perhaps g.linger.ms"),
        ("k/t?g.bootstrap.servers=x", "in their own place"),
        ("k:0/t", "a port"),
        ("::1/t", "in brackets"),
        ("k:9092,/t", "brokers as HOST:PORT"),
    ],
)
def test_what_is_wrong_is_refused_with_what_was_expected(text, expected):
    with pytest.raises(ConfigError) as caught:
        parse_uri(text)

    assert expected in caught.value.expected


def test_an_error_never_shows_a_secret():
    with pytest.raises(ConfigError) as caught:
        parse_uri("k/t?g.sasl.password=se=cret&g.sasl.username=alice")

    assert "cret" not in str(caught.value)


def test_secrets_are_masked_and_the_rest_is_shown():
    shown = masked(
        {"sasl.password": "a", "ssl.key.pem": "b", "linger.ms": "5", "sasl.username": "u"}
    )

    assert shown == {
        "sasl.password": "***",
        "ssl.key.pem": "***",
        "linger.ms": "5",
        "sasl.username": "u",
    }


def test_topics_are_a_list_or_a_text_with_commas():
    assert read_topics("a, b,a") == read_topics(["a", "b"]) == ("a", "b")
    with pytest.raises(ValueError, match="at least one"):
        read_topics("")
    with pytest.raises(ValueError, match="regular expression"):
        read_topics("^(")


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text):
    try:
        uri = parse_uri(text)
    except ConfigError:
        return
    assert parse_uri(uri.shown).brokers == uri.brokers


@given(st.text(max_size=40))
def test_brokers_that_were_read_are_read_again_unchanged(text):
    try:
        brokers = parse_brokers(text)
    except ValueError:
        return
    assert parse_brokers(brokers) == brokers
