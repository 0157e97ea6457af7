"""What the machine takes for the least that a log could do, so that figures of different machines can be compared."""

from __future__ import annotations

import multiprocessing
import sqlite3
import time
from pathlib import Path
from typing import Any

import numpy as np
import redis

from benchmarks import measuring

STREAM = "yardstick"
spawn = multiprocessing.get_context("spawn")


def of_redis(url: str, *, calls: int) -> dict[str, float]:
    """p50 in nanoseconds of a PING on one connection, packed before, and of an entry's way from XADD into another
    process that is blocked in XREAD.
    """
    with redis.Redis.from_url(url) as client:
        connection: Any = client.connection_pool.make_connection()
        packed = connection.pack_command("PING")

        def ping() -> None:
            connection.send_packed_command(packed)
            connection.read_response()

        samples = measuring.interleave({"ping": ping}, rounds=5, calls={"ping": max(1, calls // 5)})
        connection.disconnect()
        return {
            "ping_p50": measuring.summary([samples])["ping"]["p50"],
            "hand_over_p50": _hand_over(client, url, calls),
        }


def of_sqlite(path: Path, *, calls: int) -> dict[str, float]:
    """p50 in nanoseconds of one row inserted and committed, in WAL mode, synchronous NORMAL."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("CREATE TABLE entry (position INTEGER PRIMARY KEY, body BLOB)")
        body = bytes(200)
        insert = {"insert": lambda: connection.execute("INSERT INTO entry (body) VALUES (?)", (body,))}
        samples = measuring.interleave(insert, rounds=5, calls={"insert": max(1, calls // 5)})
    finally:
        connection.close()
    return {"insert_p50": measuring.summary([samples])["insert"]["p50"]}


def _hand_over(client: Any, url: str, calls: int) -> float:
    """One entry at a time, each sent once the last has arrived, so that the reader is blocked when it comes."""
    ours, theirs = spawn.Pipe()
    reader = spawn.Process(target=_receive, args=(url, theirs, calls))
    reader.start()
    try:
        ours.recv()
        taken = []
        for _ in range(calls):
            time.sleep(0.0005)
            sent = time.perf_counter_ns()
            client.xadd(STREAM, {"body": bytes(200)})
            taken.append(ours.recv() - sent)
    finally:
        reader.join(60)
        client.delete(STREAM)
    return float(np.median(taken))


def _receive(url: str, to: Any, calls: int) -> None:
    """Say when each entry came: Linux has one monotonic clock for all processes."""
    with redis.Redis.from_url(url) as client:
        last: Any = "0"
        to.send(0)
        for _ in range(calls):
            found: Any = client.xread({STREAM: last}, count=1, block=60_000)
            to.send(time.perf_counter_ns())
            last = found[0][1][0][0]
