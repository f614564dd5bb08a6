"""Mistakes that other poolers made at their front door, by the numbers of research on them; each is a test here."""

from __future__ import annotations

import hashlib
import random
import socket
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from protocol.scram import ScramClient
from tests.support.wire_client import PROTOCOL_3_2, SSL_REQUEST, WireClient, message, startup, text
from tests.unit.server.front_door.door_harness import PASSWORD, Catalog, database_row, role_row, running_door
from tests.unit.server.front_door.test_tls import make_certificate


def log_in(client: WireClient, parameters: dict[str, str], password: str = PASSWORD) -> list[Any]:
    client.send(startup(parameters))
    return list(client.authenticate(password))


def test_pitfall_25_startup_parameters_reach_no_query_before_the_login(tmp_path: Path) -> None:
    with running_door(tmp_path) as door:
        evil = {"search_path": "evil", "options": "-c search_path=evil -c role=postgres", "extra_float_digits": "3"}
        log_in(door.connect(), {"user": "alice", "database": "app", **evil}, "wrong")
        log_in(door.connect(), {"user": "alice", "database": "app", **evil})
        assert door.catalog.queries == [("alice",), ("app", 100)]
        assert door.opener.clients[0].parameters == {
            "search_path": "evil",
            "role": "postgres",
            "extra_float_digits": "3",
        }


def test_pitfall_26_valid_until_is_checked(tmp_path: Path) -> None:
    catalog = Catalog([role_row("alice", 100, valid_until=time.time() + 0.5)], [database_row("alice", 200)])
    with running_door(tmp_path, catalog=catalog) as door:
        assert log_in(door.connect(), {"user": "alice"})[-1].kind == "Z"
        time.sleep(0.6)
        assert log_in(door.connect(), {"user": "alice"})[-1].fields["C"] == "28P01"


def test_pitfall_26_no_login_costs_us_pbkdf2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scram = ScramClient("alice", PASSWORD)
    with running_door(tmp_path) as door:
        client = door.connect()
        client.send(startup({"user": "alice"}))
        client.recv()
        mechanism, data = scram.first(["SCRAM-SHA-256"])
        client.send(message("p", text(mechanism) + struct.pack("!I", len(data)) + data))
        final = message("p", scram.respond(client.recv().body[4:]))

        def forbidden(*args: object) -> bytes:
            raise AssertionError("PBKDF2 on the server")

        monkeypatch.setattr(hashlib, "pbkdf2_hmac", forbidden)
        client.send(final)
        assert client.recv_until("ZE")[-1].kind == "Z"


@pytest.mark.parametrize("length", [0, 3, 1029, 2**31 - 1, 2**31, 2**32 - 1])
def test_pitfall_26_lengths_in_sasl_messages_do_not_overflow(tmp_path: Path, length: int) -> None:
    with running_door(tmp_path) as door:
        for data in (
            b"p" + struct.pack("!I", length) + b"SCRAM-SHA-256\0",
            message("p", b"SCRAM-SHA-256\0" + struct.pack("!I", length) + b"n,,n=,r=x"),
        ):
            client = door.connect()
            client.send(startup({"user": "alice"}))
            client.recv()
            client.send(data)
            # -1 says that there is no first message, and is legal.
            assert client.recv().kind == "E" or (length == 2**32 - 1 and data[1:5] != struct.pack("!I", length))
        assert log_in(door.connect(), {"user": "alice"})[-1].kind == "Z"


def test_pitfall_26_a_certificate_without_a_binding_hash_offers_no_plus(tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    certificate_path, key_path = tmp_path / "ed.crt", tmp_path / "ed.key"
    certificate_path.write_bytes(make_certificate(key, None).public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    key_path.chmod(0o600)
    with running_door(tmp_path, tls={"cert_file": certificate_path, "key_file": key_path}) as door:
        client = door.connect()
        client.start_tls()
        found = log_in(client, {"user": "alice"})
        assert found[0].body[4:] == b"SCRAM-SHA-256\0\0"
        assert found[-1].kind == "Z"


def test_pitfall_26_known_and_unknown_roles_take_the_same_time(tmp_path: Path) -> None:
    """Medians of the time from the proof to the refusal; a PBKDF2 on one side alone would be a millisecond."""
    with running_door(tmp_path, auth={"throttle_failures": 0}) as door:

        def refusal_seconds(role: str) -> float:
            client = door.connect()
            scram = ScramClient(role, "wrong")
            client.send(startup({"user": role}))
            client.recv()
            mechanism, data = scram.first(["SCRAM-SHA-256"])
            client.send(message("p", text(mechanism) + struct.pack("!I", len(data)) + data))
            final = message("p", scram.respond(client.recv().body[4:]))
            began = time.perf_counter()
            client.send(final)
            assert client.recv().kind == "E"
            ended = time.perf_counter()
            client.socket.close()
            return ended - began

        times: dict[str, list[float]] = {"alice": [], "nobody": []}
        for _ in range(40):
            for role, taken in times.items():
                taken.append(refusal_seconds(role))
        alice, nobody = (sorted(taken)[len(taken) // 2] for taken in times.values())
        assert abs(alice - nobody) < 0.001


def test_pitfall_27_a_request_in_two_pieces_is_no_data_before_tls(tmp_path: Path) -> None:
    with running_door(tmp_path) as door:
        client = door.connect()
        packet = struct.pack("!II", 8, SSL_REQUEST)
        client.socket.sendall(packet[:5])
        time.sleep(0.05)
        client.socket.sendall(packet[5:])
        assert client.socket.recv(1) == b"S"


def test_pitfall_27_plain_bytes_after_the_answer_do_not_pass_for_tls(tmp_path: Path) -> None:
    with running_door(tmp_path) as door:
        client = door.connect()
        client.socket.sendall(struct.pack("!II", 8, SSL_REQUEST))
        assert client.socket.recv(1) == b"S"
        client.socket.sendall(startup({"user": "alice"}))
        rest = b""
        try:
            while data := client.socket.recv(1000):
                rest += data
        except OSError:
            pass
        assert b"SCRAM" not in rest
        assert door.opener.clients == []


def test_pitfall_28_unknown_protocol_options_are_listed(tmp_path: Path) -> None:
    with running_door(tmp_path) as door:
        client = door.connect()
        client.send(startup({"user": "alice", "_pq_.one": "1", "x.y": "z", "_pq_.two": "2"}, PROTOCOL_3_2))
        found = list(client.authenticate(PASSWORD))
        assert found[0].kind == "v"
        assert found[0].body == struct.pack("!II", PROTOCOL_3_2, 2) + b"_pq_.one\0_pq_.two\0"
        assert door.opener.clients[0].parameters == {"x.y": "z"}


def conversation() -> bytes:
    """What a client says up to its first SCRAM message."""
    scram = ScramClient("alice", PASSWORD)
    mechanism, data = scram.first(["SCRAM-SHA-256"])
    return startup({"user": "alice", "options": "-c a=b"}) + message(
        "p", text(mechanism) + struct.pack("!I", len(data)) + data
    )


@pytest.mark.parametrize("seed", range(4))
def test_damaged_conversations_split_anywhere_end_their_own_connection_only(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with running_door(tmp_path, server={"authentication_timeout": 1.0}) as door:
        for _ in range(60):
            data = bytearray(conversation())
            for _ in range(rng.randrange(4)):
                at = rng.randrange(len(data))
                match rng.randrange(3):
                    case 0:
                        data[at] = rng.randrange(256)
                    case 1:
                        del data[at : at + rng.randrange(9)]
                    case _:
                        data[at:at] = rng.randbytes(rng.randrange(9))
            sock = door.raw()
            try:
                cut = rng.randrange(len(data) + 1)
                sock.sendall(data[:cut])
                if rng.random() < 0.3:
                    time.sleep(0.001)
                sock.sendall(data[cut:])
                if rng.random() < 0.3:
                    sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            if rng.random() < 0.7:
                sock.close()
        assert log_in(door.connect(), {"user": "alice"})[-1].kind == "Z"
        door.hang_up()
        assert door.settled() == (0, 0)
