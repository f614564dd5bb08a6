"""docs/protocol-support.md says what the declarations and the table of the conversation say."""

from __future__ import annotations

from protocol.session_machine import State
from tools import gen_protocol_docs


def test_generated_parts_are_up_to_date() -> None:
    text = gen_protocol_docs.PAGE.read_text(encoding="utf-8")
    assert gen_protocol_docs.render(text) == text, "run tools/gen_protocol_docs.py"


def test_every_state_is_in_a_diagram() -> None:
    text = "".join(block() for block in gen_protocol_docs.BLOCKS.values())
    missing = [state for state in State if f" as {state.name}\n" not in text]
    assert missing == [State.CLOSED]  # its edges are told in words
