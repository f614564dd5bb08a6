"""One small real cluster, and a front door before it, for the whole folder."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.embedded import EmbeddedCluster, EmbeddedOptions
from tests.integration.front_door.relay_opener import RelayOpener
from tests.unit.server.front_door.door_harness import Door, DoorThread, make_config

SETTINGS = {"shared_buffers": "16MB", "max_wal_size": "64MB", "min_wal_size": "32MB", "fsync": "off"}


@pytest.fixture(scope="module")
def gate() -> Iterator[Door]:
    """The front door on uvloop, with sessions that are relayed to a backend of the client's own."""
    place = Path(tempfile.mkdtemp(prefix="rdb-"))  # pytest's own directories are closed to the engine's user
    place.chmod(0o755)
    thread = DoorThread()
    cluster = EmbeddedCluster(EmbeddedOptions(place / "data", max_connections=40, settings=SETTINGS))
    door: Door | None = None
    try:
        thread.run(cluster.start())
        config = make_config(place / "data", server={"unix_socket_dir": place / "s"})
        door = Door(thread, config, cluster.control, RelayOpener(cluster.address))
        thread.run(door.front_door.start())
        yield door
        assert thread.loop_errors == []
    finally:
        if door is not None:
            door.hang_up()
            thread.run(door.front_door.close())
        thread.run(asyncio.wait_for(cluster.stop("immediate"), 20))
        thread.close()
        shutil.rmtree(place, ignore_errors=True)
