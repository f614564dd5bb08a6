"""Logins of real drivers against the verifiers, limits and privileges of a real engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from protocol.scram import ScramVerifier
from tests.support.wire_client import WireClient, startup
from tests.unit.server.front_door.door_harness import Door

pytestmark = pytest.mark.integration

PASSWORD = "correct horse"


def admin(gate: Door, *statements: str) -> None:
    """Run statements as the internal superuser, and say that roles changed, as the core does."""
    for statement in statements:
        gate.thread.run(gate.front_door.roles._control.execute(statement))  # type: ignore[attr-defined]
    gate.thread.loop.call_soon_threadsafe(gate.front_door.invalidate_roles)


def connect(gate: Door, user: str = "alice", password: str = PASSWORD, **options: Any) -> psycopg.Connection[Any]:
    parameters: dict[str, Any] = {"host": "127.0.0.1", "dbname": "app", "sslmode": "disable", "connect_timeout": 10}
    return psycopg.connect(user=user, password=password, port=gate.port, autocommit=True, **(parameters | options))


def refused(gate: Door, **options: Any) -> str:
    """What the client is told."""
    with pytest.raises(psycopg.OperationalError) as caught:
        connect(gate, **options)
    return str(caught.value)


@pytest.fixture(autouse=True)
def people(gate: Door) -> Iterator[None]:
    """alice, who owns the database app; everything else a test makes is dropped by its name."""
    verifier = ScramVerifier.build(PASSWORD)
    admin(gate, f"CREATE ROLE alice LOGIN PASSWORD '{verifier}'", "CREATE DATABASE app OWNER alice")
    yield
    gate.hang_up()
    admin(gate, "DROP DATABASE app WITH (FORCE)", "DROP ROLE alice", "DROP ROLE IF EXISTS bob, staff")


def test_psycopg_logs_in_and_is_itself(gate: Door) -> None:
    with connect(gate) as connection:
        row = connection.execute("SELECT current_user, session_user, current_database()").fetchone()
    assert row == ("alice", "alice", "app")


@pytest.mark.parametrize("binding", ["disable", "prefer", "require"])
def test_psycopg_over_tls_with_and_without_channel_binding(gate: Door, binding: str) -> None:
    with connect(gate, sslmode="require", channel_binding=binding) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert connection.pgconn.ssl_in_use
    methods = {"disable": "scram-sha-256", "prefer": "scram-sha-256-plus", "require": "scram-sha-256-plus"}
    assert gate.opener.identities[-1].auth_method == methods[binding]
    assert gate.opener.identities[-1].tls.startswith("TLSv1.3 ")


def test_channel_binding_cannot_be_had_in_the_clear(gate: Door) -> None:
    assert "channel binding" in refused(gate, sslmode="disable", channel_binding="require")


def test_psycopg_verifies_the_self_signed_certificate(gate: Door) -> None:
    certificate = gate.front_door._data_dir / "tls" / "server.crt"
    with connect(gate, host="localhost", hostaddr="127.0.0.1", sslmode="verify-full", sslrootcert=str(certificate)):
        pass


def test_the_unix_socket(gate: Door) -> None:
    directory = gate.unix_path.rpartition("/")[0]
    with connect(gate, host=directory) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert gate.opener.identities[-1].client_addr == ""


def test_options_and_parameters_reach_the_session(gate: Door) -> None:
    with connect(
        gate, options=r"-c work_mem=3MB -c search_path=x,\ public --statement-timeout=7s", application_name="né"
    ) as connection:
        values = [
            connection.execute(f"SHOW {name}").fetchone()
            for name in ("work_mem", "search_path", "statement_timeout", "application_name")
        ]
    assert values == [("3MB",), ("x, public",), ("7s",), (r"n\xc3\xa9",)]


def test_a_wrong_password_and_an_unknown_role(gate: Door) -> None:
    assert 'FATAL:  password authentication failed for user "alice"' in refused(gate, password="wrong")
    assert 'FATAL:  password authentication failed for user "nobody"' in refused(gate, user="nobody")
    assert 'password authentication failed for user "rustydb_internal"' in refused(gate, user="rustydb_internal")


def test_a_new_password_counts_at_once(gate: Door) -> None:
    connect(gate).close()
    admin(gate, f"ALTER ROLE alice PASSWORD '{ScramVerifier.build('another')}'")
    assert "password authentication failed" in refused(gate)
    connect(gate, password="another").close()


def test_nologin_and_valid_until(gate: Door) -> None:
    admin(gate, "ALTER ROLE alice NOLOGIN")
    assert 'FATAL:  role "alice" is not permitted to log in' in refused(gate)
    admin(gate, "ALTER ROLE alice LOGIN VALID UNTIL '2001-01-01'")
    assert "password authentication failed" in refused(gate)
    for until in ("2999-01-01", "infinity"):
        admin(gate, f"ALTER ROLE alice VALID UNTIL '{until}'")
        connect(gate).close()
    admin(gate, "ALTER ROLE alice VALID UNTIL '-infinity'")
    assert "password authentication failed" in refused(gate)


def test_an_md5_password_fails_as_a_wrong_one(gate: Door) -> None:
    admin(gate, "CREATE ROLE bob LOGIN PASSWORD 'md51d2bcbcb03c2a55d5ec5b4d1ab5bb3b0'")
    assert 'password authentication failed for user "bob"' in refused(gate, user="bob")
    assert gate.failures[-1].reason.startswith("the role's password is an MD5 hash")


def test_role_and_database_connection_limits(gate: Door) -> None:
    admin(gate, "ALTER ROLE alice CONNECTION LIMIT 1")
    with connect(gate):
        assert 'FATAL:  too many connections for role "alice"' in refused(gate)
    admin(gate, "ALTER ROLE alice CONNECTION LIMIT -1", "ALTER DATABASE app CONNECTION LIMIT 1")
    gate.settled()
    with connect(gate):
        assert 'FATAL:  too many connections for database "app"' in refused(gate)


def test_databases_that_are_not_for_this_client(gate: Door) -> None:
    assert 'FATAL:  database "nowhere" does not exist' in refused(gate, dbname="nowhere")
    assert 'FATAL:  database "template0" is not currently accepting connections' in refused(gate, dbname="template0")
    assert 'FATAL:  database "alice" does not exist' in refused(gate, dbname="")
    admin(gate, "CREATE ROLE staff", f"CREATE ROLE bob LOGIN PASSWORD '{ScramVerifier.build(PASSWORD)}'")
    admin(gate, "REVOKE CONNECT ON DATABASE app FROM PUBLIC", "GRANT CONNECT ON DATABASE app TO staff")
    message = refused(gate, user="bob")
    assert 'FATAL:  permission denied for database "app"' in message
    assert "DETAIL:  User does not have CONNECT privilege." in message
    admin(gate, "GRANT staff TO bob")
    connect(gate, user="bob").close()
    admin(gate, "REVOKE CONNECT ON DATABASE app FROM staff")


def test_memberships_are_followed(gate: Door) -> None:
    admin(gate, "CREATE ROLE staff", "CREATE ROLE bob", "GRANT staff TO bob", "GRANT bob TO alice")
    role = gate.thread.run(gate.front_door.roles.role("alice"))
    assert role is not None
    assert role.member_of == {"alice", "bob", "staff"}


def test_replication_needs_the_attribute(gate: Door) -> None:
    message = refused(gate, replication="database")
    assert "FATAL:  permission denied to start WAL sender" in message
    assert "Only roles with the REPLICATION attribute may start a WAL sender process." in message


def test_names_of_any_kind(gate: Door) -> None:
    for name in ('o"brien', "Ünïcode rôle", "x" * 63, "select"):
        quoted = '"' + name.replace('"', '""') + '"'
        admin(gate, f"CREATE ROLE {quoted} LOGIN PASSWORD '{ScramVerifier.build(PASSWORD)}'")
        with connect(gate, user=name + ("beyond" if len(name) == 63 else "")) as connection:
            assert connection.execute("SELECT current_user").fetchone() == (name,)
        admin(gate, f"DROP ROLE {quoted}")


def test_many_clients_at_once(gate: Door) -> None:
    """All of them log in; the engine is asked for alice's row a handful of times, not once a client."""
    failures: list[BaseException] = []

    def visit() -> None:
        try:
            client = WireClient("127.0.0.1", gate.port, 20.0)
            try:
                client.send(startup({"user": "alice", "database": "app"}))
                assert list(client.authenticate(PASSWORD))[-1].kind == "Z"
            finally:
                client.socket.close()
        except BaseException as error:
            failures.append(error)

    for _ in range(4):
        threads = [threading.Thread(target=visit) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert gate.settled() == (0, 0)
