"""postgresql.conf, pg_hba.conf and pg_ident.conf as they are generated."""

from __future__ import annotations

import pytest

from engine.errors import EngineConfigError
from engine.machine import Machine
from engine.postgres_conf import (
    FORBIDDEN_SETTINGS,
    GIB,
    MIB,
    Login,
    SocketPlace,
    command_line,
    merged_settings,
    operator_settings,
    pinned_settings,
    quote_list_element,
    quote_value,
    render_conf,
    render_hba,
    render_ident,
    tuned_settings,
)

SMALL = Machine(memory_bytes=512 * MIB, cores=1, shm_bytes=64 * MIB)
LARGE = Machine(memory_bytes=256 * GIB, cores=64, shm_bytes=128 * GIB)


def size_mib(text: str) -> int:
    assert text.endswith("MB")
    return int(text[:-2])


@pytest.mark.parametrize("machine", [SMALL, LARGE])
def test_settings_fit_into_the_machines_memory(machine: Machine) -> None:
    settings = tuned_settings(machine, 120)
    memory = machine.memory_bytes // MIB
    assert 32 <= size_mib(settings["shared_buffers"]) <= memory // 4
    assert 4 <= size_mib(settings["work_mem"]) <= 64
    assert size_mib(settings["effective_cache_size"]) <= memory
    assert int(settings["max_worker_processes"]) >= int(settings["max_parallel_workers"])


def test_one_core_runs_nothing_in_parallel() -> None:
    assert tuned_settings(SMALL, 120)["max_parallel_workers_per_gather"] == "0"


def test_a_small_dev_shm_is_not_used_for_parallel_queries() -> None:
    assert tuned_settings(SMALL, 120)["dynamic_shared_memory_type"] == "sysv"
    assert tuned_settings(LARGE, 120)["dynamic_shared_memory_type"] == "posix"


def test_prepared_transactions_are_as_many_as_connections() -> None:
    assert merged_settings(SMALL, 77, {})["max_prepared_transactions"] == "77"


def test_the_operator_wins_over_the_tuning() -> None:
    settings = merged_settings(SMALL, 120, {"Shared_Buffers": "48MB", "auto_explain.log_min_duration": "1s"})
    assert settings["shared_buffers"] == "48MB"
    assert settings["auto_explain.log_min_duration"] == "1s"


def test_libraries_of_the_operator_are_loaded_beside_pg_stat_statements() -> None:
    assert merged_settings(SMALL, 120, {})["shared_preload_libraries"] == "pg_stat_statements"
    merged = merged_settings(SMALL, 120, {"shared_preload_libraries": "auto_explain, pg_stat_statements"})
    assert merged["shared_preload_libraries"] == "auto_explain, pg_stat_statements"
    merged = merged_settings(SMALL, 120, {"shared_preload_libraries": "auto_explain"})
    assert merged["shared_preload_libraries"] == "pg_stat_statements, auto_explain"


@pytest.mark.parametrize("name", sorted(FORBIDDEN_SETTINGS))
def test_what_rustydb_sets_itself_is_refused(name: str) -> None:
    with pytest.raises(EngineConfigError, match=name):
        operator_settings({name.upper(): "x"})


@pytest.mark.parametrize("name", ["", "work mem", "x = 1\ny", "wörk_mem", "a;b"])
def test_a_name_that_is_no_setting_is_refused(name: str) -> None:
    with pytest.raises(EngineConfigError, match=r"engine\.settings"):
        operator_settings({name: "1"})


def test_a_value_cannot_start_a_second_line() -> None:
    with pytest.raises(EngineConfigError, match="line break"):
        operator_settings({"work_mem": "1MB\nfsync = off"})


@pytest.mark.parametrize(
    ("value", "quoted"), [("64MB", "'64MB'"), ("it's", "'it''s'"), ("a\\b", "'a\\\\b'"), ("", "''")]
)
def test_values_are_quoted_as_postgresql_reads_them(value: str, quoted: str) -> None:
    assert quote_value(value) == quoted
    assert f"work_mem = {quoted}\n" in render_conf({"work_mem": value})


def test_a_socket_directory_with_a_comma_is_one_directory() -> None:
    assert quote_list_element('/a, b/"c"') == '"/a, b/""c"""'


def test_pins_cannot_be_reached_by_tcp_and_keep_the_lexer() -> None:
    socket = SocketPlace("/data/socket", 5432, shared_with_group=False)
    pinned = pinned_settings(socket, max_connections=5, hba_file="/c/hba", ident_file="/c/ident")
    assert pinned["listen_addresses"] == ""
    assert pinned["unix_socket_permissions"] == "0700"
    assert pinned["standard_conforming_strings"] == "on"
    assert pinned["backslash_quote"] == "safe_encoding"
    assert set(pinned) <= FORBIDDEN_SETTINGS
    assert command_line(pinned)[:2] == ["-c", "listen_addresses="]


def test_a_second_user_reaches_the_socket_by_group() -> None:
    socket = SocketPlace("/data/socket", 5432, shared_with_group=True)
    pinned = pinned_settings(socket, max_connections=5, hba_file="/c/hba", ident_file="/c/ident")
    assert pinned["unix_socket_permissions"] == "0770"


def test_only_the_private_socket_is_let_in() -> None:
    rules = [line for line in render_hba(Login.PEER).splitlines() if not line.startswith("#")]
    assert rules == ["local all all peer map=rustydb", "local replication all peer map=rustydb"]
    rules = [line for line in render_hba(Login.SCRAM).splitlines() if not line.startswith("#")]
    assert rules == ["local all all scram-sha-256", "local replication all scram-sha-256"]


def test_one_operating_system_user_is_mapped_to_every_role() -> None:
    rules = [line for line in render_ident("svc rusty").splitlines() if not line.startswith("#")]
    assert rules == ['rustydb "svc rusty" all']
