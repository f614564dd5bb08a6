"""Connection strings, service files and passfiles, against what libpq's manual says of them."""

from __future__ import annotations

import pytest

from engine.conninfo import (
    HostPort,
    find_password,
    parse_dsn,
    parse_environment,
    parse_service,
    resolve,
)
from engine.errors import ConninfoError


@pytest.mark.parametrize(
    ("dsn", "values"),
    [
        ("", {}),
        ("postgresql://", {}),
        ("postgresql://localhost", {"host": "localhost"}),
        ("postgresql://localhost:5433", {"host": "localhost", "port": "5433"}),
        ("postgresql://localhost/mydb", {"host": "localhost", "dbname": "mydb"}),
        ("postgres://user@localhost", {"user": "user", "host": "localhost"}),
        ("postgresql://user:secret@localhost", {"user": "user", "password": "secret", "host": "localhost"}),
        (
            "postgresql://other@localhost/otherdb?connect_timeout=10&application_name=myapp",
            {
                "user": "other",
                "host": "localhost",
                "dbname": "otherdb",
                "connect_timeout": "10",
                "application_name": "myapp",
            },
        ),
        (
            "postgresql://host1:123,host2:456/somedb?target_session_attrs=any",
            {"host": "host1,host2", "port": "123,456", "dbname": "somedb", "target_session_attrs": "any"},
        ),
        ("postgresql:///dbname?host=/var/lib/postgresql", {"dbname": "dbname", "host": "/var/lib/postgresql"}),
        ("postgresql://%2Fvar%2Flib%2Fpostgresql/dbname", {"host": "/var/lib/postgresql", "dbname": "dbname"}),
        (
            "postgresql://[2001:db8::1234]:5433/database",
            {"host": "2001:db8::1234", "port": "5433", "dbname": "database"},
        ),
        ("postgresql://u:p%40ss%2F@h/d", {"user": "u", "password": "p@ss/", "host": "h", "dbname": "d"}),
        ("postgresql://u:p#x@h/d", {"user": "u", "password": "p#x", "host": "h", "dbname": "d"}),
        ("postgresql://h/d?ssl=true", {"host": "h", "dbname": "d", "sslmode": "require"}),
        (
            "host=localhost port=5432 dbname=mydb connect_timeout=10",
            {"host": "localhost", "port": "5432", "dbname": "mydb", "connect_timeout": "10"},
        ),
        ("dbname = 'my db' user='it\\'s'", {"dbname": "my db", "user": "it's"}),
        ("password='' user=a\\ b", {"password": "", "user": "a b"}),
        ("  host=h\n\tuser=u ", {"host": "h", "user": "u"}),
    ],
)
def test_both_forms_are_read_as_libpq_reads_them(dsn: str, values: dict[str, str]) -> None:
    assert parse_dsn(dsn) == values


@pytest.mark.parametrize(
    ("dsn", "message"),
    [
        ("localhost", 'after "localhost"'),
        ("host=h port", 'after "port"'),
        ("host user=u", 'after "host"'),
        ("password='open", "not closed"),
        ("hots=h", 'unknown keyword "hots"'),
        ("postgresql://h/d?frobnicate=1", "frobnicate"),
        ("postgresql://[::1/d", "IPv6"),
        ("postgresql://h/d?x", "query"),
        ("postgresql://%ff@h/d", "UTF-8"),
    ],
)
def test_a_broken_string_says_what_is_wrong(dsn: str, message: str) -> None:
    with pytest.raises(ConninfoError, match=message):
        parse_dsn(dsn)


def test_what_is_said_first_wins() -> None:
    info = resolve({"host": "a"}, {"host": "b", "user": "b"}, {"user": "c", "dbname": "c"}, default_user="d")
    assert (info.hosts, info.user, info.database) == ((HostPort("a"),), "b", "c")


def test_the_database_is_the_users_where_nothing_says_otherwise() -> None:
    info = resolve({}, default_user="me")
    assert (info.hosts, info.user, info.database, info.sslmode) == ((HostPort("localhost"),), "me", "me", "prefer")


def test_one_port_serves_several_hosts() -> None:
    assert resolve({"host": "a,b", "port": "6000"}, default_user="u").hosts == (
        HostPort("a", 6000),
        HostPort("b", 6000),
    )


def test_hostaddr_is_dialled_and_host_is_verified() -> None:
    assert resolve({"host": "a", "hostaddr": "::1"}, default_user="u").hosts == (HostPort("a", 5432, "::1"),)
    assert resolve({"hostaddr": "::1"}, default_user="u").hosts == (HostPort("::1", 5432, "::1"),)


@pytest.mark.parametrize(
    "values",
    [
        {"host": "a,b", "port": "1,2,3"},
        {"port": "0"},
        {"port": "x"},
        {"port": "65536"},
        {"sslmode": "maybe"},
        {"target_session_attrs": "master"},
        {"connect_timeout": "soon"},
        {"host": "a,b", "hostaddr": "::1"},
    ],
)
def test_values_that_cannot_be_are_refused(values: dict[str, str]) -> None:
    with pytest.raises(ConninfoError):
        resolve(values, default_user="u")


def test_the_environment_has_libpqs_names() -> None:
    environ = {"PGHOST": "h", "PGDATABASE": "d", "PGUSER": "", "PATH": "/bin"}
    assert parse_environment(environ) == {"host": "h", "dbname": "d"}


SERVICES = """
# comment
[one]
host=a
port=1

[two]
host = b
"""


@pytest.mark.parametrize(
    ("service", "values"), [("one", {"host": "a", "port": "1"}), ("two", {"host": "b"}), ("three", None)]
)
def test_a_service_is_one_section_of_its_file(service: str, values: dict[str, str] | None) -> None:
    assert parse_service(SERVICES, service) == values


def test_a_line_without_value_in_a_service_names_its_number() -> None:
    with pytest.raises(ConninfoError, match="line 2"):
        parse_service("[a]\nhost\n", "a")


PASSFILE = r"""# comment
db.example.com:5432:app:alice:first
db.example.com:*:*:alice:second:with colon
localhost:5432:*:bob:es\:cap\\ed
too:few:fields
*:*:*:*:last
"""


@pytest.mark.parametrize(
    ("host", "port", "database", "user", "password"),
    [
        ("db.example.com", 5432, "app", "alice", "first"),
        ("db.example.com", 5432, "other", "alice", "second:with colon"),
        ("/run/postgresql", 5432, "app", "bob", "es:cap\\ed"),
        ("elsewhere", 1, "x", "y", "last"),
    ],
)
def test_the_first_line_of_the_passfile_that_fits_wins(
    host: str, port: int, database: str, user: str, password: str
) -> None:
    assert find_password(PASSFILE, host, port, database, user) == password


def test_a_passfile_may_have_nothing_that_fits() -> None:
    assert find_password("a:1:b:c:d", "a", 1, "b", "other") is None


def test_secrets_do_not_show_in_a_repr() -> None:
    assert "hush" not in repr(resolve({"password": "hush", "sslpassword": "hush"}, default_user="u"))
