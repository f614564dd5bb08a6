"""COPY in, out and both. CopyData and CopyDone travel in either direction."""

from __future__ import annotations

from protocol.codes import MAX_SMALL_MESSAGE_LENGTH, BackendCode, Direction, FrontendCode
from protocol.fields import CString, Int16s, RawByte, Remainder
from protocol.message import Message, message


@message(BackendCode.COPY_IN_RESPONSE, Direction.BACKEND)
class CopyInResponse(Message):
    """Send rows now. `format` is 0 text, 1 binary; `column_formats` has one for each column."""

    format: RawByte
    column_formats: Int16s = ()


@message(BackendCode.COPY_OUT_RESPONSE, Direction.BACKEND)
class CopyOutResponse(Message):
    """Rows follow."""

    format: RawByte
    column_formats: Int16s = ()


@message(BackendCode.COPY_BOTH_RESPONSE, Direction.BACKEND)
class CopyBothResponse(Message):
    """Both sides stream: replication."""

    format: RawByte
    column_formats: Int16s = ()


@message(FrontendCode.COPY_DATA, Direction.FRONTEND, Direction.BACKEND)
class CopyData(Message):
    """A piece of the stream. A server sends one row in each; a client may cut anywhere."""

    data: Remainder


@message(FrontendCode.COPY_DONE, Direction.FRONTEND, Direction.BACKEND, limit=MAX_SMALL_MESSAGE_LENGTH)
class CopyDone(Message):
    """The stream is complete."""


@message(FrontendCode.COPY_FAIL, Direction.FRONTEND, limit=MAX_SMALL_MESSAGE_LENGTH)
class CopyFail(Message):
    """The client gives up; the server answers with an error that quotes this text."""

    reason: CString
