"""Traces, line by line as libpq's PQtrace prints them (recorded from libpq and PostgreSQL 18)."""

from __future__ import annotations

import pytest

from protocol.auth_messages import AuthenticationOk, PasswordMessage, SASLResponse
from protocol.backend_messages import (
    BackendKeyData,
    DataRow,
    ErrorResponse,
    FieldDescription,
    NotificationResponse,
    ReadyForQuery,
    RowDescription,
)
from protocol.codes import Direction, Phase, Target
from protocol.copy_messages import CopyData, CopyInResponse
from protocol.errors import PgError
from protocol.frontend_messages import Bind, Describe, Execute, Flush, Parse, Query
from protocol.message import Message
from protocol.startup import SslRequest, StartupMessage
from protocol.trace import trace_bytes, trace_message

F, B = Direction.FRONTEND, Direction.BACKEND
REPORT = 'S "ERROR" V "ERROR" C "22012" M "division by zero"'
ERROR = PgError("22012", "division by zero", file="int.c", line=870, routine="int4div")


@pytest.mark.parametrize(
    ("sender", "message", "line"),
    [
        (F, Query("create temp table t(a int, b text)"), 'F\t39\tQuery\t "create temp table t(a int, b text)"'),
        (
            F,
            Parse("_pg3_0", "insert into t values ($1,$2),(2,null)", (21, 0)),
            'F\t59\tParse\t "_pg3_0" "insert into t values ($1,$2),(2,null)" 2 21 0',
        ),
        (
            F,
            Bind("", "_pg3_0", (1, 0), (b"\0\1", "hä\n".encode()), (0,)),
            "F\t38\tBind\t \"\" \"_pg3_0\" 2 1 0 2 2 '\\x00\\x01' 4 'h\\xc3\\xa4\\x0a' 1 0",
        ),
        (F, Describe(Target.PORTAL), 'F\t6\tDescribe\t P ""'),
        (F, Execute(), 'F\t9\tExecute\t "" 0'),
        (F, Flush(), "F\t4\tFlush"),
        (
            B,
            RowDescription((FieldDescription("a", 16397, 1, 23, 4), FieldDescription("b", 16397, 2))),
            'B\t46\tRowDescription\t 2 "a" 16397 1 23 4 -1 0 "b" 16397 2 25 65535 -1 0',
        ),
        (B, DataRow((b"2", None)), "B\t15\tDataRow\t 2 1 '2' -1"),
        (B, ReadyForQuery(), "B\t5\tReadyForQuery\t I"),
        (
            B,
            ErrorResponse(ERROR.to_fields()),
            f'B\t65\tErrorResponse\t {REPORT} F "int.c" L "870" R "int4div" \\x00',
        ),
        (B, CopyInResponse(0, (0, 0)), "B\t11\tCopyInResponse\t \\x00 2 0 0"),
        (B, CopyData(b"1\tx\n"), "B\t8\tCopyData"),
        (B, AuthenticationOk(), "B\t8\tAuthenticationOk"),
        (F, SslRequest(), "F\t8\tSslRequest"),
        (F, StartupMessage(3, 0, {"user": "joe"}), 'F\t18\tStartupMessage\t 3 0 "user" "joe" ""'),
    ],
    ids=lambda value: type(value).__name__,
)
def test_line_of_a_message(sender: Direction, message: Message, line: str) -> None:
    assert trace_message(sender, message) == line


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            RowDescription((FieldDescription("a", 16397, 1, 23, 4),)),
            'B\t26\tRowDescription\t 1 "a" NNNN 1 NNNN 4 -1 0',
        ),
        (NotificationResponse(77, "c", "p"), 'B\t12\tNotificationResponse\t NNNN "c" "p"'),
        (
            ErrorResponse(ERROR.to_fields()),
            f'B\tNN\tErrorResponse\t {REPORT} F "SSSS" L "SSSS" R "SSSS" \\x00',
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_regress_mode_hides_what_differs_from_run_to_run(message: Message, line: str) -> None:
    assert trace_message(B, message, regress=True) == line


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (PasswordMessage("hunter2"), '"****"'),
        (SASLResponse(b"hunter2"), "'****'"),
        (BackendKeyData(1, b"hunter2"), "1 '****'"),
    ],
)
def test_secrets_are_masked_unless_revealed(message: Message, shown: str) -> None:
    assert trace_message(F, message).endswith(f"\t {shown}")
    assert "hunter2" in trace_message(F, message, reveal=True)


def test_one_message_is_one_line_whatever_its_text() -> None:
    line = trace_message(F, Query("select\n\udcff\x7f 'ä'"))
    assert line == "F\t19\tQuery\t \"select\\x0a\\xff\\x7f 'ä'\""
    assert line.encode()  # can be written anywhere


def test_run_of_bytes() -> None:
    data = Query("select 1").encode() + Flush().encode()
    assert trace_bytes(F, data) == ['F\t13\tQuery\t "select 1"', "F\t4\tFlush"]
    assert trace_bytes(F, data + b"S\0")[-1] == "F\t?\t2 bytes of an incomplete message"
    assert trace_bytes(F, b"?\0\0\0\x04") == ["F\t?\tinvalid frontend message type 63"]
    assert trace_bytes(F, SslRequest().encode(), phase=Phase.STARTUP) == ["F\t8\tSslRequest"]


def test_copy_data_is_shown_on_demand() -> None:
    assert trace_bytes(B, CopyData(b"1\n").encode(), copy_data=True) == ["B\t6\tCopyData\t '1\\x0a'"]
