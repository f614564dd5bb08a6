"""Connection strings as libpq reads them: URI or keywords, environment, service file, passfile.

Pure: texts and mappings in, values out. Whoever calls reads the files (`engine.remote`). What is said first wins, in
libpq's order: connection string, service, environment, default. Keywords that only libpq's own transport needs are
accepted and left alone; an unknown one is an error that names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

from engine.errors import ConninfoError

DEFAULT_PORT = 5432
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
SESSION_ATTRIBUTES = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")

_ENVIRONMENT = {
    "PGHOST": "host",
    "PGHOSTADDR": "hostaddr",
    "PGPORT": "port",
    "PGDATABASE": "dbname",
    "PGUSER": "user",
    "PGPASSWORD": "password",
    "PGPASSFILE": "passfile",
    "PGSERVICE": "service",
    "PGSSLMODE": "sslmode",
    "PGSSLROOTCERT": "sslrootcert",
    "PGSSLCERT": "sslcert",
    "PGSSLKEY": "sslkey",
    "PGCONNECT_TIMEOUT": "connect_timeout",
    "PGTARGETSESSIONATTRS": "target_session_attrs",
    "PGAPPNAME": "application_name",
}
_KNOWN = frozenset(_ENVIRONMENT.values()) | {"sslpassword"}
_IGNORED = frozenset(
    {
        "channel_binding",
        "client_encoding",
        "fallback_application_name",
        "gssdelegation",
        "gssencmode",
        "gsslib",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "krbsrvname",
        "load_balance_hosts",
        "max_protocol_version",
        "min_protocol_version",
        "options",
        "requirepeer",
        "require_auth",
        "ssl_max_protocol_version",
        "ssl_min_protocol_version",
        "sslcompression",
        "sslcrl",
        "sslcrldir",
        "sslnegotiation",
        "sslsni",
        "tcp_user_timeout",
    }
)


@dataclass(frozen=True, slots=True)
class HostPort:
    """One place to try. `address` is what to dial where it is not the name that a certificate must carry."""

    host: str
    port: int = DEFAULT_PORT
    address: str | None = None

    @property
    def is_unix(self) -> bool:
        return self.host.startswith("/")


@dataclass(frozen=True, slots=True)
class ConnInfo:
    """Everything needed to reach an engine."""

    hosts: tuple[HostPort, ...]
    user: str
    database: str
    password: str | None = field(default=None, repr=False)
    passfile: str | None = None
    sslmode: str = "prefer"
    sslrootcert: str | None = None
    sslcert: str | None = None
    sslkey: str | None = None
    sslpassword: str | None = field(default=None, repr=False)
    target_session_attrs: str = "any"
    connect_timeout_seconds: float = 10.0


def parse_dsn(dsn: str) -> dict[str, str]:
    """Keywords and values of a connection string, in either of libpq's two forms."""
    text = dsn.strip()
    values = _parse_uri(text) if text.startswith(("postgresql://", "postgres://")) else _parse_keywords(text)
    for name in values:
        if name not in _KNOWN and name not in _IGNORED:
            raise ConninfoError(f'the connection string has an unknown keyword "{name}"')
    return values


def parse_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The PG* variables that say something about a connection."""
    return {keyword: environ[name] for name, keyword in _ENVIRONMENT.items() if environ.get(name)}


def parse_service(text: str, service: str) -> dict[str, str] | None:
    """The section of one service in a service file; None where it is not there."""
    found: dict[str, str] | None = None
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            if found is not None:
                break
            found = {} if line == f"[{service}]" else None
        elif found is not None:
            name, separator, value = line.partition("=")
            if not separator:
                raise ConninfoError(f"line {number} of the service file is not of the form keyword=value")
            found[name.strip()] = value.strip()
    return found


def find_password(passfile: str, host: str, port: int, database: str, user: str) -> str | None:
    """The password that a passfile has for a connection. A Unix socket is looked up as `localhost`."""
    wanted = ("localhost" if host.startswith("/") else host, str(port), database, user)
    for line in passfile.splitlines():
        if line.startswith("#"):
            continue
        fields = list(_passfile_fields(line))
        if len(fields) != 5:
            continue
        if all(pattern in ("*", value) for pattern, value in zip(fields, wanted, strict=False)):
            return fields[4]
    return None


def resolve(*layers: Mapping[str, str], default_user: str) -> ConnInfo:
    """Put layers of keywords together, the first that says something winning."""
    merged: dict[str, str] = {}
    for layer in layers:
        for name, value in layer.items():
            if value != "":
                merged.setdefault(name, value)
    user = merged.get("user", default_user)
    password = merged.get("password")
    return ConnInfo(
        hosts=_hosts(merged),
        user=user,
        database=merged.get("dbname", user),
        password=password,
        passfile=merged.get("passfile"),
        sslmode=_choice("sslmode", merged.get("sslmode", "prefer"), SSL_MODES),
        sslrootcert=merged.get("sslrootcert"),
        sslcert=merged.get("sslcert"),
        sslkey=merged.get("sslkey"),
        sslpassword=merged.get("sslpassword"),
        target_session_attrs=_choice(
            "target_session_attrs", merged.get("target_session_attrs", "any"), SESSION_ATTRIBUTES
        ),
        connect_timeout_seconds=_timeout(merged.get("connect_timeout", "10")),
    )


def _parse_uri(text: str) -> dict[str, str]:
    # By hand: urlsplit knows no lists of hosts, and gives "#" a meaning that it does not have here.
    before_query, _, query = text.partition("://")[2].partition("?")
    authority, _, path = before_query.partition("/")
    values: dict[str, str] = {}
    userinfo, at, places = authority.rpartition("@")
    if at:
        user, colon, password = userinfo.partition(":")
        values["user"] = _unquote(user)
        if colon:
            values["password"] = _unquote(password)
    hosts, ports = [], []
    for place in places.split(","):
        host, port = _split_place(place)
        hosts.append(_unquote(host))
        ports.append(port)
    if any(hosts):
        values["host"] = ",".join(hosts)
    if any(ports):
        values["port"] = ",".join(ports)
    database = _unquote(path)
    if database:
        values["dbname"] = database
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict")
    except ValueError as error:
        raise ConninfoError(
            "the connection URI has a malformed query", detail="It is keyword=value, joined by &."
        ) from error
    for name, value in pairs:
        if name == "ssl" and value == "true":
            values["sslmode"] = "require"  # JDBC's way, which libpq takes as well
        else:
            values[name] = value
    return values


def _split_place(place: str) -> tuple[str, str]:
    if place.startswith("["):
        host, bracket, rest = place[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ConninfoError("the connection URI has an IPv6 address that is not closed by ]")
        return host, rest.removeprefix(":")
    host, _, port = place.partition(":")
    return host, port


def _parse_keywords(text: str) -> dict[str, str]:
    values: dict[str, str] = {}
    position, end = 0, len(text)
    while position < end:
        if text[position].isspace():
            position += 1
            continue
        equals = text.find("=", position)
        if equals < 0:
            raise ConninfoError(
                f'"=" is missing after "{text[position:].split()[0]}" in the connection string',
                hint="It is keyword = value, or a URI: postgresql://user@host/database.",
            )
        name = text[position:equals].strip()
        if not name or any(c.isspace() for c in name):
            raise ConninfoError(f'"=" is missing after "{(name.split() or [""])[0]}" in the connection string')
        position = equals + 1
        while position < end and text[position].isspace():
            position += 1
        values[name], position = _keyword_value(text, position)
    return values


def _keyword_value(text: str, position: int) -> tuple[str, int]:
    """A value, quoted or not, and where it ends. A backslash takes the next character as it is."""
    is_quoted = position < len(text) and text[position] == "'"
    position += is_quoted
    result: list[str] = []
    while position < len(text):
        character = text[position]
        if character == "\\" and position + 1 < len(text):
            result.append(text[position + 1])
            position += 2
            continue
        if character == "'" and is_quoted:
            return "".join(result), position + 1
        if character.isspace() and not is_quoted:
            break
        result.append(character)
        position += 1
    if is_quoted:
        raise ConninfoError("a quoted value in the connection string is not closed")
    return "".join(result), position


def _passfile_fields(line: str) -> Iterator[str]:
    """Five fields between colons; a backslash takes the next character as it is."""
    current: list[str] = []
    escaped = False
    count = 1
    for character in line:
        if escaped:
            current.append(character)
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == ":" and count < 5:
            yield "".join(current)
            current = []
            count += 1
        else:
            current.append(character)
    yield "".join(current)


def _hosts(merged: Mapping[str, str]) -> tuple[HostPort, ...]:
    names = merged.get("host", "").split(",")
    addresses = merged.get("hostaddr", "").split(",")
    count = max(len(names), len(addresses))
    if len(addresses) == 1 and not addresses[0]:
        addresses = [""] * count
    if len(names) == 1 and not names[0]:
        names = [""] * count
    if len(names) != len(addresses):
        raise ConninfoError(f"the connection string has {len(names)} hosts and {len(addresses)} values of hostaddr")
    ports = [_port(text) for text in merged.get("port", "").split(",")]
    if len(ports) == 1:
        ports *= count
    if len(ports) != count:
        raise ConninfoError(f"the connection string has {count} hosts and {len(ports)} ports")
    return tuple(
        HostPort(host=name or address or "localhost", port=port, address=address or None)
        for name, address, port in zip(names, addresses, ports, strict=True)
    )


def _port(text: str) -> int:
    if not text:
        return DEFAULT_PORT
    if not (text.isascii() and text.isdecimal()) or not 0 < int(text) < 65536:
        raise ConninfoError(f'the connection string has the port "{text}"', hint="A port is a number from 1 to 65535.")
    return int(text)


def _timeout(text: str) -> float:
    try:
        seconds = float(int(text))
    except ValueError:
        raise ConninfoError(f'connect_timeout is "{text}"', hint="It is a number of seconds.") from None
    return seconds if seconds > 0 else 3600.0  # libpq: zero and less wait for ever


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ConninfoError(f'{name} is "{value}"', hint=f"It is one of {', '.join(allowed)}.")
    return value


def _unquote(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError as error:
        raise ConninfoError("the connection URI has a percent-encoding that is not UTF-8") from error
