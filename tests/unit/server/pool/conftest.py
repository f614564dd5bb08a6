"""Leaves no login under way behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.server.pool.pool_rig import Rig


@pytest.fixture(autouse=True)
def _rigs_are_taken_down() -> Iterator[None]:
    yield
    while Rig.made:
        rig = Rig.made.pop()
        rig.loop.run_ready()
        rig.pool.close()
        rig.loop.run_ready()
