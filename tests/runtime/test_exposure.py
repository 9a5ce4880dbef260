import pytest

from clusternode.core.types import Address
from clusternode.errors import ConfigError
from clusternode.runtime.exposure import advice, check_exposure, is_loopback
from tests.agents import agent_settings


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("tcp://127.0.0.1:1", True),
        ("tcp://127.8.8.8:1", True),
        ("tcp://[::1]:1", True),
        ("tcp://localhost:1", True),
        ("tcp://n1.localhost:1", True),
        ("tcp://0.0.0.0:1", False),
        ("tcp://[::]:1", False),
        ("tcp://10.0.0.1:1", False),
        ("tcp://edge-1:1", False),
    ],
)
def test_only_what_stays_on_the_host_is_loopback(address, expected):
    assert is_loopback(Address.parse(address)) is expected


def test_an_exposed_address_is_refused_and_the_ways_out_are_named():
    with pytest.raises(ConfigError, match=r"node\.listen = 'tcp://10.*insecure = true"):
        check_exposure(agent_settings("n1", "tcp://10.0.0.1:1", insecure=False))


def test_several_clusters_are_named_in_the_error():
    settings = agent_settings(
        "n1", "tcp://10.0.0.1:1", insecure=False, clusters=("voip", "billing")
    )

    with pytest.raises(ConfigError, match=r"cluster\.voip\.listen"):
        check_exposure(settings)


def test_the_three_ways_out_are_named():
    with pytest.raises(ConfigError) as raised:
        check_exposure(agent_settings("n1", "tcp://10.0.0.1:1", insecure=False))

    for way in ("secret_file", "tls://", "insecure = true"):
        assert way in str(raised.value)


def test_a_secret_allows_every_address():
    check_exposure(agent_settings("n1", "tcp://10.0.0.1:1", insecure=False, secret=["x" * 20]))


def test_a_secret_without_encryption_is_advised_against():
    settings = agent_settings("n1", "tcp://10.0.0.1:1", insecure=False, secret=["x" * 20])

    (line,) = advice(settings)

    assert "someone on the path" in line
    assert not advice(agent_settings("n1", "tcp://127.0.0.1:1", insecure=False))


def test_insecure_allows_every_address():
    check_exposure(agent_settings("n1", "tcp://10.0.0.1:1", insecure=True))
