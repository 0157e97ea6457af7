"""A server that sends its rows to a new node goes on answering."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from quorin.engine.http.donor import Donor
from quorin.schema import FeatureField, dtype, make_schema
from tests.support.machines import Machine

PAIR = make_schema("Pair", [FeatureField("a", dtype.float64), FeatureField("b", dtype.string)])


def test_requests_are_answered_between_the_parts_of_a_block(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    for number in range(20):
        machine.producer.write(PAIR, f"e{number}", {"a": 1.0, "b": "long text" * 10_000})
    machine.drain([PAIR])
    turns, turns_at_parts, sizes = 0, [], []

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body" and message["body"]:
            turns_at_parts.append(turns)
            sizes.append(len(message["body"]))

    async def transfer() -> None:
        beside = asyncio.create_task(others())
        await Donor(machine.registry)({"query_string": b"schema=Pair"}, receive, send)
        beside.cancel()

    asyncio.run(transfer())
    machine.close()
    assert len(sizes) > 20
    assert max(sizes) <= 64 << 10
    assert len(set(turns_at_parts)) == len(turns_at_parts), "no two parts in one turn of the event loop"
