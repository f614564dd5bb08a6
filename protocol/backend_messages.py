"""What a server sends once a client is authenticated. COPY's messages are in copy_messages.py.

NegotiateProtocolVersion and ParameterStatus are declared in startup.py and come from here too.
"""

from __future__ import annotations

from typing import Annotated

from protocol.codes import MAX_SMALL_MESSAGE_LENGTH, BackendCode, Direction, TxStatus
from protocol.errors import PgError
from protocol.fields import (
    CancelKey,
    Counted,
    CString,
    ErrorFields,
    Int16,
    Int32,
    NullableBytes,
    Oid,
    Oids,
    ProcessId,
    TxStatusByte,
    Values,
)
from protocol.message import Message, message, nested, record
from protocol.startup import NegotiateProtocolVersion, ParameterStatus

__all__ = [
    "BackendKeyData",
    "BindComplete",
    "CloseComplete",
    "CommandComplete",
    "DataRow",
    "EmptyQueryResponse",
    "ErrorResponse",
    "FieldDescription",
    "FunctionCallResponse",
    "NegotiateProtocolVersion",
    "NoData",
    "NoticeResponse",
    "NotificationResponse",
    "ParameterDescription",
    "ParameterStatus",
    "ParseComplete",
    "PortalSuspended",
    "ReadyForQuery",
    "RowDescription",
]


@record
class FieldDescription:
    """One column of a result. The defaults describe a text column of no table."""

    name: CString
    table_oid: Oid = 0
    column: Int16 = 0
    type_oid: Oid = 25
    type_size: Int16 = -1
    type_modifier: Int32 = -1
    format: Int16 = 0


@message(BackendCode.ROW_DESCRIPTION, Direction.BACKEND)
class RowDescription(Message):
    """The columns of the rows that follow (or would follow, after Describe)."""

    fields: Annotated[tuple[FieldDescription, ...], Counted(nested(FieldDescription))]


@message(BackendCode.DATA_ROW, Direction.BACKEND)
class DataRow(Message):
    """One row; None is NULL."""

    values: Values


@message(BackendCode.COMMAND_COMPLETE, Direction.BACKEND)
class CommandComplete(Message):
    """A statement ended well: `SELECT 3`, `INSERT 0 1`."""

    tag: CString


@message(BackendCode.EMPTY_QUERY_RESPONSE, Direction.BACKEND, limit=MAX_SMALL_MESSAGE_LENGTH)
class EmptyQueryResponse(Message):
    """Stands for CommandComplete where the text held no statement."""


@message(BackendCode.READY_FOR_QUERY, Direction.BACKEND, limit=MAX_SMALL_MESSAGE_LENGTH)
class ReadyForQuery(Message):
    """The answer to one Query, FunctionCall or Sync is complete."""

    status: TxStatusByte = TxStatus.IDLE


@message(BackendCode.BACKEND_KEY_DATA, Direction.BACKEND, limit=MAX_SMALL_MESSAGE_LENGTH)
class BackendKeyData(Message):
    """What a client needs to cancel. The secret has 4 bytes in 3.0 and 4 to 256 in 3.2."""

    process_id: ProcessId
    secret: CancelKey


@message(BackendCode.ERROR_RESPONSE, Direction.BACKEND)
class ErrorResponse(Message):
    """An error, as letters and texts; `error` is the readable form."""

    fields: ErrorFields

    @property
    def error(self) -> PgError:
        """The fields by name."""
        return PgError.from_fields(self.fields)


@message(BackendCode.NOTICE_RESPONSE, Direction.BACKEND)
class NoticeResponse(Message):
    """A warning or notice; may arrive at any time."""

    fields: ErrorFields

    @property
    def notice(self) -> PgError:
        """The fields by name."""
        return PgError.from_fields(self.fields)


@message(BackendCode.NOTIFICATION_RESPONSE, Direction.BACKEND)
class NotificationResponse(Message):
    """A NOTIFY arrived; may come at any time outside a transaction."""

    process_id: ProcessId
    channel: CString
    payload: CString = ""


@message(BackendCode.PARSE_COMPLETE, Direction.BACKEND, limit=MAX_SMALL_MESSAGE_LENGTH)
class ParseComplete(Message):
    """Answers Parse."""


@message(BackendCode.BIND_COMPLETE, Direction.BACKEND, limit=MAX_SMALL_MESSAGE_LENGTH)
class BindComplete(Message):
    """Answers Bind."""


@message(BackendCode.CLOSE_COMPLETE, Direction.BACKEND, limit=MAX_SMALL_MESSAGE_LENGTH)
class CloseComplete(Message):
    """Answers Close."""


@message(BackendCode.NO_DATA, Direction.BACKEND, limit=MAX_SMALL_MESSAGE_LENGTH)
class NoData(Message):
    """Answers Describe of what returns no rows."""


@message(BackendCode.PORTAL_SUSPENDED, Direction.BACKEND, limit=MAX_SMALL_MESSAGE_LENGTH)
class PortalSuspended(Message):
    """Ends Execute where the row limit was reached."""


@message(BackendCode.PARAMETER_DESCRIPTION, Direction.BACKEND)
class ParameterDescription(Message):
    """The parameter types of a statement: the first answer to Describe of a statement."""

    parameter_types: Oids


@message(BackendCode.FUNCTION_CALL_RESPONSE, Direction.BACKEND)
class FunctionCallResponse(Message):
    """The result of FunctionCall; None is NULL."""

    value: NullableBytes
