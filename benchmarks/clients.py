"""Load generators, each a process of its own: `python -m benchmarks.clients KIND JSON` prints one JSON object.

They do as little as a client can: bulk results are read into one buffer and thrown away, and the expensive half of
SCRAM is computed once.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.support.target import Target
from tests.support.wire_client import WireClient, copy_data, copy_done, query

READY = b"Z\x00\x00\x00\x05I"
COPY_MESSAGE_BYTES = 65536


def drain(client: WireClient, buffer: bytearray) -> int:
    """Read up to ReadyForQuery outside a transaction, without looking at messages; returns the bytes read."""
    view = memoryview(buffer)
    total = 0
    tail = b""
    while True:
        count = client.socket.recv_into(view)
        if not count:
            raise ConnectionError("the server closed the connection")
        total += count
        tail = (tail + bytes(view[max(0, count - 6) : count]))[-6:]
        if tail == READY:
            return total


def read_rows(target: Target, sql: str) -> dict[str, float]:
    """Seconds until the last byte of a large result."""
    with WireClient.login(target, timeout_seconds=300) as client:
        buffer = bytearray(1 << 20)
        client.simple("SELECT 1")
        began = time.perf_counter()
        client.send(query(sql))
        total = drain(client, buffer)
        return {"seconds": time.perf_counter() - began, "bytes": float(total)}


def write_rows(target: Target, table: str, row: str, rows: int) -> dict[str, float]:
    """Seconds to COPY `rows` copies of `row` in, in messages of 64 KiB."""
    data = row.encode()
    per_message = max(1, COPY_MESSAGE_BYTES // len(data))
    message, rest = copy_data(data * per_message), copy_data(data * (rows % per_message))
    with WireClient.login(target, timeout_seconds=300) as client:
        client.simple(f"TRUNCATE {table}")
        began = time.perf_counter()
        client.send(query(f"COPY {table} FROM STDIN"))
        client.recv_match("G")
        for _ in range(rows // per_message):
            client.socket.sendall(message)
        client.socket.sendall(rest + copy_done())
        (tag, _) = client.recv_match("C", "Z")
        seconds = time.perf_counter() - began
        if tag.text != f"COPY {rows}":
            raise ValueError(f"COPY ended with {tag.text}")
        return {"seconds": seconds}


def connect_often(target: Target, seconds: float) -> dict[str, float]:
    """Logins up to ReadyForQuery, each closed at once, from one thread for `seconds`."""
    WireClient.login(target).close()
    done = 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        WireClient.login(target).close()
        done += 1
    return {"connects": float(done), "seconds": time.perf_counter() - began}


def stay_idle(target: Target, count: int) -> dict[str, float]:
    """Open `count` connections, say so on standard output, and keep them until standard input ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, count + 200), hard), hard))
    clients: list[WireClient] = []
    lock = threading.Lock()

    def open_some(number: int) -> None:
        for _ in range(number):
            client = WireClient.login(target, timeout_seconds=60)
            with lock:
                clients.append(client)

    threads = [threading.Thread(target=open_some, args=(count // 8,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"open": len(clients)}), flush=True)
    sys.stdin.read()
    for client in clients:
        client.abort()
    return {"closed": float(len(clients))}


KINDS: dict[str, Callable[..., dict[str, float]]] = {
    "read_rows": read_rows,
    "write_rows": write_rows,
    "connect_often": connect_often,
    "stay_idle": stay_idle,
}


def main() -> None:
    kind, text = sys.argv[1:]
    arguments: dict[str, Any] = json.loads(text)
    target = Target(**arguments.pop("target"))
    print(json.dumps(KINDS[kind](target, **arguments)))


if __name__ == "__main__":
    main()
