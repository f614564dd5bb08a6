"""server.hba: pg_hba.conf's syntax and matching, by table."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.hba import (
    ClientCert,
    HbaError,
    HbaRequest,
    IpInterface,
    Method,
    default_rules,
    load_hba,
    parse_hba,
)


def own_interfaces() -> Sequence[IpInterface]:
    return [ipaddress.ip_interface("10.1.2.3/16"), ipaddress.ip_interface("fd00::5/64")]


def request(address: str | None = "192.168.1.7", **changes: Any) -> HbaRequest:
    groups = changes.pop("groups", ("staff", "alice"))
    fields = {"database": "app", "role": "alice", "is_member": set(groups).__contains__, "interfaces": own_interfaces}
    return HbaRequest(address=ipaddress.ip_address(address) if address else None, **(fields | changes))


LOCAL: dict[str, Any] = {"address": None}
TLS: dict[str, Any] = {"is_tls": True}
PHYSICAL: dict[str, Any] = {"is_physical_replication": True, "database": ""}

MATCHES: list[tuple[str, dict[str, Any], bool]] = [
    ("local all all trust", LOCAL, True),
    ("local all all trust", {}, False),
    ("host all all all trust", {}, True),
    ("host all all all trust", TLS, True),
    ("host all all all trust", LOCAL, False),
    ("hostssl all all all trust", {}, False),
    ("hostssl all all all trust", TLS, True),
    ("hostnossl all all all trust", {}, True),
    ("hostnossl all all all trust", TLS, False),
    ("hostgssenc all all all trust", {}, False),
    ("hostnogssenc all all all trust", {}, True),
    ("host all all 192.168.1.0/24 trust", {}, True),
    ("host all all 192.168.2.0/24 trust", {}, False),
    ("host all all 192.168.1.7/32 trust", {}, True),
    ("host all all 192.168.1.7 255.255.255.255 trust", {}, True),
    ("host all all 192.168.1.99 255.255.255.0 trust", {}, True),
    ("host all all 0.0.0.0/0 trust", {"address": "::1"}, False),
    ("host all all ::/0 trust", {"address": "::1"}, True),
    ("host all all ::/0 trust", {}, False),
    ("host all all fd00::/8 trust", {"address": "fd12::1"}, True),
    ("host all all fd00:: ff00:: trust", {"address": "fd12::1"}, True),
    ("host all all samehost trust", {"address": "10.1.2.3"}, True),
    ("host all all samehost trust", {"address": "10.1.2.4"}, False),
    ("host all all samenet trust", {"address": "10.1.99.4"}, True),
    ("host all all samenet trust", {"address": "10.2.0.1"}, False),
    ("host all all samenet trust", {"address": "fd00::77"}, True),
    ("host app all all trust", {}, True),
    ("host other,app all all trust", {}, True),
    ("host other, app all all trust", {}, True),
    ("host other all all trust", {}, False),
    ("host APP all all trust", {}, False),
    ("host sameuser all all trust", {"database": "alice"}, True),
    ("host sameuser all all trust", {}, False),
    ('host "sameuser" all all trust', {"database": "alice"}, False),
    ('host "all" all all trust', {}, False),
    ('host "all" all all trust', {"database": "all"}, True),
    ("host samerole all all trust", {"database": "staff"}, True),
    ("host samegroup all all trust", {"database": "staff"}, True),
    ("host samerole all all trust", {"database": "other"}, False),
    ("host replication all all trust", PHYSICAL, True),
    ("host all all all trust", PHYSICAL, False),
    ("host replication all all trust", {"database": "replication"}, False),
    ('host "replication" all all trust', {"database": "replication"}, True),
    ("host all alice all trust", {}, True),
    ("host all bob,alice all trust", {}, True),
    ("host all bob all trust", {}, False),
    ("host all +staff all trust", {}, True),
    ("host all +alice all trust", {}, True),
    ("host all +admins all trust", {}, False),
    ("host all +staff all trust", {"groups": ()}, False),
    ('host all "+staff" all trust', {}, False),
    ('host all "+staff" all trust', {"role": "+staff"}, True),
    ("host all /^al.*e$ all trust", {}, True),
    ("host all /^bob all trust", {}, False),
    ("host /^ap{2}$ all all trust", {}, True),
    ('host all "/^al" all trust', {}, True),
    ("host all all all trust # a comment", {}, True),
    ('host "my ""db""" all all trust', {"database": 'my "db"'}, True),
    ('host all "al"ice all trust', {}, True),
]


@pytest.mark.parametrize(("line", "changes", "expected"), MATCHES)
def test_a_rule_matches_as_in_postgresql(line: str, changes: dict[str, Any], expected: bool) -> None:
    rules = parse_hba(line)
    assert (rules.match(request(**changes)) is not None) == expected


ERRORS = [
    ("hots all all all trust", 'invalid connection type "hots"'),
    ("host", "the line ends before the database"),
    ("host all", "the line ends before the role"),
    ("host all all", "the line ends before the address"),
    ("local all all", "the line ends before the authentication method"),
    ("host all all trust", 'invalid address "trust"'),
    ("host all all example.org trust", "host names are not looked up"),
    ("host all all 10.0.0.1 trust", 'invalid mask "trust"'),
    ("host all all 10.0.0.1", "an address without a mask"),
    ("host all all 10.0.0.0/33 trust", 'invalid address "10.0.0.0/33"'),
    ("host all all 10.0.0.0 255.0.255.0 trust", "its bits are not in one piece"),
    ("host all all all,all trust", "only one address is allowed"),
    ("host all all all md5", 'authentication method "md5" is not supported'),
    ("host all all all scram", 'authentication method "scram" is not supported'),
    ("host all all all peer", "peer authentication is only for local rules"),
    ("host all all all cert", "cert authentication is only for hostssl rules"),
    ("local all all cert", "cert authentication is only for hostssl rules"),
    ("host all all all scram-sha-256 clientcert=verify-ca", "clientcert is only for hostssl rules"),
    ("hostssl all all all scram-sha-256 clientcert=maybe", "invalid value for clientcert"),
    ("hostssl all all all cert clientcert=verify-ca", "invalid value for clientcert"),
    ("local all all peer map=users", 'option "map" is not supported'),
    ("local all all trust nonsense", "an option has the form name=value"),
    ('host all "alice all trust', "a quoted word has no end"),
    ("host all /( all trust", "invalid regular expression"),
    ("include", "include is followed by one path"),
    ("include nowhere.conf", "there is no file nowhere.conf"),
    ("include_dir nowhere", "could not list nowhere"),
    ("host @nowhere all all trust", "could not read nowhere"),
]


@pytest.mark.parametrize(("line", "message"), ERRORS)
def test_an_error_names_file_line_and_reason(line: str, message: str) -> None:
    with pytest.raises(HbaError) as caught:
        parse_hba(f"# first\n{line}\n", "my_hba.conf")
    (problem,) = caught.value.problems
    assert problem.startswith("my_hba.conf:2: ")
    assert message in problem


def test_every_wrong_line_is_reported_at_once() -> None:
    with pytest.raises(HbaError) as caught:
        parse_hba("local all all trust\nfoo\nhost all all all trust\nbar\n", "f")
    assert [problem.partition(" ")[0] for problem in caught.value.problems] == ["f:2:", "f:4:"]


def test_no_rule_at_all_is_an_error() -> None:
    with pytest.raises(HbaError, match="nobody could connect"):
        parse_hba("# nothing\n")


def test_the_first_matching_rule_decides() -> None:
    rules = parse_hba(
        """
        hostssl all          all    all             cert
        host    all          bob    all             reject
        host    all          all    192.168.0.0/16  scram-sha-256
        host    all          all    all             trust
        """
    )
    assert [rule.method for rule in rules.rules] == [Method.CERT, Method.REJECT, Method.SCRAM, Method.TRUST]
    for changes, method in [
        ({"is_tls": True}, Method.CERT),
        ({"role": "bob"}, Method.REJECT),
        ({}, Method.SCRAM),
        ({"address": "8.8.8.8"}, Method.TRUST),
    ]:
        rule = rules.match(request(**changes))
        assert rule is not None
        assert rule.method is method


def test_client_certificates() -> None:
    rules = parse_hba("hostssl all all all cert\nhostssl all all all trust clientcert=verify-ca\nlocal all all trust")
    assert [rule.client_cert for rule in rules.rules] == [
        ClientCert.VALID_FOR_ROLE,
        ClientCert.VALID,
        ClientCert.NOT_ASKED,
    ]


def test_lines_are_joined_by_a_backslash_and_counted_from_their_first() -> None:
    rules = parse_hba("\nhost all \\\n  all all \\\n trust\nlocal all all peer\n", "f")
    assert [rule.origin for rule in rules.rules] == ["f:2", "f:5"]


def test_files_include_others_relative_to_themselves(tmp_path: Path) -> None:
    (tmp_path / "sub" / "more").mkdir(parents=True)
    (tmp_path / "pg_hba.conf").write_text(
        "include sub/a.conf\ninclude_if_exists missing.conf\ninclude_dir sub/more\nhost @dbs.txt all all reject\n"
    )
    (tmp_path / "sub" / "a.conf").write_text("include b.conf\n")
    (tmp_path / "sub" / "b.conf").write_text("local all all peer\n")
    (tmp_path / "sub" / "more" / "2.conf").write_text("host two all all trust\n")
    (tmp_path / "sub" / "more" / "1.conf").write_text("host one all all trust\n")
    (tmp_path / "sub" / "more" / "ignored.txt").write_text("nonsense\n")
    (tmp_path / "dbs.txt").write_text("three, four\n# comment\nfive @more.txt\n")
    (tmp_path / "more.txt").write_text("six")
    rules = load_hba(tmp_path / "pg_hba.conf").rules
    assert [rule.databases[0].text for rule in rules] == ["all", "one", "two", "three"]
    assert [token.text for token in rules[3].databases] == ["three", "four", "five", "six"]


def test_files_that_include_each_other_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "pg_hba.conf"
    path.write_text("include pg_hba.conf\n")
    with pytest.raises(HbaError, match="more than 10 deep"):
        load_hba(path)
    path.write_text("host @x.txt all all trust\n")
    (tmp_path / "x.txt").write_text("@x.txt")
    with pytest.raises(HbaError, match="includes itself"):
        load_hba(path)


def test_by_default_everybody_comes_in_by_password() -> None:
    rules = default_rules()
    for changes in ({}, LOCAL, TLS, PHYSICAL, PHYSICAL | LOCAL, {"address": "::1"}):
        rule = rules.match(request(**changes))
        assert rule is not None
        assert rule.method is Method.SCRAM


@given(st.text(alphabet=st.sampled_from('host local all trust/+@"\\#,\n 0123456789.:'), max_size=80))
def test_any_text_parses_or_raises_hba_error(text: str) -> None:
    try:
        parse_hba(text)
    except HbaError as error:
        if not error.problems:
            raise AssertionError("an error without a reason") from error
