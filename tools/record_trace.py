"""`python -m tools.record_trace [NAME ...]`: rewrite the golden traces tests/traces/NAME.trace from the bare engine."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.engine_process import BareEngine
from tests.support.trace_runner import prepare, run_file

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "traces"


def main(names: list[str]) -> int:
    engine = BareEngine().start()
    try:
        prepare(engine.target)
        for path in sorted(FOLDER.glob("*.trace")):
            if names and path.stem not in names:
                continue
            recorded = run_file(path, engine.target)
            changed = recorded != path.read_text()
            path.write_text(recorded)
            print(f"{path.stem}: {'changed' if changed else 'same'}")
    finally:
        engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
