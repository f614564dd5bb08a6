"""The whole front door over sockets: startup, encryption requests, login, limits, timeouts, and nothing left behind."""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import os
import pwd
import socket
import ssl
import stat
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import PgError
from protocol.scram import ScramClient
from server.front_door import AuthenticatedClient
from server.handshake import Handshake
from server.listener import FrontDoorError, _bind_unix
from tests.support.wire_client import (
    CANCEL_REQUEST,
    GSSENC_REQUEST,
    PROTOCOL_3_2,
    SSL_REQUEST,
    ConnectionEnded,
    Message,
    WireClient,
    message,
    startup,
    text,
    unverified_context,
)
from tests.unit.server.front_door.door_harness import (
    PASSWORD,
    Catalog,
    Door,
    EchoOpener,
    database_row,
    role_row,
    running_door,
    write_client_authority,
)

SSL_PACKET = struct.pack("!II", 8, SSL_REQUEST)
GSS_PACKET = struct.pack("!II", 8, GSSENC_REQUEST)
ALICE = {"user": "alice"}


@pytest.fixture(params=["uvloop", "asyncio"])
def door(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Door]:
    with running_door(tmp_path, loop=request.param) as found:
        yield found
        found.hang_up()
        assert found.settled() == (0, 0)


def log_in(client: WireClient, parameters: dict[str, str] = ALICE, password: str = PASSWORD, protocol: int = 3 << 16):
    """Everything the server says up to ReadyForQuery or an error."""
    client.send(startup(parameters, protocol))
    return list(client.authenticate(password))


def error_fields(found: list[Message]) -> dict[str, str]:
    assert found[-1].kind == "E", found
    fields = found[-1].fields
    assert fields["S"] == fields["V"] == "FATAL"
    return fields


def read_all(sock: socket.socket) -> bytes:
    data = b""
    try:
        while more := sock.recv(65536):
            data += more
    except ConnectionResetError:
        pass
    sock.close()
    return data


def test_a_client_logs_in_and_speaks_to_its_session(door: Door) -> None:
    client = door.connect()
    found = log_in(client, {"user": "alice", "database": "app", "options": "-c work_mem=1MB", "DateStyle": "ISO"})
    assert [one.kind for one in found] == ["R", "R", "R", "R", "Z"]
    assert [one.body[:4] for one in found[:4]] == [struct.pack("!I", code) for code in (10, 11, 12, 0)]
    client.socket.sendall(b"hello")
    assert client.socket.recv(10) == b"hello"
    (opened,) = door.opener.clients
    assert opened.identity.role == "alice"
    assert opened.identity.role_oid == 100
    assert opened.identity.database == "app"
    assert opened.identity.auth_method == "scram-sha-256"
    assert (opened.identity.client_addr, opened.identity.local_addr) == ("127.0.0.1", "127.0.0.1")
    assert opened.identity.client_port == client.socket.getsockname()[1]
    assert opened.identity.tls is None
    assert opened.identity.scram_client_key is None
    assert opened.parameters == {"work_mem": "1MB", "DateStyle": "ISO"}
    assert (opened.protocol_version, opened.replication) == ((3, 0), None)
    assert opened.login_us > 0
    assert door.front_door.limits.clients == 1


def test_a_client_over_tls_is_offered_channel_binding(door: Door) -> None:
    client = door.connect()
    client.start_tls()
    found = log_in(client)
    assert b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0" in found[0].body
    identity = door.opener.clients[0].identity
    assert identity.tls.startswith("TLSv1.3 TLS_")
    client.socket.sendall(b"hello" * 10000)
    echoed = b""
    while len(echoed) < 50000:
        echoed += client.socket.recv(65536)


def scram_over(client: WireClient, binding: bytes) -> list[Message]:
    """A login by SCRAM-SHA-256-PLUS with the given binding."""
    scram = ScramClient("alice", PASSWORD, channel_binding=binding)
    client.send(startup(ALICE))
    client.recv()
    mechanism, data = scram.first(["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"])
    client.send(message("p", text(mechanism) + struct.pack("!I", len(data)) + data))
    client.send(message("p", scram.respond(client.recv().body[4:])))
    found = client.recv_until("ZE")
    if found[-1].kind == "Z":
        scram.verify(found[0].body[4:])
    return found


def test_channel_binding_is_checked_against_the_certificate_of_this_connection(door: Door) -> None:
    client = door.connect()
    client.start_tls()
    assert isinstance(client.socket, ssl.SSLSocket)
    certificate = client.socket.getpeercert(binary_form=True)
    assert certificate
    assert scram_over(client, hashlib.sha256(certificate).digest())[-1].kind == "Z"
    assert door.opener.clients[0].identity.auth_method == "scram-sha-256-plus"
    middle = door.connect()
    middle.start_tls()
    fields = error_fields(scram_over(middle, hashlib.sha256(b"another certificate").digest()))
    assert (fields["C"], fields["M"]) == ("28000", "SCRAM channel binding check failed")


def test_a_connection_keeps_the_certificate_it_started_with(door: Door) -> None:
    early = door.connect()
    early.start_tls()
    assert isinstance(early.socket, ssl.SSLSocket)
    certificate = early.socket.getpeercert(binary_form=True)
    assert certificate
    for name in ("server.crt", "server.key"):
        (door.front_door._data_dir / "tls" / name).unlink()
    assert door.front_door.reload() == []
    late = door.connect()
    late.start_tls()
    assert isinstance(late.socket, ssl.SSLSocket)
    new_certificate = late.socket.getpeercert(binary_form=True)
    assert new_certificate
    assert new_certificate != certificate
    assert scram_over(early, hashlib.sha256(certificate).digest())[-1].kind == "Z"
    assert scram_over(late, hashlib.sha256(new_certificate).digest())[-1].kind == "Z"


def own_context() -> ssl.SSLContext:
    """One that can be changed, unlike the shared unverified_context()."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def direct_tls(door: Door, alpn: list[str]) -> WireClient:
    client = door.connect()
    context = own_context()
    if alpn:
        context.set_alpn_protocols(alpn)
    client.wrap_tls(context)
    return client


def test_direct_tls_with_alpn(door: Door) -> None:
    client = direct_tls(door, ["postgresql"])
    assert log_in(client)[-1].kind == "Z"


@pytest.mark.parametrize("alpn", [[], ["http/1.1"]])
def test_direct_tls_without_our_alpn_is_closed(door: Door, alpn: list[str]) -> None:
    client = direct_tls(door, alpn)
    with pytest.raises(OSError):  # noqa: PT012 - it depends on timing which of them hears of it
        client.send(startup(ALICE))
        client.recv()
    assert door.opener.clients == []


def test_alpn_is_not_asked_for_after_an_ssl_request(door: Door) -> None:
    client = door.connect()
    client.start_tls()
    assert log_in(client)[-1].kind == "Z"


@pytest.mark.parametrize("packets", [[GSS_PACKET], [GSS_PACKET, SSL_PACKET]])
def test_gss_encryption_is_answered_no_and_the_client_goes_on(door: Door, packets: list[bytes]) -> None:
    client = door.connect()
    for packet, answer in zip(packets, (b"N", b"S"), strict=False):
        client.socket.sendall(packet)
        assert client.socket.recv(1) == answer
    if len(packets) == 2:
        client.wrap_tls(unverified_context())
    assert log_in(client)[-1].kind == "Z"


@pytest.mark.parametrize(
    ("packet", "kind"), [(SSL_PACKET, "SSL"), (GSS_PACKET, "GSSAPI encryption")], ids=["ssl", "gss"]
)
def test_bytes_sent_before_tls_is_up_are_refused(door: Door, packet: bytes, kind: str) -> None:
    answer = read_all(door.raw(packet + startup(ALICE)))
    assert answer.startswith(b"E")
    assert f"received unencrypted data after {kind} request".encode() in answer
    assert b"08P01" in answer
    assert door.opener.clients == []


def test_a_second_ssl_request_is_a_wrong_version(door: Door) -> None:
    client = door.connect()
    client.start_tls()
    client.send(SSL_PACKET)
    fields = error_fields([client.recv()])
    assert (fields["C"], fields["M"]) == (
        "0A000",
        "unsupported frontend protocol 1234.5679: server supports 3.0 to 3.2",
    )


def test_the_unix_socket_has_no_tls_and_logs_in_by_password(door: Door) -> None:
    client = door.connect_locally()
    client.socket.sendall(SSL_PACKET)
    assert client.socket.recv(1) == b"N"
    assert log_in(client)[-1].kind == "Z"
    identity = door.opener.clients[0].identity
    assert (identity.client_addr, identity.client_port, identity.local_addr) == ("", -1, "")


def test_bytes_behind_the_last_password_message_reach_the_session(door: Door) -> None:
    client = door.connect()
    scram = ScramClient("alice", PASSWORD)
    client.send(startup(ALICE))
    client.recv()
    mechanism, data = scram.first(["SCRAM-SHA-256"])
    client.send(message("p", text(mechanism) + struct.pack("!I", len(data)) + data))
    final = message("p", scram.respond(client.recv().body[4:]))
    client.send(final + b"early bytes")
    client.recv_match("R", "R", "Z")
    client.socket.settimeout(5)
    received = bytes(client._buffer)
    while len(received) < 11:
        received += client.socket.recv(100)
    assert received == b"early bytes"


def test_bytes_that_come_while_the_session_opens_are_not_lost(door: Door) -> None:
    opener = door.opener
    gate = door.thread.run(_make_event())
    opener.gate = gate
    client = door.connect()
    client.send(startup(ALICE))
    scram = ScramClient("alice", PASSWORD)
    client.recv()
    mechanism, data = scram.first(["SCRAM-SHA-256"])
    client.send(message("p", text(mechanism) + struct.pack("!I", len(data)) + data))
    client.send(message("p", scram.respond(client.recv().body[4:])))
    sent = os.urandom(500_000)
    client.send(sent)
    assert eventually(lambda: opener.clients and len(opener.clients[0].received) == len(sent))
    door.thread.loop.call_soon_threadsafe(gate.set)
    client.recv_match("R", "R", "Z")
    received = bytes(client._buffer)
    while len(received) < len(sent):
        received += client.socket.recv(65536)
    assert received == sent


def test_a_client_that_sends_without_end_before_its_session_is_ready_is_cut_off(door: Door) -> None:
    door.opener.gate = door.thread.run(_make_event())
    client = door.connect()
    client.send(startup(ALICE))
    scram = ScramClient("alice", PASSWORD)
    client.recv()
    mechanism, data = scram.first(["SCRAM-SHA-256"])
    client.send(message("p", text(mechanism) + struct.pack("!I", len(data)) + data))
    client.send(message("p", scram.respond(client.recv().body[4:])))
    with pytest.raises(OSError):
        client.send(bytes(50_000_000))
    assert eventually(lambda: door.opener.cancelled == 1)
    assert len(door.opener.clients[0].received) < 2_000_000


def eventually(condition: Callable[[], object], seconds: float = 5.0) -> bool:
    """Does it come true in time?"""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


async def _make_event() -> asyncio.Event:
    return asyncio.Event()


@pytest.mark.parametrize("split", [1, 3, 7])
def test_packets_may_come_in_pieces(door: Door, split: int) -> None:
    client = door.connect()
    packet = startup({"user": "alice", "application_name": "pieces"})
    for at in range(0, len(packet), split):
        client.socket.sendall(packet[at : at + split])
        time.sleep(0.002)
    assert list(client.authenticate(PASSWORD))[-1].kind == "Z"


REFUSED_PACKETS: list[tuple[bytes, str, str]] = [
    (startup({}), "28000", "no PostgreSQL user name specified in startup packet"),
    (startup({"user": ""}), "28000", "no PostgreSQL user name specified in startup packet"),
    (startup(ALICE, 4 << 16), "0A000", "unsupported frontend protocol 4.0: server supports 3.0 to 3.2"),
    (startup(ALICE, 0), "0A000", "unsupported frontend protocol 0.0: server supports 3.0 to 3.2"),
    (
        struct.pack("!II", 8, 3 << 16),
        "08P01",
        "invalid startup packet layout: expected terminator as last byte",
    ),
    (
        struct.pack("!II", 14, 3 << 16) + b"user\0x",
        "08P01",
        "invalid startup packet layout: expected terminator as last byte",
    ),
    (startup({"user": "alice", "replication": "x"}), "22023", 'invalid value for parameter "replication": "x"'),
    (
        startup({"user": "alice", "options": "nonsense"}),
        "42601",
        "invalid command-line argument for server process: nonsense",
    ),
]


@pytest.mark.parametrize(("packet", "sqlstate", "text_of_it"), REFUSED_PACKETS)
def test_what_is_wrong_with_the_startup_packet_is_said(
    door: Door, packet: bytes, sqlstate: str, text_of_it: str
) -> None:
    client = door.connect()
    client.send(packet)
    fields = error_fields([client.recv()])
    assert (fields["C"], fields["M"]) == (sqlstate, text_of_it)
    assert client.is_at_end()


def test_protocol_2_gets_its_own_kind_of_error(door: Door) -> None:
    packet = struct.pack("!II", 296, 2 << 16) + bytes(288)
    assert read_all(door.raw(packet)) == b"EFATAL:  unsupported frontend protocol 2.0: server supports 3.0 to 3.2\n\0"


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("!I", 3) + b"xxxx",
        struct.pack("!II", 10001, 3 << 16),
        struct.pack("!II", 0xFFFFFFFF, 3 << 16),
        struct.pack("!II", 0, 0),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x00\x05hello",
        struct.pack("!III", 12, CANCEL_REQUEST, 5),
        os.urandom(64),
        b"\xff" * 5000,
    ],
)
def test_garbage_ends_the_connection_and_nothing_else(door: Door, data: bytes) -> None:
    answer = read_all(door.raw(data))
    assert answer == b"" or answer[:1] in (b"E", b"\x15")
    other = door.connect()
    assert log_in(other)[-1].kind == "Z"


def test_a_startup_packet_of_10000_bytes_is_read(door: Door) -> None:
    client = door.connect()
    room = 10000 - len(startup({"user": "alice", "application_name": ""}))
    packet = startup({"user": "alice", "application_name": "x" * room})
    assert len(packet) == 10000
    client.send(packet)
    assert list(client.authenticate(PASSWORD))[-1].kind == "Z"


@pytest.mark.parametrize("secret", [b"abcd", bytes(range(32)), b"x" * 256])
def test_cancel_requests_are_handed_on_and_never_answered(door: Door, secret: bytes) -> None:
    packet = struct.pack("!III", 12 + len(secret), CANCEL_REQUEST, 4711) + secret
    assert read_all(door.raw(packet)) == b""
    # A client need not wait for the end of the connection.
    door.raw(packet).close()
    client = door.connect()
    client.start_tls()
    client.send(packet)
    with pytest.raises(ConnectionEnded):
        client.recv()
    assert eventually(lambda: len(door.opener.cancels) == 3)
    assert door.opener.cancels == [(4711, secret)] * 3


def test_newer_versions_and_unknown_options_are_negotiated_down(door: Door) -> None:
    client = door.connect()
    found = log_in(client, {"user": "alice", "_pq_.x": "1"}, protocol=(3 << 16) + 9999)
    assert found[0].kind == "v"
    assert found[0].body == struct.pack("!II", PROTOCOL_3_2, 1) + b"_pq_.x\0"
    assert found[-1].kind == "Z"
    assert door.opener.clients[0].protocol_version == (3, 2)


@pytest.mark.parametrize(
    ("data", "sqlstate", "text_of_it"),
    [
        (message("Q", b"\0"), "08P01", "expected SASL response, got message type 81"),
        (message("X"), "08P01", "expected SASL response, got message type 88"),
        (b"p\0\0\0\3", "28P01", 'password authentication failed for user "alice"'),
        (b"p\0\1\0\4", "28P01", 'password authentication failed for user "alice"'),
        (b"p\xff\xff\xff\xff", "28P01", 'password authentication failed for user "alice"'),
        (
            message("p", b"FOOBAR\0\xff\xff\xff\xff"),
            "08P01",
            "client selected an invalid SASL authentication mechanism",
        ),
        (message("p", b"SCRAM-SHA-256\0\0\0\0\5hello"), "08P01", "malformed SCRAM message"),
        (message("p", b"SCRAM-SHA-256\0\0\0\0\7hello"), "08P01", "insufficient data left in message"),
        (message("p", b"no terminator"), "08P01", "invalid string in message"),
    ],
)
def test_what_is_no_sasl_response_is_refused(door: Door, data: bytes, sqlstate: str, text_of_it: str) -> None:
    client = door.connect()
    client.send(startup(ALICE))
    client.recv()
    client.send(data)
    fields = error_fields([client.recv()])
    assert (fields["C"], fields["M"]) == (sqlstate, text_of_it)


def test_a_client_may_send_its_first_message_after_an_empty_challenge(door: Door) -> None:
    client = door.connect()
    client.send(startup(ALICE))
    client.recv()
    scram = ScramClient("alice", PASSWORD)
    mechanism, data = scram.first(["SCRAM-SHA-256"])
    client.send(message("p", text(mechanism) + struct.pack("!i", -1)))
    assert client.recv().body == struct.pack("!I", 11)
    client.send(message("p", data))
    client.send(message("p", scram.respond(client.recv().body[4:])))
    assert client.recv_until("ZE")[-1].kind == "Z"


@pytest.mark.parametrize(
    "changes",
    [
        None,
        {"rolpassword": None},
        {"rolpassword": "md5" + "0" * 32},
        {"valid_until": 1.0},
        {},
    ],
    ids=["unknown", "no password", "md5", "expired", "wrong password"],
)
def test_every_way_to_fail_looks_the_same(door: Door, changes: dict[str, Any] | None) -> None:
    if changes is not None:
        door.catalog.roles["carol"] = role_row("carol", 102, **changes)
    client = door.connect()
    found = log_in(client, {"user": "carol"}, "wrong" if changes == {} else PASSWORD)
    assert [one.kind for one in found] == ["R", "R", "E"]
    challenge = dict(part.split("=", 1) for part in found[1].body[4:].decode().split(","))
    assert len(base64.b64decode(challenge["s"])) == 16
    assert challenge["i"] == "4096"
    fields = error_fields(found)
    assert (fields["C"], fields["M"]) == ("28P01", 'password authentication failed for user "carol"')
    assert set(fields) == {"S", "V", "C", "M"}
    assert door.front_door.counters.failed_logins == 1


def test_the_salt_of_an_unknown_role_is_the_same_every_time_and_after_a_restart(tmp_path: Path) -> None:
    salts = []
    for _ in range(2):
        with running_door(tmp_path) as door:
            for _ in range(2):
                client = door.connect()
                salts.append(log_in(client, {"user": "nobody"})[1].body.partition(b"s=")[2].partition(b",")[0])
    assert len(set(salts)) == 1
    assert stat.S_IMODE((tmp_path / "keys" / "scram_mock_secret").stat().st_mode) == 0o600


def test_the_operator_hears_the_reason(door: Door) -> None:
    client = door.connect()
    log_in(client, {"user": "nobody", "database": "app", "application_name": "probe"})
    door.hang_up()
    assert door.settled() == (0, 0)
    (event,) = door.failures
    assert (event.role, event.database, event.sqlstate) == ("nobody", "app", "28P01")
    assert (event.reason, event.application_name) == ("there is no such role", "probe")
    assert (event.client_addr, event.tls, event.is_throttled) == ("127.0.0.1", None, False)


AFTER_THE_PROOF: list[tuple[dict[str, Any], dict[str, Any], dict[str, str], str, str]] = [
    ({"rolcanlogin": False}, {}, {}, "28000", 'role "carol" is not permitted to log in'),
    ({"rolconnlimit": 0}, {}, {}, "53300", 'too many connections for role "carol"'),
    ({}, {}, {"database": "nowhere"}, "3D000", 'database "nowhere" does not exist'),
    ({}, {"datallowconn": False}, {}, "55000", 'database "box" is not currently accepting connections'),
    ({}, {"can_connect": False}, {}, "42501", 'permission denied for database "box"'),
    ({}, {"datconnlimit": 0}, {}, "53300", 'too many connections for database "box"'),
    ({}, {"datconnlimit": -2}, {}, "55000", 'cannot connect to invalid database "box"'),
    ({}, {}, {"replication": "true"}, "42501", "permission denied to start WAL sender"),
    ({}, {}, {"replication": "database"}, "42501", "permission denied to start WAL sender"),
    ({}, {}, {"client_encoding": "SJIS"}, "22023", 'client encoding "SJIS" is not supported'),
]


@pytest.mark.parametrize(("role", "database", "parameters", "sqlstate", "text_of_it"), AFTER_THE_PROOF)
def test_what_is_checked_after_the_password(
    door: Door,
    role: dict[str, Any],
    database: dict[str, Any],
    parameters: dict[str, str],
    sqlstate: str,
    text_of_it: str,
) -> None:
    door.catalog.roles["carol"] = role_row("carol", 102, **role)
    door.catalog.databases["box"] = database_row("box", 202, **database)
    wrong = door.connect()
    assert error_fields(log_in(wrong, {"user": "carol", "database": "box"} | parameters, "wrong"))["C"] == "28P01"
    client = door.connect()
    found = log_in(client, {"user": "carol", "database": "box"} | parameters)
    assert [one.kind for one in found] == ["R", "R", "R", "R", "E"]
    fields = error_fields(found)
    assert (fields["C"], fields["M"]) == (sqlstate, text_of_it)


def test_replication_for_roles_that_may(door: Door) -> None:
    door.catalog.roles["carol"] = role_row("carol", 102, rolreplication=True)
    client = door.connect()
    assert log_in(client, {"user": "carol", "database": "app", "replication": "database"})[-1].kind == "Z"
    physical = door.connect()
    assert log_in(physical, {"user": "carol", "replication": "yes"})[-1].kind == "Z"
    assert [(one.replication, one.identity.database) for one in door.opener.clients] == [
        ("database", "app"),
        ("true", ""),
    ]


def test_the_internal_superuser_does_not_exist(door: Door) -> None:
    door.catalog.roles["rustydb_internal"] = role_row("rustydb_internal", 10, rolsuper=True)
    client = door.connect()
    fields = error_fields(log_in(client, {"user": "rustydb_internal", "database": "app"}))
    assert (fields["C"], fields["M"]) == ("28P01", 'password authentication failed for user "rustydb_internal"')


def test_a_session_that_cannot_start_is_a_fatal_error_behind_the_login(door: Door) -> None:
    door.opener.error = PgError("57P03", "the database system is starting up", hint="Wait.")
    client = door.connect()
    found = log_in(client)
    assert [one.kind for one in found] == ["R", "R", "R", "R", "E"]
    assert error_fields(found)["C"] == "57P03"
    door.opener.error = ValueError("a bug")
    client = door.connect()
    fields = error_fields(log_in(client))
    assert (fields["C"], fields["M"]) == ("XX000", "internal error: ValueError")


def test_a_changed_role_counts_at_once(door: Door) -> None:
    first = door.connect()
    assert log_in(first)[-1].kind == "Z"
    first.socket.close()
    door.catalog.roles["alice"] = role_row("alice", 100, rolcanlogin=False)
    door.thread.loop.call_soon_threadsafe(door.front_door.invalidate_roles, "alice")
    second = door.connect()
    assert error_fields(log_in(second))["C"] == "28000"


def test_a_role_that_loses_its_login_while_it_logs_in_stays_out(door: Door) -> None:
    client = door.connect()
    client.send(startup(ALICE))
    first = client.recv()
    door.catalog.roles["alice"] = role_row("alice", 100, rolcanlogin=False)
    door.thread.loop.call_soon_threadsafe(door.front_door.invalidate_roles)
    client._buffer[:0] = first.kind.encode() + struct.pack("!I", len(first.body) + 4) + first.body
    assert error_fields(list(client.authenticate(PASSWORD)))["C"] == "28000"


def test_an_engine_that_cannot_be_asked_is_57p03(door: Door) -> None:
    door.catalog.error = OSError("no engine")
    client = door.connect()
    assert error_fields(log_in(client))["C"] == "57P03"


# Limits, throttle, timeouts


def test_max_clients_is_applied_before_the_login(tmp_path: Path) -> None:
    with running_door(tmp_path, server={"max_clients": 2}) as door:
        clients = [door.connect() for _ in range(3)]
        for client in clients[:2]:
            assert log_in(client)[-1].kind == "Z"
        clients[2].send(startup(ALICE))
        fields = error_fields([clients[2].recv()])
        assert (fields["C"], fields["M"]) == ("53300", "sorry, too many clients already")
        # A cancel is no client.
        door.raw(struct.pack("!IIII", 16, CANCEL_REQUEST, 1, 2)).close()
        clients[0].socket.close()
        assert eventually(lambda: door.front_door.limits.clients == 1)
        again = door.connect()
        assert log_in(again)[-1].kind == "Z"
        door.hang_up()
        assert door.settled() == (0, 0)
        assert len(door.opener.cancels) == 1


def test_clients_that_never_say_who_they_are_are_bounded(tmp_path: Path) -> None:
    with running_door(tmp_path, server={"max_clients": 6}) as door:
        silent = [door.raw() for _ in range(80)]
        last = silent[-1]
        assert b"53300" in read_all(last)
        assert door.front_door.connecting <= 70
        for sock in silent:
            sock.close()
        assert door.settled() == (0, 0)


def test_one_address_has_a_limit_of_its_own(tmp_path: Path) -> None:
    with running_door(tmp_path, options={"max_clients_per_address": 1}) as door:
        first, second = door.connect(), door.connect()
        assert log_in(first)[-1].kind == "Z"
        second.send(startup(ALICE))
        assert error_fields([second.recv()])["M"] == "too many connections from this address"
        first.socket.close()


def test_repeated_failures_are_throttled_even_with_the_right_password(tmp_path: Path) -> None:
    with running_door(tmp_path, auth={"throttle_failures": 3, "throttle_seconds": 1.0}) as door:

        def attempt(password: str) -> dict[str, str] | None:
            client = door.connect()
            found = log_in(client, password=password)
            return found[-1].fields if found[-1].kind == "E" else None

        for _ in range(3):
            fields = attempt("wrong")
            assert fields is not None
            assert fields["C"] == "28P01"
        fields = attempt(PASSWORD)
        assert fields is not None
        assert (fields["C"], fields["M"]) == (
            "28000",
            'too many failed login attempts for user "alice" from this address',
        )
        assert fields["H"].startswith("Try again in ")
        time.sleep(1.1)
        assert attempt(PASSWORD) is None
        door.hang_up()
        assert door.settled() == (0, 0)
        assert [event.is_throttled for event in door.failures] == [False, False, False, True]


def test_attempts_begun_before_the_first_failure_do_not_get_past_the_throttle(tmp_path: Path) -> None:
    with running_door(tmp_path, auth={"throttle_failures": 3, "throttle_seconds": 60.0}) as door:
        clients = [door.connect() for _ in range(10)]
        exchanges = []
        for client in clients:
            client.send(startup(ALICE))
            client.recv()
            scram = ScramClient("alice", "wrong")
            mechanism, data = scram.first(["SCRAM-SHA-256"])
            client.send(message("p", text(mechanism) + struct.pack("!I", len(data)) + data))
            exchanges.append((client, message("p", scram.respond(client.recv().body[4:]))))
        codes = []
        for client, final in exchanges:
            client.send(final)
            codes.append(client.recv().fields["C"])
        assert codes == ["28P01"] * 3 + ["28000"] * 7


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_whoever_does_not_log_in_in_time_is_disconnected_without_a_word(tmp_path: Path, loop: str) -> None:
    with running_door(tmp_path, loop=loop, server={"authentication_timeout": 0.4}) as door:
        began = time.monotonic()
        silent, started, half, asked = (
            door.raw(data) for data in (b"", startup(ALICE), startup(ALICE)[:15], SSL_PACKET)
        )
        assert read_all(silent) == b""
        assert read_all(started)[:1] == b"R"
        assert read_all(half) == b""
        assert read_all(asked) == b"S"
        assert 0.3 < time.monotonic() - began < 2.5
        assert door.settled() == (0, 0)


def test_a_look_up_that_hangs_does_not_keep_a_client_beyond_the_timeout(tmp_path: Path) -> None:
    with running_door(tmp_path, server={"authentication_timeout": 0.3}) as door:
        gate = door.thread.run(_make_event())
        door.catalog.gate = gate
        assert read_all(door.raw(startup(ALICE))) == b""
        assert door.settled() == (0, 0)
        door.thread.loop.call_soon_threadsafe(gate.set)


def test_a_client_that_vanishes_while_its_session_opens_cancels_the_opening(door: Door) -> None:
    door.opener.gate = door.thread.run(_make_event())
    client = door.connect()
    client.send(startup(ALICE))
    scram = ScramClient("alice", PASSWORD)
    client.recv()
    mechanism, data = scram.first(["SCRAM-SHA-256"])
    client.send(message("p", text(mechanism) + struct.pack("!I", len(data)) + data))
    client.send(message("p", scram.respond(client.recv().body[4:])))
    assert eventually(lambda: door.opener.clients)
    door.hang_up()
    assert door.settled() == (0, 0)
    assert door.opener.cancelled == 1


@pytest.mark.parametrize("at", range(0, 60, 7))
def test_a_client_may_vanish_anywhere(door: Door, at: int) -> None:
    packet = startup({"user": "alice", "database": "app", "x": "y" * 20})
    door.raw(packet[:at]).close()
    reset = door.raw(packet[:at])
    reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    reset.close()
    assert door.settled() == (0, 0)


def test_closing_the_door_ends_whoever_is_not_in_yet(tmp_path: Path) -> None:
    with running_door(tmp_path) as door:
        waiting = [door.raw(data) for data in (b"", startup(ALICE), b"\0\0", SSL_PACKET)]
        inside = door.connect()
        assert log_in(inside)[-1].kind == "Z"
        path = Path(door.unix_path)
        assert path.exists()
        door.thread.run(door.front_door.close())
        for sock in waiting:
            read_all(sock)
        assert not path.exists()
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", door.port), 2)
        inside.socket.sendall(b"still here")
        assert inside.socket.recv(20) == b"still here"


def test_nothing_of_the_handshake_stays_behind(tmp_path: Path) -> None:
    opener = EchoOpener()
    opener.keeps_clients = False
    gc.collect()
    known = set(map(id, gc.get_objects()))  # left by other tests
    with running_door(tmp_path, opener=opener) as door:
        clients = [door.connect() for _ in range(20)]
        for number, client in enumerate(clients):
            if number % 2:
                client.start_tls()
            assert log_in(client)[-1].kind == "Z"

        async def alive() -> list[str]:
            await asyncio.sleep(0.05)
            kinds = (Handshake, AuthenticatedClient, asyncio.Task)
            mine = asyncio.current_task()
            return [
                repr(one)
                for one in gc.get_objects()
                if isinstance(one, kinds) and one is not mine and id(one) not in known
            ]

        gc.disable()  # nothing may wait for the collector either
        try:
            assert door.thread.run(alive()) == []
        finally:
            gc.enable()


# Rules, TLS modes, sockets


def hba(tmp_path: Path, rules: str) -> dict[str, Any]:
    path = tmp_path / "pg_hba.conf"
    path.write_text(rules)
    return {"hba_file": path}


def test_no_rule_and_reject_are_28000(tmp_path: Path) -> None:
    rules = "host app bob all scram-sha-256\nhost app alice all reject\nlocal all all reject\n"
    with running_door(tmp_path, auth=hba(tmp_path, rules)) as door:
        for parameters, text_of_it in [
            (
                {"user": "alice"},
                'no pg_hba.conf entry for host "127.0.0.1", user "alice", database "alice", no encryption',
            ),
            (
                {"user": "alice", "database": "app"},
                'pg_hba.conf rejects connection for host "127.0.0.1", user "alice", database "app", no encryption',
            ),
            (
                {"user": "alice", "replication": "true"},
                'no pg_hba.conf entry for replication connection from host "127.0.0.1", user "alice", no encryption',
            ),
        ]:
            client = door.connect()
            client.send(startup(parameters))
            fields = error_fields([client.recv()])
            assert (fields["C"], fields["M"]) == ("28000", text_of_it)
        client = door.connect()
        client.start_tls()
        client.send(startup(ALICE))
        assert error_fields([client.recv()])["M"].endswith(", SSL encryption")


def test_trust_and_peer(tmp_path: Path) -> None:
    me = pwd.getpwuid(os.geteuid()).pw_name
    catalog = Catalog([role_row("alice", 100), role_row(me, 101)], [database_row("app", 200)])
    rules = "host all all all trust\nlocal all all peer\n"
    with running_door(tmp_path, catalog=catalog, auth=hba(tmp_path, rules)) as door:
        client = door.connect()
        found = log_in(client, {"user": "alice", "database": "app"})
        assert [one.kind for one in found] == ["R", "Z"]
        client = door.connect()
        fields = error_fields(log_in(client, {"user": "nobody", "database": "app"}))
        assert (fields["C"], fields["M"]) == ("28000", 'role "nobody" does not exist')
        for role, outcome in [(me, "Z"), ("alice", "E")]:
            local = door.connect_locally()
            found = log_in(local, {"user": role, "database": "app"})
            assert found[-1].kind == outcome
            if outcome == "E":
                assert error_fields(found)["M"] == 'Peer authentication failed for user "alice"'
        assert [one.identity.auth_method for one in door.opener.clients] == ["trust", "peer"]


def test_wrong_rules_keep_the_door_shut_and_the_old_ones_in_force(tmp_path: Path) -> None:
    settings = hba(tmp_path, "host all all all trust\n")
    with running_door(tmp_path, auth=settings) as door:
        settings["hba_file"].write_text("host all all all trusty\n")
        (problem,) = door.front_door.reload()
        assert problem.startswith(f"{settings['hba_file']}:1: ")
        client = door.connect()
        assert log_in(client)[-1].kind == "Z"
        settings["hba_file"].write_text("host all all all reject\n")
        assert door.front_door.reload() == []
        client = door.connect()
        assert error_fields(log_in(client))["C"] == "28000"
    settings["hba_file"].write_text("nonsense\n")
    with pytest.raises(FrontDoorError, match="pg_hba.conf:1: invalid connection type"):
        with running_door(tmp_path, auth=settings):
            pass


def test_tls_disabled(tmp_path: Path) -> None:
    with running_door(tmp_path, tls={"mode": "disable"}) as door:
        client = door.connect()
        client.socket.sendall(SSL_PACKET)
        assert client.socket.recv(1) == b"N"
        assert log_in(client)[-1].kind == "Z"
        with pytest.raises(OSError):
            direct_tls(door, ["postgresql"])


def test_tls_required(tmp_path: Path) -> None:
    with running_door(tmp_path, tls={"mode": "require"}) as door:
        client = door.connect()
        client.send(startup(ALICE))
        fields = error_fields([client.recv()])
        assert (fields["C"], fields["M"]) == ("28000", "connections without TLS are not allowed")
        client = door.connect()
        client.start_tls()
        assert log_in(client)[-1].kind == "Z"
        local = door.connect_locally()
        assert log_in(local)[-1].kind == "Z"


def test_tls_below_the_least_version_is_refused(tmp_path: Path) -> None:
    with running_door(tmp_path, tls={"min_version": "TLSv1.3"}) as door:
        client = door.connect()
        client.socket.sendall(SSL_PACKET)
        assert client.socket.recv(1) == b"S"
        context = own_context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError):
            client.wrap_tls(context)
        door.hang_up()
        assert door.settled() == (0, 0)
        assert door.front_door.counters.tls_failures == 1


def test_accepted_sockets_inherit_nodelay_and_keepalive(door: Door) -> None:
    client = door.connect()
    assert log_in(client)[-1].kind == "Z"
    sock = door.opener.clients[0].transport.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


def test_several_addresses_share_one_port(tmp_path: Path) -> None:
    with running_door(tmp_path, server={"host": "127.0.0.1, 127.0.0.2,::1"}) as door:
        hosts = [address.host for address in door.front_door.addresses if not address.is_local]
        assert hosts[:2] == ["127.0.0.1", "127.0.0.2"]
        assert len({address.port for address in door.front_door.addresses}) == 1
        assert str(door.front_door.addresses[-1]).endswith(f"/.s.PGSQL.{door.port}")
        for host in hosts:
            sock = socket.create_connection((host, door.port), 5)
            sock.sendall(SSL_PACKET)
            assert sock.recv(1) == b"S"
            sock.close()


def test_an_address_that_cannot_be_had_is_an_error_where_it_is_the_only_one(tmp_path: Path) -> None:
    with pytest.raises(FrontDoorError, match="could not listen on any TCP address"):
        with running_door(tmp_path, server={"host": "192.0.2.77"}):
            pass
    with running_door(tmp_path, server={"host": "192.0.2.77,127.0.0.1"}) as door:
        assert door.front_door.addresses[0].host == "127.0.0.1"


def test_a_taken_port_is_an_error_that_names_it(tmp_path: Path) -> None:
    with running_door(tmp_path) as door:
        with pytest.raises(FrontDoorError, match=f"port {door.port}: Address already in use"):
            with running_door(tmp_path / "other", server={"port": door.port}):
                pass


def test_a_stale_unix_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    directory = tmp_path / "s"
    first, address = _bind_unix(directory, 5432)
    with pytest.raises(FrontDoorError, match="another server is listening"):
        _bind_unix(directory, 5432)
    first.close()
    assert Path(str(address)).exists()
    second, _ = _bind_unix(directory, 5432)
    second.close()
    with pytest.raises(FrontDoorError, match="path of the Unix socket is too long"):
        _bind_unix(tmp_path / ("x" * 120), 5432)


def test_a_socket_directory_that_is_too_long_is_only_a_warning_beside_tcp(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running_door(tmp_path, server={"unix_socket_dir": tmp_path / ("x" * 120)}) as door:
        assert [address.is_local for address in door.front_door.addresses] == [False]
    assert "path of the Unix socket is too long" in caplog.text


def test_a_door_without_tcp_has_the_default_port_in_its_name(tmp_path: Path) -> None:
    with running_door(tmp_path, server={"host": ""}) as door:
        assert door.unix_path.endswith("/.s.PGSQL.5432")


def test_a_subscriber_that_fails_does_not_let_anybody_in(tmp_path: Path) -> None:
    with running_door(tmp_path) as door:

        async def fail(event: Any) -> None:
            raise RuntimeError("the audit log is full")

        assert door.front_door._services is not None
        door.front_door._services.report_failure = fail
        client = door.connect()
        assert error_fields(log_in(client, password="wrong"))["C"] == "28P01"
        assert client.is_at_end()


def test_a_client_certificate_stands_for_its_role(tmp_path: Path) -> None:
    authority, issue = write_client_authority(tmp_path)
    rules = (
        "hostssl app all all cert\nhostssl alice all all scram-sha-256 clientcert=verify-ca\nhost all all all reject\n"
    )
    with running_door(tmp_path, tls={"ca_file": authority}, auth=hba(tmp_path, rules)) as door:
        for name, parameters, outcome in [
            ("alice", {"user": "alice", "database": "app"}, "Z"),
            ("bob", {"user": "alice", "database": "app"}, 'certificate authentication failed for user "alice"'),
            (None, {"user": "alice", "database": "app"}, "connection requires a valid client certificate"),
            ("bob", {"user": "alice"}, "Z"),
            (None, {"user": "alice"}, "connection requires a valid client certificate"),
        ]:
            context = own_context()
            if name is not None:
                context.load_cert_chain(*issue(name))
            client = door.connect()
            client.socket.sendall(SSL_PACKET)
            assert client.socket.recv(1) == b"S"
            client.wrap_tls(context)
            found = log_in(client, parameters)
            assert found[-1].kind == ("Z" if outcome == "Z" else "E")
            if outcome != "Z":
                assert error_fields(found)["M"] == outcome
        assert [one.identity.auth_method for one in door.opener.clients] == ["cert", "scram-sha-256"]
