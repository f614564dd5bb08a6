"""Startup packets, told apart and judged as PostgreSQL's ProcessStartupPacket does; version negotiation."""

from __future__ import annotations

import pytest

from protocol.errors import PgError, RemoteProtocolError
from protocol.startup import (
    CancelRequest,
    GssEncRequest,
    NegotiateProtocolVersion,
    SslRequest,
    StartupMessage,
    decode_startup_packet,
    negotiate,
)


def body(packet: StartupMessage | SslRequest | GssEncRequest | CancelRequest) -> bytes:
    return packet.encode()[4:]


@pytest.mark.parametrize(
    "packet",
    [
        SslRequest(),
        GssEncRequest(),
        CancelRequest(5, b"four"),
        CancelRequest(5, b"x" * 256),
        StartupMessage(3, 0, {"user": "joe"}),
        StartupMessage(3, 2, {"user": "joe", "database": "d", "options": "-c a=b"}),
    ],
)
def test_packets_are_told_apart(packet: StartupMessage | SslRequest | GssEncRequest | CancelRequest) -> None:
    assert decode_startup_packet(body(packet)) == packet


@pytest.mark.parametrize(
    ("version", "shown"), [(b"\0\x02\0\0", "2.0"), (b"\0\x04\0\x01", "4.1"), (b"\x04\xd2\x16\x31", "1234.5681")]
)
def test_other_major_versions_are_refused_whatever_follows(version: bytes, shown: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_startup_packet(version + b"\xff" * 292)
    assert caught.value.sqlstate == "0A000"
    assert caught.value.message == f"unsupported frontend protocol {shown}: server supports 3.0 to 3.2"
    assert caught.value.to_pg_error().severity == "FATAL"


@pytest.mark.parametrize("tail", [b"", b"user", b"user\0", b"user\0joe", b"user\0joe\0", b"\0x", b"user\0joe\0\0\0"])
def test_parameters_without_their_terminator_are_refused(tail: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_startup_packet(b"\0\x03\0\0" + tail)
    assert caught.value.message == "invalid startup packet layout: expected terminator as last byte"


@pytest.mark.parametrize("short", [b"", b"\0\x03\0"])
def test_packet_too_short_for_a_version_is_refused(short: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="invalid length of startup packet"):
        decode_startup_packet(short)


def test_parameters_are_sorted_into_their_kinds() -> None:
    packet = StartupMessage(3, 2, {"user": "joe", "TimeZone": "UTC", "_pq_.x": "1", "replication": "true"})
    assert packet.user == "joe"
    assert packet.database == "joe"
    assert packet.protocol_options == {"_pq_.x": "1"}
    assert packet.settings == {"TimeZone": "UTC", "replication": "true"}


@pytest.mark.parametrize(
    ("minor", "options", "spoken", "reply"),
    [
        (0, {}, (3, 0), None),
        (2, {}, (3, 2), None),
        (9999, {}, (3, 2), NegotiateProtocolVersion(3 << 16 | 2)),
        (3, {"_pq_.a": "1"}, (3, 2), NegotiateProtocolVersion(3 << 16 | 2, ("_pq_.a",))),
        (0, {"_pq_.a": "", "_pq_.b": ""}, (3, 0), NegotiateProtocolVersion(3 << 16, ("_pq_.a", "_pq_.b"))),
        (2, {"_pq_.known": "1"}, (3, 2), None),
    ],
)
def test_newer_versions_and_unknown_options_are_negotiated_down(
    minor: int, options: dict[str, str], spoken: tuple[int, int], reply: NegotiateProtocolVersion | None
) -> None:
    startup = StartupMessage(3, minor, {"user": "joe", **options})
    result = negotiate(startup, known_options=frozenset({"_pq_.known"}))
    assert (result.version, result.reply) == (spoken, reply)


def test_reply_tells_its_version() -> None:
    assert NegotiateProtocolVersion(3 << 16 | 2).newest == (3, 2)


@pytest.mark.parametrize("parameters", [{}, {"user": ""}, {"database": "d"}])
def test_startup_without_a_user_is_refused(parameters: dict[str, str]) -> None:
    with pytest.raises(PgError) as caught:
        negotiate(StartupMessage(3, 0, parameters))
    assert (caught.value.sqlstate, caught.value.severity) == ("28000", "FATAL")
