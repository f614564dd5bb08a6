"""`python -m server ...` is `rustydb ...`."""

from __future__ import annotations

from server.cli import main

main(prog_name="python -m server")
