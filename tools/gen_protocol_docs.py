"""Write the generated parts of docs/protocol-support.md: message layouts and the diagrams of the conversation.

    .venv/bin/python tools/gen_protocol_docs.py [--check]

Layouts come from the message declarations, diagrams from the table of the state machine. What stands between
`<!-- protocol: NAME -->` and `<!-- end protocol: NAME -->` belongs to the block NAME; the rest is written by hand (and
the table of what RustyDB does with each message belongs to tools/gen_docs.py). `--check` writes nothing and fails
where a part is out of date.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from protocol.codes import MAX_AUTH_TOKEN_LENGTH, Direction, Phase  # noqa: E402
from protocol.message import Message  # noqa: E402
from protocol.registry import ALL_MESSAGES, PASSWORD_MESSAGES, length_limit  # noqa: E402
from protocol.session_machine import HANDSHAKE, LISTENING, TRANSITIONS, State  # noqa: E402

PAGE = ROOT / "docs" / "protocol-support.md"
_BLOCK = re.compile(r"(<!-- protocol: (?P<name>[a-z-]+) -->\n).*?(<!-- end protocol: (?P=name) -->)", re.DOTALL)
_COPY = frozenset(state for state in State if state.name.startswith("COPY_"))


def layouts() -> str:
    """Every message: its byte, its sender, the limit of its length field and its fields in order."""
    lines = ["| message | byte | sender | length up to | fields |", "| --- | --- | --- | --- | --- |"]
    for kind in ALL_MESSAGES:
        byte = f"`{chr(kind.code)}`" if kind.code is not None else ""
        sender = " and ".join(sorted("client" if one is Direction.FRONTEND else "server" for one in kind.directions))
        fields = [f"Int32 {kind.prefix}"] if kind.prefix is not None else []
        fields += [f"{codec.wire_type} `{name}`" for name, codec in kind.layout]
        lines.append(f"| {kind.__name__} | {byte} | {sender} | {_limit(kind):,} | {'; '.join(fields)} |")
    return "\n".join(lines) + "\n"


def _limit(kind: type[Message]) -> int:
    for phase, answer in PASSWORD_MESSAGES.items():
        if answer is kind and kind.code is not None:
            return length_limit(Direction.FRONTEND, kind.code, phase)
    if kind.prefix is not None and kind.code is not None:
        return MAX_AUTH_TOKEN_LENGTH
    if kind.code is None:
        return kind.limit
    return min(length_limit(direction, kind.code, Phase.SESSION) for direction in kind.directions)


def diagram(states: Iterable[State]) -> str:
    """The edges that leave these states, as Mermaid. What may come at any time is left out: the page says so."""
    chosen = [state for state in State if state in set(states)]
    edges: dict[tuple[State, State, Direction], list[str]] = {}
    for state in chosen:
        for event, target in TRANSITIONS[state].items():
            if target is not state and target is not State.CLOSED:
                edges.setdefault((state, target, event.sender), []).append(event.name)
    shown = [state for state in State if any(state in ends[:2] for ends in edges)]
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f'    state "{state.value}" as {state.name}' for state in shown]
    if State.STARTUP in chosen:
        lines.append("    [*] --> STARTUP")
    for (source, target, sender), names in edges.items():
        who = "client" if sender is Direction.FRONTEND else "server"
        lines.append(f"    {source.name} --> {target.name}: {who} {' / '.join(names)}")
    lines.append("```")
    return "\n".join(lines) + "\n"


def state_table() -> str:
    """Each state: who speaks next, and what is legal without leaving it."""
    lines = ["| state | next to speak | stays in it |", "| --- | --- | --- |"]
    for state, row in TRANSITIONS.items():
        if state is State.CLOSED:
            continue
        stays = sorted({event.name for event, target in row.items() if target is state})
        who = "client" if state in LISTENING else "server"
        if state in (State.COPY_BOTH, State.COPY_BOTH_SERVER_DONE):
            who = "both"
        lines.append(f"| {state.value} | {who} | {', '.join(stays)} |")
    return "\n".join(lines) + "\n"


BLOCKS: dict[str, Callable[[], str]] = {
    "layouts": layouts,
    "opening": lambda: diagram(HANDSHAKE | {State.STARTING}),
    "session": lambda: diagram(set(State) - HANDSHAKE - _COPY - {State.STARTING}),
    "copy": lambda: diagram(_COPY),
    "states": state_table,
}


def render(text: str) -> str:
    """The page with its generated parts renewed. Every block has its place, once."""
    found = [match["name"] for match in _BLOCK.finditer(text)]
    if sorted(found) != sorted(BLOCKS):
        raise SystemExit(f"{PAGE.name} has the blocks {found}, not {list(BLOCKS)}")
    return _BLOCK.sub(lambda match: match[1] + BLOCKS[match["name"]]() + match[3], text)


def main() -> int:
    """Generate or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    old = PAGE.read_text(encoding="utf-8")
    new = render(old)
    if options.check:
        if old != new:
            print(f"{PAGE.name} is out of date: run tools/gen_protocol_docs.py", file=sys.stderr)
        return int(old != new)
    PAGE.write_text(new, encoding="utf-8")
    print(f"{PAGE.name}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
