"""What a backend still owes: one queue of expected replies per connection, in the order the requests were sent.

Everything sent to a backend pushes what must come back. A `ReplyPlan` covers one run of requests up to its
ReadyForQuery. Most runs are the client's own words unchanged: `PASS` says "forward everything up to ReadyForQuery".
`HiddenReplies` are ours: nothing of them reaches the client. `MixedReplies` decide message by message, for runs
in which we injected, left out or answered some of the client's messages ourselves.

Source of the rules: PostgreSQL's protocol-flow chapter; the idea of expecting instead of counting is PgBouncer's
outstanding-request queue. No I/O.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from protocol.errors import PgError
from protocol.scan import (
    B_BIND_COMPLETE,
    B_CLOSE_COMPLETE,
    B_COMMAND_COMPLETE,
    B_COPY_IN,
    B_DATA_ROW,
    B_EMPTY_QUERY,
    B_ERROR,
    B_FUNCTION_RESULT,
    B_NO_DATA,
    B_NOTICE,
    B_NOTIFICATION,
    B_PARAMETER_DESCRIPTION,
    B_PARAMETER_STATUS,
    B_PARSE_COMPLETE,
    B_PORTAL_SUSPENDED,
    B_READY,
    B_ROW_DESCRIPTION,
    length_at,
)


class Reply(Enum):
    """Which answer a request has, named by the request."""

    PARSE = auto()
    BIND = auto()
    DESCRIBE = auto()
    EXECUTE = auto()
    CLOSE = auto()
    FUNCTION_CALL = auto()
    SYNC = auto()
    QUERY = auto()  # a simple Query inside a pipeline: skipped after an error, else it ends in ReadyForQuery
    LOCAL = auto()  # not sent: `bytes_` is the answer


class Action(Enum):
    """What happens to the answer of one request."""

    FORWARD = auto()
    IGNORE = auto()


_ENDS: Final = {
    B_PARSE_COMPLETE: Reply.PARSE,
    B_BIND_COMPLETE: Reply.BIND,
    B_CLOSE_COMPLETE: Reply.CLOSE,
    B_ROW_DESCRIPTION: Reply.DESCRIBE,
    B_NO_DATA: Reply.DESCRIBE,
    B_COMMAND_COMPLETE: Reply.EXECUTE,
    B_EMPTY_QUERY: Reply.EXECUTE,
    B_PORTAL_SUSPENDED: Reply.EXECUTE,
    B_FUNCTION_RESULT: Reply.FUNCTION_CALL,
    B_READY: Reply.SYNC,
}

_ASYNCHRONOUS: Final = frozenset({B_NOTICE, B_NOTIFICATION, B_PARAMETER_STATUS})


class Expected:
    """One request's answer. `on_answer` is told the raw message that ended it, b"" where an error dropped it; `error`
    replaces the engine's error.
    """

    __slots__ = ("action", "bytes_", "error", "on_answer", "reply")

    def __init__(
        self,
        reply: Reply,
        action: Action = Action.FORWARD,
        *,
        bytes_: bytes = b"",
        error: bytes | None = None,
        on_answer: Callable[[bytes], None] | None = None,
    ) -> None:
        self.reply = reply
        self.action = action
        self.bytes_ = bytes_
        self.error = error
        self.on_answer = on_answer


class PassReplies:
    """Everything up to ReadyForQuery belongs to the client, unchanged. Stateless: one object serves all."""

    __slots__ = ()


PASS: Final = PassReplies()


class HiddenReplies:
    """Our own statement: rows are kept, nothing is forwarded; `done` is called at its ReadyForQuery."""

    __slots__ = ("done", "error", "rows")

    def __init__(self, done: Callable[[HiddenReplies], None]) -> None:
        self.done = done
        self.rows: list[list[bytes | None]] = []
        self.error: PgError | None = None

    def receive(self, kind: int, body: bytes) -> None:
        """Take one message of the reply."""
        if kind == B_DATA_ROW:
            self.rows.append(decode_row(body))
        elif kind == B_ERROR and self.error is None:
            self.error = PgError.from_body(body)


class MixedReplies:
    """Message by message: forward, ignore or answer ourselves, until the ReadyForQuery of its Sync."""

    __slots__ = ("failed", "queue")

    def __init__(self) -> None:
        self.queue: deque[Expected] = deque()
        self.failed = False

    def push(self, expected: Expected) -> None:
        """Expect one more answer. After an error, what is not a Sync will not be answered."""
        if self.failed and expected.reply is not Reply.SYNC:
            if expected.on_answer is not None:
                expected.on_answer(b"")
            return
        self.queue.append(expected)

    def local_answers(self) -> bytes:
        """Our own answers that are now at the head of the queue."""
        queue = self.queue
        if not queue or queue[0].reply is not Reply.LOCAL:
            return b""
        answers = []
        while queue and queue[0].reply is Reply.LOCAL:
            answers.append(queue.popleft().bytes_)
        return b"".join(answers)

    def receive(self, kind: int, raw: bytes) -> bytes:
        """Take one whole reply message; returns the bytes to forward in its place (maybe none)."""
        if kind in _ASYNCHRONOUS:
            return raw
        if kind == B_ERROR:
            return self._failed(raw)
        head = self.queue[0] if self.queue else None
        if head is None:
            return raw
        if kind == B_COPY_IN:
            self._forget_sync_during_copy()
        if _ENDS.get(kind) is head.reply or (kind == B_READY and head.reply is Reply.QUERY):
            self.queue.popleft()
            if head.reply is Reply.SYNC:
                self.failed = False
            if head.on_answer is not None:
                head.on_answer(raw)
        elif kind == B_PARAMETER_DESCRIPTION and head.on_answer is not None:
            head.on_answer(raw)
        return raw if head.action is Action.FORWARD else b""

    def _failed(self, raw: bytes) -> bytes:
        """An error drops everything expected up to the next Sync (PostgreSQL skips those messages)."""
        queue = self.queue
        head = queue[0] if queue else None
        if head is not None and head.reply is Reply.QUERY:
            return raw  # its own error; its ReadyForQuery follows
        replacement = head.error if head is not None and head.error is not None else raw
        while queue and queue[0].reply is not Reply.SYNC:
            dropped = queue.popleft()
            if dropped.on_answer is not None:
                dropped.on_answer(b"")
        self.failed = not queue
        return replacement

    def _forget_sync_during_copy(self) -> None:
        """PostgreSQL ignores Sync and Flush during COPY FROM STDIN: the next Sync sent before it is not answered."""
        for index, expected in enumerate(self.queue):
            if expected.reply is Reply.SYNC:
                del self.queue[index]
                return


ReplyPlan = PassReplies | HiddenReplies | MixedReplies


def decode_row(body: bytes) -> list[bytes | None]:
    """The column values of a DataRow body."""
    count = int.from_bytes(body[:2], "big")
    values: list[bytes | None] = []
    pos = 2
    for _ in range(count):
        length = length_at(body, pos)[0]
        pos += 4
        if length == 0xFFFFFFFF:
            values.append(None)
        else:
            values.append(body[pos : pos + length])
            pos += length
    return values
