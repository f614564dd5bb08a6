"""A front end reduced to its engine, for tests that kill it: says "ready <engine pid>", then does what it is told.

front_end.py DATA_DIR [--as USER] [--superuser] [--leave] -- [setting=value ...]
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import asyncpg

from engine.capabilities import EngineInfo
from engine.embedded import EmbeddedCluster, EmbeddedOptions
from engine.errors import EngineError


class Printer:
    """Says what it is told."""

    def engine_ready(self, info: EngineInfo) -> None:
        print("epoch", info.epoch, flush=True)

    def engine_lost(self, reason: str) -> None:
        print("lost", reason, flush=True)

    def engine_stopped(self) -> None:
        print("stopped", flush=True)


async def serve(cluster: EmbeddedCluster, leave: bool) -> None:
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ending.set)
    loop.add_signal_handler(signal.SIGINT, lambda: print("interrupted", flush=True))
    await cluster.start()
    print("ready", cluster.pid, flush=True)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def commands() -> None:
        while line := (await reader.readline()).decode().strip():
            if line.startswith("sql "):
                try:
                    answer = await cluster.control.fetchval(line[4:], database="postgres")
                except (EngineError, asyncpg.PostgresError) as error:
                    answer = error
                print("answer", answer, flush=True)
            elif line.startswith("user"):
                print("answer", os.geteuid(), flush=True)
        ending.set()

    task = asyncio.create_task(commands())
    await ending.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    if not leave:
        await cluster.stop()


def main() -> int:
    split = sys.argv.index("--")
    arguments, settings = sys.argv[2:split], dict(pair.split("=", 1) for pair in sys.argv[split + 1 :])
    frontend = arguments[arguments.index("--as") + 1] if "--as" in arguments else None
    options = EmbeddedOptions(
        data_dir=Path(sys.argv[1]),
        max_connections=30,
        settings=settings,
        superuser="--superuser" in arguments,
        frontend_os_user=frontend,
    )
    cluster = EmbeddedCluster(options, Printer())
    try:
        cluster.prepare()
        cluster.give_up_root()
        asyncio.run(serve(cluster, "--leave" in arguments))
    except EngineError as error:
        print("error", str(error).replace("\n", " | "), flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
