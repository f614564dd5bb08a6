"""Host-based rules: the syntax of pg_hba.conf, and which rule a client meets. Pure but for reading included files.

Understood: `local`, `host`, `hostssl`, `hostnossl` (`hostgssenc` never matches, `hostnogssenc` is `host`: we speak no
GSSAPI); databases `all`, `sameuser`, `samerole`, `replication`, names, `/regex`, `@file`; roles `all`, names, `+group`,
`/regex`, `@file`; addresses `all`, `samehost`, `samenet`, CIDR, address and mask; `include`, `include_if_exists`,
`include_dir`; methods `scram-sha-256`, `trust`, `reject`, `cert`, `peer`; option `clientcert`. Everything else is an
error that names file and line, never silently ignored. As in PostgreSQL the first rule that matches decides, quoting
takes a keyword's meaning away, and no rule means no.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from pathlib import Path
from typing import Final

MAX_INCLUDE_DEPTH: Final = 10  # PostgreSQL's CONF_FILE_MAX_DEPTH

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
IpInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


class Method(StrEnum):
    """How a client proves who it is."""

    SCRAM = "scram-sha-256"
    TRUST = "trust"
    REJECT = "reject"
    CERT = "cert"
    PEER = "peer"


class ClientCert(Enum):
    """What is asked of the client's certificate, whatever the method."""

    NOT_ASKED = "no"
    VALID = "verify-ca"
    VALID_FOR_ROLE = "verify-full"


class HbaError(Exception):
    """The rules cannot be used. `problems` has one `file:line: reason` each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Token:
    """One word of a rule."""

    text: str
    is_quoted: bool = False
    pattern: re.Pattern[str] | None = None  # of a word that begins with a slash

    def is_keyword(self, word: str) -> bool:
        return not self.is_quoted and self.text == word

    @property
    def group(self) -> str | None:
        """The role behind `+`, where this word is one."""
        return self.text[1:] if self.text.startswith("+") and not self.is_quoted else None

    def names(self, name: str) -> bool:
        """Does the word, as name or regular expression, mean `name`?"""
        return self.pattern.search(name) is not None if self.pattern else self.text == name


@dataclass(frozen=True, slots=True)
class HbaRequest:
    """A client as the rules see it."""

    database: str
    role: str
    is_member: Callable[[str], bool]  # of this role (itself included), directly or not; False for a role that is not
    address: IpAddress | None = None  # None: the Unix socket
    is_tls: bool = False
    is_physical_replication: bool = False
    interfaces: Callable[[], Sequence[IpInterface]] = tuple  # our own, for samehost and samenet


@dataclass(frozen=True, slots=True)
class HbaRule:
    """One line."""

    origin: str  # "file:line"
    kind: str
    databases: tuple[Token, ...]
    roles: tuple[Token, ...]
    address: IpNetwork | str | None  # a network, "all", "samehost" or "samenet"; None for `local`
    method: Method
    client_cert: ClientCert = ClientCert.NOT_ASKED

    def matches(self, request: HbaRequest) -> bool:
        return (
            self._matches_connection(request)
            and self._matches_address(request)
            and self._matches_database(request)
            and self._matches_role(request)
        )

    def _matches_connection(self, request: HbaRequest) -> bool:
        match self.kind:
            case "local":
                return request.address is None
            case "hostssl":
                return request.address is not None and request.is_tls
            case "hostnossl":
                return request.address is not None and not request.is_tls
            case "hostgssenc":
                return False
            case _:
                return request.address is not None

    def _matches_address(self, request: HbaRequest) -> bool:
        address = request.address
        if address is None or self.address == "all":
            return True
        if self.address == "samehost":
            return any(address == own.ip for own in request.interfaces())
        if self.address == "samenet":
            return any(address in own.network for own in request.interfaces())
        return not isinstance(self.address, str | None) and address in self.address

    def _matches_database(self, request: HbaRequest) -> bool:
        if request.is_physical_replication:
            return any(token.is_keyword("replication") for token in self.databases)
        return any(_is_database(token, request) for token in self.databases)

    def _matches_role(self, request: HbaRequest) -> bool:
        return any(
            request.is_member(group) if (group := token.group) else token.is_keyword("all") or token.names(request.role)
            for token in self.roles
        )


@dataclass(frozen=True, slots=True)
class HbaRules:
    """All lines, in order."""

    rules: tuple[HbaRule, ...]

    def match(self, request: HbaRequest) -> HbaRule | None:
        """The first rule for this client; None where there is none, which refuses it."""
        return next((rule for rule in self.rules if rule.matches(request)), None)


def default_rules() -> HbaRules:
    """Everybody, from everywhere, by password."""
    return parse_hba(
        "local all,replication all     scram-sha-256\n"  #
        "host  all,replication all all scram-sha-256\n",
        "default rules",
    )


def load_hba(path: Path) -> HbaRules:
    """Read a file and what it includes. Raises HbaError with every problem found."""
    return _Parser().run(lambda parser: parser.read_file(path, 0, f"{path}"))


def parse_hba(text: str, name: str = "pg_hba.conf") -> HbaRules:
    """Read rules from a text; relative includes are looked up in the working directory. Raises HbaError."""
    return _Parser().run(lambda parser: parser.read_text(text, name, Path(), 0))


def _is_database(token: Token, request: HbaRequest) -> bool:
    if token.is_keyword("all"):
        return True
    if token.is_keyword("sameuser"):
        return request.database == request.role
    if token.is_keyword("samerole") or token.is_keyword("samegroup"):
        return request.is_member(request.database)
    return not token.is_keyword("replication") and token.names(request.database)


class _Problem(Exception):
    """What is wrong with one line."""


class _Parser:
    """Collects rules and problems over all files."""

    def __init__(self) -> None:
        self._rules: list[HbaRule] = []
        self._problems: list[str] = []

    def run(self, read: Callable[[_Parser], None]) -> HbaRules:
        read(self)
        if not self._rules and not self._problems:
            self._problems.append("there is no rule: nobody could connect")
        if self._problems:
            raise HbaError(self._problems)
        return HbaRules(tuple(self._rules))

    def read_file(self, path: Path, depth: int, origin: str, *, may_be_missing: bool = False) -> None:
        if depth > MAX_INCLUDE_DEPTH:
            self._problems.append(f"{origin}: files include each other more than {MAX_INCLUDE_DEPTH} deep")
            return
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            if not may_be_missing:
                self._problems.append(f"{origin}: there is no file {path}")
        except (OSError, UnicodeDecodeError) as error:
            self._problems.append(f"{origin}: could not read {path}: {error}")
        else:
            self.read_text(text, str(path), path.parent, depth)

    def read_text(self, text: str, name: str, directory: Path, depth: int) -> None:
        for number, line in _logical_lines(text):
            origin = f"{name}:{number}"
            try:
                fields = _fields(line)
                if not fields:
                    continue
                if fields[0][0].text in ("include", "include_if_exists", "include_dir"):
                    self._include(fields, directory, depth, origin)
                else:
                    self._rules.append(_rule(fields, directory, origin))
            except _Problem as problem:
                self._problems.append(f"{origin}: {problem}")

    def _include(self, fields: list[list[Token]], directory: Path, depth: int, origin: str) -> None:
        verb = fields[0][0].text
        if len(fields) != 2 or len(fields[1]) != 1:
            raise _Problem(f"{verb} is followed by one path")
        path = directory / fields[1][0].text
        if verb != "include_dir":
            self.read_file(path, depth + 1, origin, may_be_missing=verb == "include_if_exists")
            return
        try:
            files = sorted(one for one in path.iterdir() if one.suffix == ".conf" and not one.name.startswith("."))
        except OSError as error:
            raise _Problem(f"could not list {path}: {error}") from error
        for one in files:
            self.read_file(one, depth + 1, origin)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their number; a backslash at the end joins the next one."""
    joined, first = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        first = first or number
        if line.endswith("\\"):
            joined += line[:-1]
            continue
        yield first, joined + line
        joined, first = "", 0
    if joined:
        yield first, joined


def _fields(line: str) -> list[list[Token]]:
    """Fields of one line: each a comma-separated list of words. PostgreSQL's next_token, over a whole line."""
    fields: list[list[Token]] = []
    at, continues = 0, False
    while True:
        while at < len(line) and line[at] in " \t\r\n,":
            at += 1
        if at >= len(line) or line[at] == "#":
            return fields
        token, at = _token(line, at)
        if continues:
            fields[-1].append(token)
        else:
            fields.append([token])
        continues = at < len(line) and line[at] == ","


def _token(line: str, at: int) -> tuple[Token, int]:
    """The word at `at`, and where it ends. Inside quotes a doubled quote is one."""
    text, in_quotes, is_quoted = "", False, False
    start = at
    while at < len(line):
        char = line[at]
        if char == '"':
            if in_quotes and line[at + 1 : at + 2] == '"':
                text += '"'
                at += 1
            else:
                in_quotes = not in_quotes
                is_quoted = is_quoted or at == start
        elif not in_quotes and char in " \t\r\n,#":
            break
        else:
            text += char
        at += 1
    if in_quotes:
        raise _Problem("a quoted word has no end")
    if not text.startswith("/"):
        return Token(text, is_quoted), at
    try:
        return Token(text, is_quoted, re.compile(text[1:])), at
    except re.error as error:
        raise _Problem(f'invalid regular expression "{text[1:]}": {error}') from error


_KINDS: Final = ("local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc")


def _rule(fields: list[list[Token]], directory: Path, origin: str) -> HbaRule:
    kind = _single(fields.pop(0), "connection type")
    if kind not in _KINDS:
        raise _Problem(f'invalid connection type "{kind}": one of {", ".join(_KINDS)} is expected')
    databases = _expand(_take(fields, "database"), directory, 0)
    roles = _expand(_take(fields, "role"), directory, 0)
    address = None if kind == "local" else _address(fields)
    method = _method(_single(_take(fields, "authentication method"), "authentication method"), kind)
    client_cert = _client_cert(fields, kind, method)
    return HbaRule(origin, kind, databases, roles, address, method, client_cert)


def _take(fields: list[list[Token]], what: str) -> list[Token]:
    if not fields:
        raise _Problem(f"the line ends before the {what}")
    return fields.pop(0)


def _single(tokens: list[Token], what: str) -> str:
    if len(tokens) != 1:
        raise _Problem(f"only one {what} is allowed on a line")
    return tokens[0].text


def _expand(tokens: list[Token], directory: Path, depth: int) -> tuple[Token, ...]:
    """Replace `@file` by the words in it."""
    words: list[Token] = []
    for token in tokens:
        if token.is_quoted or not token.text.startswith("@") or len(token.text) < 2:
            words.append(token)
            continue
        path = directory / token.text[1:]
        if depth >= MAX_INCLUDE_DEPTH:
            raise _Problem(f"{path} includes itself, or files are included too deep")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise _Problem(f"could not read {path}: {error}") from error
        inner = [word for _, line in _logical_lines(text) for field in _fields(line) for word in field]
        words.extend(_expand(inner, path.parent, depth + 1))
    return tuple(words)


def _address(fields: list[list[Token]]) -> IpNetwork | str:
    tokens = _take(fields, "address")
    text = _single(tokens, "address")
    if not tokens[0].is_quoted and text in ("all", "samehost", "samenet"):
        return text
    if "/" not in text:
        try:
            ipaddress.ip_address(text)
        except ValueError:
            raise _Problem(
                f'invalid address "{text}": an address with a mask, all, samehost or samenet is expected '
                "(host names are not looked up)"
            ) from None
        if not fields:
            raise _Problem("an address without a mask: write it as address/bits, or put the mask behind it")
        text = f"{text}/{_mask_bits(_single(fields.pop(0), 'mask'))}"
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise _Problem(f'invalid address "{text}": {error}') from None


def _mask_bits(mask: str) -> int:
    try:
        address = ipaddress.ip_address(mask)
    except ValueError:
        raise _Problem(f'invalid mask "{mask}"') from None
    bits = int(address)
    length = bits.bit_count()
    if bits != ((1 << length) - 1) << (address.max_prefixlen - length):
        raise _Problem(f'invalid mask "{mask}": its bits are not in one piece')
    return length


def _method(word: str, kind: str) -> Method:
    try:
        method = Method(word)
    except ValueError:
        raise _Problem(
            f'authentication method "{word}" is not supported: one of {", ".join(Method)} is expected'
        ) from None
    if method is Method.PEER and kind != "local":
        raise _Problem("peer authentication is only for local rules")
    if method is Method.CERT and kind != "hostssl":
        raise _Problem("cert authentication is only for hostssl rules")
    return method


def _client_cert(options: list[list[Token]], kind: str, method: Method) -> ClientCert:
    client_cert = ClientCert.VALID_FOR_ROLE if method is Method.CERT else ClientCert.NOT_ASKED
    for token in (token for field in options for token in field):
        name, separator, value = token.text.partition("=")
        if not separator:
            raise _Problem(f'an option has the form name=value: "{token.text}"')
        if name != "clientcert":
            raise _Problem(f'option "{name}" is not supported: clientcert is the only one')
        if kind != "hostssl":
            raise _Problem("clientcert is only for hostssl rules")
        if value not in ("verify-ca", "verify-full") or (method is Method.CERT and value != "verify-full"):
            raise _Problem(f'invalid value for clientcert: "{value}"')
        client_cert = ClientCert(value)
    return client_cert
