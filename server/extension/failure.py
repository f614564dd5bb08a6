"""What happens when an extension fails. One word for hooks, inline subscribers and features alike."""

from __future__ import annotations

import enum
from typing import Protocol


class FailurePolicy(enum.Enum):
    """DENY:

    what was asked fails with an error. CONTINUE: it goes on as if the extension were not there. Both are counted and
    logged.
    """

    DENY = "deny"
    CONTINUE = "continue"


class FailureReporter(Protocol):
    """Told of every failure of an extension. Called on the event loop; must not raise."""

    def __call__(self, feature: str, where: str, error: BaseException, is_fatal: bool, /) -> None: ...
