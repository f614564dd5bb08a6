"""Frames out of a stream cut anywhere; lengths judged before bodies are waited for."""

from __future__ import annotations

import pytest

from protocol.codes import MAX_LARGE_MESSAGE_LENGTH
from protocol.errors import ProtocolError, RemoteProtocolError
from protocol.framing import Frame, FrameDecoder


def any_length(code: int) -> int:
    return MAX_LARGE_MESSAGE_LENGTH


def test_frames_come_out_whole_however_the_bytes_are_cut() -> None:
    stream = b"Q\0\0\0\x06a\0" + b"S\0\0\0\x04" + b"d\0\0\0\x07abc"
    for step in range(1, len(stream) + 1):
        decoder = FrameDecoder()
        frames = []
        for at in range(0, len(stream), step):
            decoder.feed(stream[at : at + step])
            while frame := decoder.next_frame(any_length):
                frames.append(frame)
        assert frames == [Frame(ord("Q"), b"a\0"), Frame(ord("S"), b""), Frame(ord("d"), b"abc")]
        assert decoder.buffered == 0


@pytest.mark.parametrize("length", [b"\0\0\0\0", b"\0\0\0\x03", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"])
def test_impossible_length_is_refused_at_the_header(length: bytes) -> None:
    decoder = FrameDecoder()
    decoder.feed(b"Q" + length)
    with pytest.raises(RemoteProtocolError, match="invalid message length"):
        decoder.next_frame(any_length)


def test_length_beyond_the_limit_of_the_type_is_refused_at_the_header() -> None:
    decoder = FrameDecoder()
    decoder.feed(b"S\0\0\x27\x11")
    with pytest.raises(RemoteProtocolError, match="invalid message length"):
        decoder.next_frame(lambda code: 10_000)


def test_unknown_type_is_refused_at_its_first_byte() -> None:
    def refuse(code: int) -> int:
        raise RemoteProtocolError(f"invalid frontend message type {code}")

    decoder = FrameDecoder()
    decoder.feed(b"?")
    with pytest.raises(RemoteProtocolError, match="type 63"):
        decoder.next_frame(refuse)


def test_error_stays() -> None:
    decoder = FrameDecoder()
    decoder.feed(b"Q\0\0\0\0")
    for _ in range(2):
        with pytest.raises(ProtocolError):
            decoder.next_frame(any_length)
        decoder.feed(b"S\0\0\0\x04")


@pytest.mark.parametrize("length", [0, 4, 7, 10_005, 0x16030100, 0x47455420])
def test_startup_packet_of_impossible_length_is_refused(length: int) -> None:
    decoder = FrameDecoder()
    decoder.feed(length.to_bytes(4, "big"))
    with pytest.raises(RemoteProtocolError, match="invalid length of startup packet"):
        decoder.next_startup_packet()


def test_startup_packet_has_no_type_byte() -> None:
    decoder = FrameDecoder()
    decoder.feed(b"\0\0\0\x08\x04\xd2\x16\x2fQ")
    assert decoder.next_startup_packet() == Frame(None, b"\x04\xd2\x16\x2f")
    assert decoder.take_rest() == b"Q"
    assert decoder.buffered == 0


def test_many_small_frames_in_one_piece_are_taken_without_copying_the_rest() -> None:
    decoder = FrameDecoder()
    decoder.feed(b"S\0\0\0\x04" * 50_000)
    count = 0
    while decoder.next_frame(any_length):
        count += 1
    assert count == 50_000
