"""What a client sends once it is authenticated. COPY's messages are in copy_messages.py.

Text is `str` decoded with surrogateescape: bytes of any client encoding survive, but may hold lone surrogates.
"""

from __future__ import annotations

from protocol.codes import MAX_SMALL_MESSAGE_LENGTH, Direction, FrontendCode
from protocol.fields import CloseTarget, CString, DescribeTarget, Int16, Int16s, Int32, Oid, Oids, Values
from protocol.message import Message, message


@message(FrontendCode.QUERY, Direction.FRONTEND)
class Query(Message):
    """Run this text, which may hold several statements: the simple query protocol."""

    query: CString


@message(FrontendCode.PARSE, Direction.FRONTEND)
class Parse(Message):
    """Prepare a statement under a name ('' is the unnamed one). A parameter type 0 is left to the server."""

    name: CString
    query: CString
    parameter_types: Oids = ()


@message(FrontendCode.BIND, Direction.FRONTEND)
class Bind(Message):
    """Make a portal of a prepared statement. No format means text, one is for all, else one for each."""

    portal: CString
    statement: CString
    parameter_formats: Int16s = ()
    parameters: Values = ()
    result_formats: Int16s = ()


@message(FrontendCode.DESCRIBE, Direction.FRONTEND, limit=MAX_SMALL_MESSAGE_LENGTH)
class Describe(Message):
    """What does this statement or portal return?"""

    target: DescribeTarget
    name: CString = ""


@message(FrontendCode.EXECUTE, Direction.FRONTEND, limit=MAX_SMALL_MESSAGE_LENGTH)
class Execute(Message):
    """Run a portal, for at most `max_rows` rows (0 is all)."""

    portal: CString = ""
    max_rows: Int32 = 0


@message(FrontendCode.CLOSE, Direction.FRONTEND, limit=MAX_SMALL_MESSAGE_LENGTH)
class Close(Message):
    """Forget a statement or portal. No error if there is none. Portals of a closed statement live on."""

    target: CloseTarget
    name: CString = ""


@message(FrontendCode.FLUSH, Direction.FRONTEND, limit=MAX_SMALL_MESSAGE_LENGTH)
class Flush(Message):
    """Send what is ready. Ends no transaction."""


@message(FrontendCode.SYNC, Direction.FRONTEND, limit=MAX_SMALL_MESSAGE_LENGTH)
class Sync(Message):
    """End of an extended query: commits an implicit transaction, ends error skipping, asks for ReadyForQuery."""


@message(FrontendCode.FUNCTION_CALL, Direction.FRONTEND)
class FunctionCall(Message):
    """Call a function by OID: the fastpath of large objects."""

    function_oid: Oid
    argument_formats: Int16s = ()
    arguments: Values = ()
    result_format: Int16 = 0


@message(FrontendCode.TERMINATE, Direction.FRONTEND, limit=MAX_SMALL_MESSAGE_LENGTH)
class Terminate(Message):
    """The client leaves."""
