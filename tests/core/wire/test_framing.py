"""Tests of clusternode.core.wire.framing."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusternode.core.wire.framing import (
    HEADER,
    HEADER_SIZE,
    MAGIC,
    FrameDecoder,
    first_frame_untrusted,
)
from clusternode.errors import RemoteProtocolError
from tests.strategies import chopped

FRAME_SIZE_MAX = 200


def frame(type_: int, payload: bytes) -> bytes:
    return HEADER.pack(MAGIC, HEADER_SIZE + len(payload), type_, 0) + payload


def feed(decoder, data):
    frames, problem = decoder.feed_untrusted(data)
    return [(type_, bytes(payload)) for type_, payload in frames], problem


@given(
    st.lists(st.tuples(st.integers(0, 65535), st.binary(max_size=FRAME_SIZE_MAX - HEADER_SIZE))),
    st.data(),
)
def test_frames_survive_any_chopping(sent, data):
    stream = b"".join(frame(*each) for each in sent)
    decoder, got = FrameDecoder(FRAME_SIZE_MAX), []
    for read in data.draw(chopped(stream)):
        frames, problem = feed(decoder, read)
        assert problem == ""
        got += frames

    assert got == sent
    assert decoder.pending_bytes == 0


@given(st.lists(st.binary(max_size=60) | st.just(MAGIC + b"\0\0\0\x0d\0\1\0\0x"), max_size=9))
def test_arbitrary_bytes_give_frames_or_a_problem(reads):
    decoder = FrameDecoder(FRAME_SIZE_MAX)
    for read in reads:
        frames, problem = decoder.feed_untrusted(read)
        assert all(len(payload) <= FRAME_SIZE_MAX - HEADER_SIZE for _, payload in frames)
        if problem:
            break
        assert decoder.pending_bytes < FRAME_SIZE_MAX


@pytest.mark.parametrize("length", [1, 2, 3, 4, 12, 40])
def test_a_wrong_magic_is_refused_at_its_first_wrong_byte(length):
    data = (b"XLN1" + frame(1, b"")[4:] * 4)[:length]

    assert FrameDecoder(FRAME_SIZE_MAX).feed_untrusted(data)[1].startswith("magic b'X")


def test_a_wrong_magic_that_comes_byte_by_byte_is_refused_at_its_first_wrong_byte():
    decoder = FrameDecoder(FRAME_SIZE_MAX)

    assert decoder.feed_untrusted(b"C") == ([], "")
    assert decoder.feed_untrusted(b"L") == ([], "")
    assert decoder.feed_untrusted(b"X")[1] == "magic b'CLX', expected b'CLN1'"


def test_a_frame_that_is_too_long_is_refused_as_soon_as_its_length_is_known():
    start = HEADER.pack(MAGIC, FRAME_SIZE_MAX + 1, 1, 0)[:8]

    assert FrameDecoder(FRAME_SIZE_MAX).feed_untrusted(start) == (
        [],
        "frame of 201 bytes, at most 200",
    )


def test_a_frame_shorter_than_its_header_is_refused():
    assert FrameDecoder(FRAME_SIZE_MAX).feed_untrusted(HEADER.pack(MAGIC, 11, 1, 0))[1] == (
        "frame of 11 bytes, at least 12"
    )


def test_the_frames_before_a_bad_one_are_still_returned():
    frames, problem = feed(FrameDecoder(FRAME_SIZE_MAX), frame(7, b"good") + b"garbage")

    assert frames == [(7, b"good")]
    assert problem.startswith("magic")


def test_flags_of_a_newer_version_are_ignored():
    data = HEADER.pack(MAGIC, HEADER_SIZE + 1, 3, 0xFFFF) + b"x"

    assert feed(FrameDecoder(FRAME_SIZE_MAX), data) == ([(3, b"x")], "")


@pytest.mark.slow
def test_a_large_frame_in_small_reads_takes_linear_time():
    def duration(size):
        data = frame(1, bytes(size))
        decoder = FrameDecoder(len(data))
        started = time.process_time()
        for offset in range(0, len(data), 100):
            decoder.feed_untrusted(data[offset : offset + 100])
        assert decoder.pending_bytes == 0
        return time.process_time() - started

    # Sixteen times the size; copying at each read would make it 256 times the work.
    assert duration(1_600_000) < 100 * max(duration(100_000), 0.0005)


def test_the_first_frame_is_measured_without_being_taken():
    data = frame(1, b"hello")

    assert first_frame_untrusted(data[:-1], 100) is None
    assert first_frame_untrusted(data + b"more", 100) == len(data)
    with pytest.raises(RemoteProtocolError, match="at most 16"):
        first_frame_untrusted(data, 16)
