from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from server.cli import EXIT_NO_SERVER, EXIT_NOT_READY, EXIT_USAGE, main
from server.config import SETTINGS
from tests.support.processes import free_port


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for setting in SETTINGS:
        monkeypatch.delenv(setting.env, raising=False)
        if setting.short_env:
            monkeypatch.delenv(setting.short_env, raising=False)
    monkeypatch.delenv("RUSTYDB_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nothing"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def readiness() -> Iterator[tuple[int, dict[str, int]]]:
    """An HTTP port that answers every request with the status in the dict, and the last path asked for."""
    answer = {"status": 200}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer["status"])
            self.end_headers()
            self.wfile.write(f"status of {self.path}\n".encode())

        def log_message(self, *arguments: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port, answer
        server.shutdown()
        thread.join()


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, arguments)
    return result.exit_code, result.stdout, result.stderr


def test_check_config_accepts_the_defaults() -> None:
    assert run("check-config") == (0, "configuration is valid (no file, defaults)\n", "")


def test_check_config_shows_every_setting_and_where_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSTYDB_PASSWORD", "hunter2hunter2")
    code, output, _ = run("check-config", "--all", "--port", "5555")
    assert code == 0
    rows = {line.split()[0]: line for line in output.splitlines() if "." in line.split()[0]}
    assert {setting.name for setting in SETTINGS} <= set(rows)
    assert rows["server.port"].split() == ["server.port", "5555", "command", "line"]
    assert rows["auth.password"].split() == ["auth.password", "********", "$RUSTYDB_PASSWORD"]
    assert "hunter2" not in output


def test_a_wrong_setting_ends_the_command_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "rustydb.toml").write_text("[pool]\nmax_backends = 0\n")
    code, output, errors = run("check-config", "--set", "tls.mod=allow")
    assert (code, output) == (EXIT_USAGE, "")
    assert "error: tls.mod (command line): unknown setting; did you mean tls.mode?" in errors


@pytest.mark.parametrize("command", ["serve", "check-config", "status", "psql"])
def test_every_command_refuses_a_wrong_configuration(command: str) -> None:
    code, _, errors = run(command, "--set", "server.port=99999")
    assert code == EXIT_USAGE
    assert "server.port = '99999' (command line): a whole number from 0 to 65535 is expected" in errors


def test_an_assignment_needs_a_value() -> None:
    code, _, errors = run("check-config", "--set", "server.port")
    assert code == EXIT_USAGE
    assert "NAME=VALUE is expected" in errors


def test_status_says_whether_the_server_is_ready(readiness: tuple[int, dict[str, int]]) -> None:
    port, answer = readiness
    arguments = ("status", "--set", "server.http_host=127.0.0.1", "--http-port", str(port))
    assert run(*arguments) == (0, "status of /readyz\n", "")
    answer["status"] = 503
    assert run(*arguments) == (EXIT_NOT_READY, "status of /readyz\n", "")


def test_status_says_that_no_server_answers() -> None:
    code, _, errors = run("status", "--set", "server.http_host=127.0.0.1", "--http-port", str(free_port()))
    assert code == EXIT_NO_SERVER
    assert "no server answers at http://127.0.0.1:" in errors


def test_status_needs_a_known_http_port() -> None:
    assert run("status", "--http-port", "0")[0] == EXIT_USAGE


def test_psql_is_started_as_the_administrator_with_the_arguments_given(tmp_path: Path) -> None:
    program = tmp_path / "psql"
    program.write_text('#!/bin/sh\necho "$PGHOST $PGPORT $PGUSER $PGDATABASE $PGPASSWORD" "$@"\n')
    program.chmod(0o755)
    command = [sys.executable, "-m", "server", "psql", "--host", "*,::1", "--port", "6543"]
    command += ["--set", f"engine.bin_dir={tmp_path}", "--set", "auth.password=pw", "-Atc", "SELECT 1"]
    root = Path(__file__).resolve().parents[3]
    result = subprocess.run(
        command, cwd=root, capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert result.stdout == "localhost 6543 postgres postgres pw -Atc SELECT 1\n"


def test_version_names_the_versions_it_runs_on() -> None:
    code, output, _ = run("version")
    assert code == 0
    assert [line.split()[0] for line in output.splitlines()] == ["RustyDB", "Python", "PostgreSQL"]
