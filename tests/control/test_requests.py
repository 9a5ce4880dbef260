"""The declarations of the calls, and the page made from them."""

from __future__ import annotations

from clusternode.control import kafka
from clusternode.control.calls import _IMMEDIATE, _WAITING
from clusternode.control.requests import CALLS, ERROR_MEANINGS, reference_markdown

STREAMS = {"agent.watch", "cluster.request"}


def test_every_declared_call_is_performed_and_no_other():
    assert {call.name for call in CALLS} == {
        *_IMMEDIATE,
        *_WAITING,
        *STREAMS,
        *kafka.IMMEDIATE,
        *kafka.WAITING,
    }
    assert {call.name for call in CALLS if call.is_stream} == STREAMS


def test_the_page_names_every_call_parameter_and_error():
    page = reference_markdown()

    for call in CALLS:
        assert f"## `{call.name}`" in page
        assert all(f"| `{parameter.name}` |" in page for parameter in call.parameters)
    assert all(str(code) in page for code in ERROR_MEANINGS)
