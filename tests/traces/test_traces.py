"""Golden wire traces: the same conversation with the bare engine and with RustyDB, compared with the file.

A file is recorded from the bare engine by `python -m tools.record_trace`. Where RustyDB differs for a good reason,
`accepted/` holds its own version of the file, whose first comment tells the reason.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fixtures import chosen_targets
from tests.support.rustydb_process import RustyServer
from tests.support.target import ENGINE, RUSTYDB, Target
from tests.support.trace_runner import prepare, run_file

FOLDER = Path(__file__).parent
TRACES = sorted(FOLDER.glob("*.trace"))

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60, method="signal")]


@pytest.fixture(scope="module", params=[ENGINE, RUSTYDB])
def traced(request: pytest.FixtureRequest) -> Iterator[Target]:
    """A target with the role and the database of the traces. RustyDB is started without TLS, as the bare engine is."""
    name: str = request.param
    if name not in chosen_targets():
        pytest.skip("left out by RUSTYDB_TEST_TARGETS")
    if name == ENGINE:
        target: Target = request.getfixturevalue("engine").target
        prepare(target)
        yield target
        return
    server = RustyServer({"TLS__MODE": "disable"})
    try:
        prepare(server.start().target)
        yield server.target
    finally:
        server.close()


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_conversation_matches_the_golden_trace(path: Path, traced: Target) -> None:
    accepted = FOLDER / "accepted" / path.name
    golden = accepted if traced.name == RUSTYDB and accepted.exists() else path
    expected = golden.read_text()
    actual = run_file(golden, traced)
    difference = difflib.unified_diff(
        expected.splitlines(), actual.splitlines(), str(golden.name), traced.name, "", "", 6, ""
    )
    assert actual == expected, "\n".join(difference)
