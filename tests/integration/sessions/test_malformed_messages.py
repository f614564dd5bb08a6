"""Messages of a right type and length whose inside is wrong: the session ends with 08P01, and nobody else's does."""

from __future__ import annotations

import pytest

from tests.integration.sessions.conftest import Login
from tests.support.wire_client import message, sync

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(message("P", b"a") + sync(), id="parse-without-a-text"),
        pytest.param(message("P", b"a"), id="parse-without-a-text-or-a-sync"),
        pytest.param(message("P", b"\0select 1") + sync(), id="parse-without-an-end"),
        pytest.param(message("P", b"x\0select 1\0") + message("B", b"\0x") + sync(), id="bind-of-half-a-name"),
    ],
)
def test_a_malformed_message_is_a_protocol_violation(login: Login, sent: bytes) -> None:
    bad, good = login(), login()
    bad.send(sent)
    found = bad.recv_until("E")[-1]
    assert found.fields["C"] == "08P01"
    assert good.value("SELECT 1") == "1"
    assert bad.is_at_end()
