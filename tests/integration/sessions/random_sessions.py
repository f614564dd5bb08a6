"""Random scripts for several sessions, run against two servers step by step; what the clients see must be the same.

A `Script` draws steps from a seed. `Pair` runs each step on the same session of both servers and compares every
message. What differs between two PostgreSQL servers too (table OIDs, process ids) is left out of the comparison.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from tests.support.target import Target
from tests.support.wire_client import (
    ConnectionEnded,
    Message,
    WireClient,
    bind,
    close,
    copy_data,
    copy_done,
    copy_fail,
    describe,
    execute,
    flush,
    parse,
    query,
    sync,
)

ROLE, PASSWORD, DATABASE = "tester", "tester-password", "random_sessions"
SESSIONS = 4
_STARTUP = (
    {},
    {"options": "-c extra_float_digits=1"},
    {"options": "-c statement_timeout=61s", "IntervalStyle": "iso_8601"},
    {"options": "-c geqo=off"},
)
ADMIN_SETUP = (
    f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'",
    f"GRANT {ROLE} TO CURRENT_USER",
    "CREATE ROLE r1",
    f"GRANT r1 TO {ROLE}",
)
SETUP = (
    "CREATE SCHEMA s1",
    "CREATE TABLE t0 (a int, b text)",
    "CREATE TABLE t1 (a int)",
    "CREATE TABLE s1.t1 (a int, z text)",
    "CREATE SEQUENCE q0",
    "SELECT nextval('q0')",
    "SELECT lastval()",  # from now on RustyDB knows that this role asks for it
    "GRANT USAGE ON SCHEMA s1 TO r1",
    "GRANT ALL ON ALL TABLES IN SCHEMA public, s1 TO r1",
    "GRANT ALL ON q0 TO r1",
    "CREATE FUNCTION plain(x int) RETURNS int LANGUAGE sql AS 'SELECT x + 1'",
    """CREATE FUNCTION hidden(v text) RETURNS text LANGUAGE plpgsql AS
    $$ BEGIN PERFORM set_config('my.b', v, false); RETURN v; END $$""",
)
_SHOW = (
    "SELECT current_user, session_user, current_setting('work_mem'), current_setting('datestyle'), "
    "current_setting('search_path'), current_setting('application_name'), "
    "current_setting('default_transaction_read_only'), coalesce(current_setting('my.a', true), ''), "
    "coalesce(current_setting('my.b', true), ''), current_setting('extra_float_digits'), "
    "current_setting('statement_timeout'), current_setting('intervalstyle'), current_setting('geqo')"
)
_SETTINGS = {
    "work_mem": ("9MB", "10MB", "64MB"),
    "datestyle": ("'German'", "'ISO, DMY'", "'ISO, MDY'"),
    "search_path": ("s1, public", "public", '"$user", public'),
    "my.a": ("'1'", "'2'", "''"),
    "my.b": ("'x'", "'y'"),
    "application_name": ("'app'", "''"),
    "default_transaction_read_only": ("on", "off"),
    "role": ("r1", "none"),
    "TimeZone": ("'Asia/Tokyo'", "'UTC'"),
}
_TEXTS = (
    "SELECT * FROM t0 ORDER BY 1, 2",
    "SELECT * FROM t1 ORDER BY 1",
    "SELECT count(*) FROM t1",
    "SELECT current_user, current_setting('work_mem')",
    "INSERT INTO t1 (a) VALUES (1) RETURNING a",
    "SET work_mem = '11MB'",
    "SELECT set_config('my.a', 'by statement', false)",
    "BEGIN",
    "ROLLBACK",
    "SELECT nextval('q0')",
    "SELECT 1/0",
    "SELECT g FROM generate_series(1, 4) AS g",
    "SELECT 'x' || $1::text",
    "SELECT pg_try_advisory_lock(3)",
)
_NAMES = ("s1", "s2", "s3")
_PLAIN = (
    _SHOW, "SELECT 1/0", "SELECT nonsense", "SELECT plain(1)", "SELECT count(*) FROM t0",
    "INSERT INTO t0 VALUES (1, 'x')", "INSERT INTO t1 (a) VALUES (2)", "DELETE FROM t1", "SELECT nextval('q0')",
    "SELECT currval('q0')", "SELECT lastval()", "SELECT hidden('h')",
    "DO $$ BEGIN PERFORM set_config('my.a', 'done', false); END $$",
    "SELECT 1; SELECT 2", "SET my.a = 'm1'; SET my.b = 'm2'; SELECT 1", "SET my.a = 'm3'; SELECT 1/0", "",
)  # fmt: skip
_BLOCKS = (
    "BEGIN", "BEGIN", "COMMIT", "COMMIT", "ROLLBACK", "SAVEPOINT a", "SAVEPOINT b", "ROLLBACK TO a", "ROLLBACK TO b",
    "RELEASE a", "COMMIT AND CHAIN", "ROLLBACK AND CHAIN", "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY",
)  # fmt: skip
_OBJECTS = (
    "CREATE TEMP TABLE tt (x int)", "INSERT INTO tt VALUES (1)", "SELECT count(*) FROM tt", "DROP TABLE tt",
    "CREATE TEMP TABLE IF NOT EXISTS td (x int) ON COMMIT DROP", "SELECT count(*) FROM td",
    "SELECT pg_try_advisory_lock(1)", "SELECT pg_try_advisory_lock(2)", "SELECT pg_advisory_unlock(1)",
    "SELECT pg_advisory_unlock_all()", "SELECT pg_try_advisory_lock(2), 1/(x-1) FROM generate_series(1, 1) AS x",
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    "DECLARE c CURSOR WITH HOLD FOR SELECT g FROM generate_series(1, 5) AS g", "DECLARE d CURSOR FOR SELECT 7",
    "FETCH 2 FROM c", "FETCH d", "CLOSE c", "CLOSE ALL", "SELECT name FROM pg_cursors ORDER BY 1",
)  # fmt: skip
_RESETS = (
    "RESET ALL", "DISCARD ALL", "DISCARD TEMP", "DISCARD PLANS", "DISCARD SEQUENCES", "RESET ROLE",
    "SET SESSION AUTHORIZATION DEFAULT", "DEALLOCATE ALL",
)  # fmt: skip
_SQL_PREPARED = (
    "PREPARE s1 AS SELECT 'sql'", "PREPARE s4 (int) AS SELECT $1 + 1", "EXECUTE s1", "EXECUTE s4(1)", "EXECUTE s2",
    "DEALLOCATE s1", "DEALLOCATE s2",
)  # fmt: skip
_DDL = (
    "ALTER TABLE t0 ADD COLUMN IF NOT EXISTS n int", "ALTER TABLE t0 DROP COLUMN IF EXISTS n",
    "ALTER TABLE t1 ALTER COLUMN a TYPE bigint", "ALTER TABLE t1 ALTER COLUMN a TYPE int",
    "CREATE OR REPLACE FUNCTION plain(x int) RETURNS int LANGUAGE sql AS 'SELECT x + 2'",
)  # fmt: skip


@dataclass
class Step:
    """What one client sends; `act` does it and returns what came back."""

    session: int
    name: str
    act: Callable[[WireClient], list[Message]]


def simple(session: int, sql: str) -> Step:
    def act(client: WireClient) -> list[Message]:
        client.send(query(sql))
        return _to_end(client)

    return Step(session, sql, act)


def run(session: int, name: str, *messages: bytes) -> Step:
    """Extended messages that end in a Sync."""

    def act(client: WireClient) -> list[Message]:
        client.send(*messages)
        found: list[Message] = []
        for _ in range(sum(part == sync() for part in messages)):
            found += _to_end(client)
        return found

    return Step(session, name, act)


def _to_end(client: WireClient) -> list[Message]:
    """Up to ReadyForQuery; a COPY that asks for data gets some."""
    found: list[Message] = []
    while True:
        found.append(client.recv())
        if found[-1].kind == "G":
            client.send(copy_data(b"5\n"), copy_data(b"6\n"), copy_done())
        elif found[-1].kind == "Z":
            return found


def _copy_by_execute(client: WireClient) -> list[Message]:
    """The Sync behind the Execute is ignored where the COPY begins."""
    client.send(parse("COPY t1 (a) FROM STDIN"), bind(), execute(), sync())
    found = client.recv_until("GZ")
    if found[-1].kind == "Z":
        return found
    client.send(copy_data(b"5\n"), copy_done(), sync())
    return found + _to_end(client)


class Script:
    """Draws steps from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def next(self) -> Step:
        draw = self._random
        session = draw.randrange(SESSIONS)
        kinds = (
            (self._setting, 12), (self._plain, 14), (self._block, 14), (self._object, 9), (self._extended, 14),
            (self._reset, 2), (self._one_of(_SQL_PREPARED), 4), (self._one_of(_DDL), 2), (self._pipeline, 6),
            (self._portal, 3), (self._cancel, 1), (self._leave, 2), (self._copy, 2), (self._bound_setting, 3),
            (self._pieces, 3),
        )  # fmt: skip
        make = draw.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])[0]
        return make(session)

    def _one_of(self, texts: Sequence[str]) -> Callable[[int], Step]:
        return lambda session: simple(session, self._random.choice(texts))

    def _reset(self, session: int) -> Step:
        """A session with startup settings resets none: until its next run the client sees the engine's own."""
        return simple(session, self._random.choice(_RESETS if not session else _RESETS[2:]))

    def _plain(self, session: int) -> Step:
        return simple(session, self._random.choice(_PLAIN) if self._random.random() < 0.6 else _SHOW)

    def _block(self, session: int) -> Step:
        return simple(session, self._random.choice(_BLOCKS))

    def _object(self, session: int) -> Step:
        return simple(session, self._random.choice(_OBJECTS))

    def _setting(self, session: int) -> Step:
        return simple(session, self._setting_text())

    def _setting_text(self) -> str:
        draw = self._random
        name = draw.choice(list(_SETTINGS))
        kind = draw.choice(("SET", "SET", "SET LOCAL", "RESET"))
        return f"RESET {name}" if kind == "RESET" else f"{kind} {name} TO {draw.choice(_SETTINGS[name])}"

    def _bound_setting(self, session: int) -> Step:
        draw = self._random
        value, local = draw.choice("pqr"), draw.choice("tf")
        messages = [parse("SELECT set_config($1, $2, $3)"), bind(values=["my.a", value, local]), execute(), sync()]
        return run(session, f"set_config my.a {value} {local}", *messages)

    def _extended(self, session: int) -> Step:
        draw = self._random
        name, text = draw.choice(_NAMES), draw.choice(_TEXTS)
        kind = draw.randrange(6)
        if kind == 0:
            return run(session, f"Parse {name}: {text}", parse(text, name), describe("S", name), sync())
        if kind == 1:
            return run(session, f"Close {name}", close("S", name), sync())
        if kind == 2:
            messages = [close("S", name), parse(text, name), describe("S", name), bind(name), execute(), sync()]
            return run(session, f"Replace and execute {name}: {text}", *messages)
        if kind == 3:
            text = draw.choice((_SHOW, text, self._setting_text()))
            return run(session, f"Unnamed: {text}", parse(text), bind(), describe("P"), execute(), sync())
        if kind == 4:
            return run(session, f"Describe {name}", describe("S", name), sync())
        return run(session, f"Execute {name}", bind(name), execute(), sync())

    def _pipeline(self, session: int) -> Step:
        draw = self._random
        messages: list[bytes] = []
        names: list[str] = []
        for _ in range(draw.randrange(2, 7)):
            text = draw.choice((*_TEXTS, _SHOW, self._setting_text(), draw.choice(_BLOCKS)))
            names.append(text)
            messages += [parse(text), bind(), execute()]
            if draw.random() < 0.4:
                messages.append(sync())
        return run(session, "Pipeline: " + " | ".join(names), *messages, sync())

    def _portal(self, session: int) -> Step:
        first, last = parse("SELECT g FROM generate_series(1, 5) AS g"), execute("p", 2)
        end = self._random.choice((execute("p", 0), close("P", "p"), execute("p", 3)))

        def act(client: WireClient) -> list[Message]:
            client.send(first, bind(portal="p"), last, flush())
            found = client.recv_until("sE")
            client.send(end, sync())
            return found + _to_end(client)

        return Step(session, "Portal over a Flush", act)

    def _pieces(self, session: int) -> Step:
        """A run that comes in several packets."""
        text = self._random.choice((*_TEXTS, _SHOW))
        name = self._random.choice(_NAMES)
        parts = self._random.choice(
            (
                [parse(text), bind() + execute(), sync()],
                [parse(text) + bind(), execute() + sync()],
                [bind(name), execute(), sync()],
                [parse(text) + bind() + execute(), parse(_SHOW) + bind() + execute(), sync()],
            )
        )

        def act(client: WireClient) -> list[Message]:
            for part in parts:
                client.send(part)
                time.sleep(0.002)
            return _to_end(client)

        return Step(session, f"In {len(parts)} pieces: {text} or {name}", act)

    def _cancel(self, session: int) -> Step:
        def act(client: WireClient) -> list[Message]:
            client.send(query("SELECT pg_sleep(20)"))
            time.sleep(0.05)
            client.cancel()
            return _to_end(client)

        return Step(session, "Cancel", act)

    def _copy(self, session: int) -> Step:
        kind = self._random.randrange(4)
        if kind == 0:
            return simple(session, "COPY t1 TO STDOUT")
        if kind == 1:
            return simple(session, "COPY t1 (a) FROM STDIN")
        if kind == 2:
            return Step(session, "COPY by Execute", _copy_by_execute)

        def act(client: WireClient) -> list[Message]:
            client.send(query("COPY t1 (a) FROM STDIN"))
            found = client.recv_until("GZ")
            if found[-1].kind == "Z":
                return found
            client.send(copy_data(b"7\n"), copy_fail("on purpose"))
            return found + _to_end(client)

        return Step(session, "COPY that fails", act)

    def _leave(self, session: int) -> Step:
        return Step(session, self._random.choice(("close", "abort")), lambda client: [])


@dataclass
class Pair:
    """The same sessions on two servers."""

    one: Target
    other: Target
    clients: dict[tuple[str, int], WireClient] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    is_over: bool = False

    def start(self) -> None:
        for session in range(SESSIONS):
            self._open(session)

    def close(self) -> None:
        for client in self.clients.values():
            client.abort()

    def take(self, step: Step) -> str:
        """Run one step on both; "" where the answers agree, else what differs."""
        self.log.append(f"{step.session}: {step.name.replace(_SHOW, 'the settings')}")
        if step.name in ("close", "abort"):
            for target in (self.one, self.other):
                client = self.clients[target.name, step.session]
                client.close() if step.name == "close" else client.abort()
            time.sleep(0.02)  # the end of the session is asynchronous in PostgreSQL too
            self._open(step.session)
            return ""
        answers = [self._answer(target, step) for target in (self.one, self.other)]
        if answers[0] == answers[1]:
            return ""
        if self._is_known(step, answers):
            self.is_over = True  # from here on the two may go different ways
            return ""
        return f"{self.one.name}: {answers[0]}\n{self.other.name}: {answers[1]}"

    def _answer(self, target: Target, step: Step) -> list[object]:
        try:
            return _in_order([_shown(found) for found in step.act(self.clients[target.name, step.session])])
        except (ConnectionEnded, TimeoutError) as error:
            return [f"{type(error).__name__}: {error}"]

    def _is_known(self, step: Step, answers: list[list[object]]) -> bool:
        """A session that used SQL's EXECUTE and its like has its statements prepared anew under their own names: one
        that cannot be prepared again as it was is missing then: other SQLSTATEs, and its name is free.

        In a failed transaction PostgreSQL still describes a statement without rows; a fresh backend cannot. The
        parameters of a statement whose result type has changed are not described before the error.
        """
        codes = {shown[1] for answer in answers for shown in answer if isinstance(shown, tuple) and shown[0] == "E"}
        if step.name.startswith("Describe") and codes in ({"25P02"}, {"0A000"}):
            return True
        names = ("EXECUTE s", "PREPARE s", "FROM pg_cursors")
        has_real_names = any(f"{step.session}: " in line and any(name in line for name in names) for line in self.log)
        return has_real_names and bool(codes & {"26000", "42P05"})

    def _open(self, session: int) -> None:
        parameters = {"options": "", **_STARTUP[session]}
        parameters["options"] += " -c lock_timeout=150ms"
        for target in (self.one, self.other):
            client = WireClient.login(target, parameters=parameters, timeout_seconds=8.0)
            self.clients[target.name, session] = client


def _in_order(shown: list[tuple[object, ...]]) -> list[object]:
    """ParameterStatus messages in a row come in an order that tells of the past of their backend."""
    ordered: list[tuple[object, ...]] = []
    for found in shown:
        place = len(ordered)
        while found[0] == "S" and place and ordered[place - 1][0] == "S" and str(ordered[place - 1]) > str(found):
            place -= 1
        ordered.insert(place, found)
    return list(ordered)


def _shown(found: Message) -> tuple[object, ...]:
    """A message as far as it must be equal."""
    if found.kind == "E":
        return ("E", found.fields.get("C"), found.fields.get("M"))
    if found.kind == "N":
        return ("N", found.fields.get("C"), found.fields.get("M"))
    if found.kind == "T":
        return ("T", _columns(found.body))
    if found.kind == "D":
        return ("D", found.values)
    return (found.kind, found.body)


def _columns(body: bytes) -> list[tuple[bytes, int]]:
    """Names and types of a RowDescription."""
    columns = []
    position = 2
    for _ in range(int.from_bytes(body[:2], "big")):
        end = body.index(0, position)
        (type_oid,) = struct.unpack_from("!I", body, end + 7)
        columns.append((body[position:end], type_oid))
        position = end + 19
    return columns
