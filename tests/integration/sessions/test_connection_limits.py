"""CONNECTION LIMIT counts clients: what the server itself keeps open takes none of it."""

from __future__ import annotations

import pytest

from tests.support.rustydb_process import RustyServer
from tests.support.wire_client import WireClient, WireError

pytestmark = pytest.mark.integration


def test_a_database_with_room_for_one_serves_roles_one_after_the_other(rustydb: RustyServer) -> None:
    with WireClient.login(rustydb.target) as admin:
        admin.simple("CREATE ROLE limited LOGIN PASSWORD 'limited'")
        admin.simple("CREATE DATABASE narrow CONNECTION LIMIT 1")
        narrow = rustydb.target.with_database("narrow")
        try:
            for target in (narrow, narrow.with_role("limited", "limited"), narrow):
                with WireClient.login(target) as client:
                    assert client.value("SELECT 1") == "1"
            with WireClient.login(narrow), pytest.raises(WireError) as caught:
                WireClient.login(narrow.with_role("limited", "limited"))
            assert caught.value.sqlstate == "53300"
        finally:
            admin.simple("DROP DATABASE narrow WITH (FORCE)")
            admin.simple("DROP ROLE limited")


def test_a_role_with_room_for_one_goes_from_database_to_database(rustydb: RustyServer) -> None:
    with WireClient.login(rustydb.target) as admin:
        admin.simple("CREATE ROLE single LOGIN PASSWORD 'single' CONNECTION LIMIT 1")
        admin.simple("CREATE DATABASE elsewhere")
        target = rustydb.target.with_role("single", "single")
        try:
            for database in ("postgres", "elsewhere", "postgres"):
                with WireClient.login(target.with_database(database)) as client:
                    assert client.value("SELECT 1") == "1"
        finally:
            admin.simple("DROP DATABASE elsewhere WITH (FORCE)")
            admin.simple("DROP ROLE single")
