r"""Conversations as text, one message a line, in the format of libpq's PQtrace.

    F	12	Query	 "SELECT 1"
    B	33	RowDescription	 1 "?column?" 0 0 23 4 -1 0

Sender, value of the length field, name, fields. `regress` hides what differs from run to run (OIDs, process ids, where
an error was raised), as PQTRACE_REGRESS_MODE does, so traces can be compared. Unlike PQtrace, line breaks in texts are
shown as `\x0a`, passwords, SASL data and cancel keys are masked unless `reveal` is set, and COPY data is shown where
`copy_data` is.
"""

from __future__ import annotations

from typing import Final

from protocol.backend_messages import ErrorResponse, NoticeResponse
from protocol.codes import MAX_LARGE_MESSAGE_LENGTH, Direction, Phase
from protocol.copy_messages import CopyData
from protocol.errors import ProtocolError
from protocol.fields import Trace
from protocol.framing import FrameDecoder
from protocol.message import Message
from protocol.registry import decode

_REPORTS: Final = (ErrorResponse, NoticeResponse)


def trace_message(
    sender: Direction,
    message: Message,
    *,
    length: int | None = None,
    regress: bool = False,
    reveal: bool = False,
    copy_data: bool = False,
) -> str:
    """One line, without a line end. `length` saves encoding the message again to learn it."""
    if length is None:
        length = len(message.encode()) - (message.code is not None)
    # The length of an error depends on the names of source files.
    shown = "NN" if regress and isinstance(message, _REPORTS) else str(length)
    name = type(message).__name__
    if isinstance(message, CopyData) and not copy_data:
        return f"{sender}\t{shown}\t{name}"
    fields = message.trace_fields(Trace(regress, reveal))
    return f"{sender}\t{shown}\t{name}\t{fields}" if message.layout else f"{sender}\t{shown}\t{name}"


def trace_bytes(
    sender: Direction,
    data: bytes,
    *,
    phase: Phase = Phase.SESSION,
    regress: bool = False,
    reveal: bool = False,
    copy_data: bool = False,
) -> list[str]:
    """The lines of a run of messages of one sender. What does not parse ends it, in a line that says so."""
    decoder = FrameDecoder()
    decoder.feed(data)
    lines: list[str] = []
    try:
        while True:
            if phase is Phase.STARTUP:
                frame = decoder.next_startup_packet()
            else:
                frame = decoder.next_frame(lambda _: MAX_LARGE_MESSAGE_LENGTH)
            if frame is None:
                break
            message = decode(sender, frame.code, frame.body, phase)
            lines.append(
                trace_message(sender, message, length=frame.length, regress=regress, reveal=reveal, copy_data=copy_data)
            )
    except ProtocolError as error:
        lines.append(f"{sender}\t?\t{error}")
        return lines
    if decoder.buffered:
        lines.append(f"{sender}\t?\t{decoder.buffered} bytes of an incomplete message")
    return lines
