"""`[kafka.NAME]`: keys and defaults of res_kafka, and what is refused."""

from __future__ import annotations

import pytest

from clusternode.config import load_settings
from clusternode.config.text import settings_toml
from clusternode.errors import ConfigError
from clusternode.kafka.connections import KafkaConnections, check_settings
from clusternode.kafka.settings import KafkaConnection, TopicSpec, read_connections

# docs of res_kafka, "Configuration"
DEFAULTS = {
    "brokers": "localhost:9092",
    "request_timeout_ms": 5000,
    "message_timeout_ms": 300000,
    "reconnect_backoff_ms": 100,
    "reconnect_backoff_max_ms": 10000,
    "socket_timeout_ms": 10000,
    "security_protocol": "plaintext",
    "message_max_bytes": 1000000,
    "compression_codec": "none",
    "compression_level": -1,
    "linger_ms": 5,
    "batch_num_messages": 10000,
    "batch_size": 1000000,
    "queue_buffering_max_messages": 100000,
    "queue_buffering_max_kbytes": 1048576,
    "acks": -1,
    "retries": 2147483647,
    "enable_idempotence": False,
    "debug": "",
    "group_id": "",
    "auto_offset_reset": "latest",
    "enable_auto_commit": True,
    "auto_commit_interval_ms": 5000,
    "session_timeout_ms": 45000,
    "max_poll_interval_ms": 300000,
}


@pytest.fixture
def load(tmp_path):
    def load(text: str, **environ: str):
        file = tmp_path / "node.toml"
        file.write_text(text)
        return load_settings(file, environ=environ, overrides={})

    return load


@pytest.fixture
def read(load):
    def read(text: str, **environ: str) -> dict[str, KafkaConnection]:
        return read_connections(load(text, **environ).plugins.table("kafka"))

    return read


def test_the_defaults_are_those_of_res_kafka(read):
    connection = read("[kafka.main]\n")["main"]

    assert {name: getattr(connection, name) for name in DEFAULTS} == DEFAULTS
    check_settings(connection)


def test_the_sample_of_res_kafka_is_accepted_with_its_words(read):
    text = """
    [kafka]
    enabled = "yes"
    [kafka.my-kafka]
    type = "connection"
    brokers = "kafka1:9092,kafka2:9092"
    client_id = "asterisk"
    acks = -1
    enable_idempotence = "no"
    enable_auto_commit = "yes"
    auto_offset_reset = "none"
    group_id = "asterisk-group"
    """

    connection = read(text)["my-kafka"]

    assert connection.producer_properties["bootstrap.servers"] == "kafka1:9092,kafka2:9092"
    assert connection.consumer_properties("g")["auto.offset.reset"] == "error"


def test_disabled_kafka_has_no_connections(read):
    assert read("[kafka]\nenabled = false\n[kafka.main]\n") == {}


def test_a_connection_can_be_carried_over_from_broker_id(read):
    uri = "127.0.0.1:9092/topic2?g.retries=3&g.linger.ms=100"

    connection = read(f'[kafka.k2]\nuri = "{uri}"\n')["k2"]

    assert (connection.brokers, connection.topic) == ("127.0.0.1:9092", "topic2")
    assert connection.producer_properties["linger.ms"] == "100"


def test_every_key_can_come_from_the_environment(read):
    found = read("[kafka.Main]\n", CLUSTERNODE__KAFKA__MAIN__SASL_PASSWORD="se,cret")

    assert found["Main"].sasl_password == "se,cret"


def test_paths_are_relative_to_the_file(read, tmp_path):
    connection = read('[kafka.main]\nssl_ca_location = "ca.pem"\n')["main"]

    assert connection.ssl_ca_location == str(tmp_path / "ca.pem")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('linger_ms = "5 s"', "kafka.main.linger_ms = '5 s': expected a whole number"),
        ("linger = 5", "perhaps linger_ms"),
        ("request_timeout_ms = 0", "at least 1"),
        ('brokers = ""', "brokers as HOST:PORT"),
        ('compression_codec = "zip"', "one of none, gzip"),
        ('auto_offset_reset = "first"', "earliest"),
        ('security_protocol = "tls"', "plaintext, ssl"),
        ('security_protocol = "sasl_ssl"', "sasl_mechanisms"),
        ("acks = 2", "-1, 0 or 1"),
        ("acks = 1\nenable_idempotence = true", "enable_idempotence needs it"),
        ("reconnect_backoff_max_ms = 1", "at least reconnect_backoff_ms (100)"),
        ('ssl_key_location = "k.pem"', "both or neither"),
        ("queue_buffering_max_messages = 100", "at most queue_buffering_max_messages (100)"),
        ('uri = "k/t"\ntopic = "u"', "not both"),
        ('properties = { "linger.ms" = 5 }', "g.NAME for a global property"),
        ('ensure_topics = ["a:0"]', "TOPIC:PARTITIONS"),
    ],
)
def test_what_is_wrong_is_refused_with_its_key(read, text, expected):
    with pytest.raises(ConfigError) as caught:
        read(f"[kafka.main]\n{text}\n")

    assert expected in str(caught.value)


def test_topics_to_ensure_have_partitions_and_replicas(read):
    connection = read('[kafka.main]\nensure_topics = ["a", "b:3", "c:3:-1"]\n')["main"]

    assert connection.ensure_topics == (TopicSpec("a"), TopicSpec("b", 3), TopicSpec("c", 3, -1))


@pytest.mark.parametrize(
    ("name", "value"),
    [("no.such.thing", "1"), ("compression.codec", "zip"), ("linger.ms", "soon")],
)
def test_librdkafka_judges_properties_when_they_are_given(name, value):
    connection = KafkaConnection(name="main", properties={name: value})

    with pytest.raises(ConfigError, match=r"kafka\.main.*what librdkafka takes"):
        KafkaConnections({"main": connection}).check()


def test_secrets_are_never_shown(load, read):
    text = """
    [kafka.main]
    sasl_password = "topsecret"
    uri = "k:9092/t?g.ssl.key.password=topsecret"
    properties = { "g.sasl.oauthbearer.client.secret" = "topsecret" }
    """
    connection = read(text)["main"]

    assert "topsecret" not in repr(connection) + str(connection.shown())
    assert connection.shown()["sasl_password"] == "***"
    assert "topsecret" not in settings_toml(load(text))
