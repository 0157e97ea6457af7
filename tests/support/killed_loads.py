"""Loads whose processes are killed at each of their steps, for tests on every control plane."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from quorin import assembly, layout
from quorin.engine.consumer import stage
from quorin.engine.consumer.stage import Stage
from quorin.engine.history.store import ParquetDatasetStore
from quorin.engine.loads import replacing
from quorin.engine.loads.coordinator import Coordinator
from quorin.engine.memory import file as mapping
from quorin.engine.memory.segment import Segment
from quorin.engine.memory.staged import Staged
from quorin.engine.memory.writer import Writer
from quorin.hydration import hydrate
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.watchdog import WatchdogState
from tests.support.machines import Machine

ROW = make_schema("Row", [FeatureField("number", dtype.int64), FeatureField("text", dtype.string)])
OLD = {f"e{i}": i for i in range(20)}
NEW = {f"e{i}": 100 + i for i in range(10, 30)}
PUSHED = {"e15": 1000, "pushed": 1001}


def table(rows: dict[str, int]) -> dict[str, Any]:
    return {"entity_id": list(rows), "number": list(rows.values()), "text": [f"t{number}" for number in rows.values()]}


def served(registry: SegmentRegistry) -> dict[str, int]:
    with registry.open_stored("Row") as segment:
        rows = assembly.scan(segment).read_all().to_pylist()
    assert all(row["text"] == f"t{row['number']}" for row in rows)
    return {row["entity_id"]: row["number"] for row in rows}


def _steps(machine: Machine) -> list[tuple[Any, str]]:
    """What is called at each step of a replacement or a rollback; a process dies before or after any of the calls."""
    backend = machine.registry.backend
    return [
        (type(backend), "append_part"),
        (type(backend.log(partition=0)), "append"),
        (type(backend.control), "swap_load"),
        (replacing, "run"),
        (Coordinator, "rows"),
        (SegmentRegistry, "create"),
        (Stage, "fill"),
        (Stage, "complete"),
        (Staged, "beside"),
        (stage, "apply_batch"),
        (layout, "apply_located"),
        (Staged, "put_in_force"),
        (mapping.Mapping, "rename"),
        (Segment, "replace"),
        (Writer, "exchange"),
        (Writer, "settle"),
        (mapping, "unlink"),
        (ParquetDatasetStore, "commit_load"),
        (ParquetDatasetStore, "flush"),
        (type(backend.log(partition=0)), "trim"),
    ]


def killed(machine: Machine, action: Callable[[], None], at: int) -> bool:
    """Run ``action`` in a forked child that is killed at its step ``at``; False if it has fewer steps."""
    child = os.fork()
    if not child:
        try:
            left = at

            def step() -> None:
                nonlocal left
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

            _append_one_by_one(type(machine.registry.backend))
            for owner, name in _steps(machine):
                _count(owner, name, step)
            action()
            os._exit(0)
        finally:
            os._exit(9)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def _count(owner: Any, name: str, step: Callable[[], None]) -> None:
    original = getattr(owner, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        step()
        result = original(*arguments, **options)
        step()
        return result

    setattr(owner, name, staticmethod(counted) if name == "beside" else counted)


def _append_one_by_one(backend: Any) -> None:
    """Entries for several logs are sent at once; a process may die when some of the logs have theirs."""
    original = backend.append_together

    def one_by_one(self: Any, parts: Any, **options: Any) -> list[Any]:
        return [result for part in parts for result in type(self).append_part(self, [part], **options)]

    backend.append_part, backend.append_together = original, one_by_one


def serve_old_rows(machine: Machine) -> None:
    """The old rows, in the segment, in the history, and no longer in the log."""
    machine.registry.create(ROW, capacity=8).close()
    machine.producer.write_many(ROW, table(OLD))
    machine.drain(ROW)


def without_pushed(rows: dict[str, int]) -> dict[str, int]:
    """The rows whose entities nothing was pushed of."""
    return {name: number for name, number in rows.items() if name not in PUSHED}


def everything_is(machine: Machine, rows: dict[str, int]) -> None:
    """Segment, history, and a segment that is hydrated from it have these rows, and nothing else is left."""
    machine.drain(ROW)
    assert served(machine.registry) == rows
    found = machine.store().latest_features(ROW).to_pylist()
    assert {row["entity_id"]: row["number"] for row in found} == rows
    watchdog = WatchdogState(machine.registry.backend, shm_dir=machine.shm, miss_threshold=1)
    watchdog.run_one_tick()
    current = machine.registry.current_name("Row")
    assert [path.name for path in machine.shm.glob("quorin_Row_*") if path.suffix != ".kept"] == [current]
    machine.reboot()
    hydrate(ROW, machine.store(), machine.registry)
    machine.drain(ROW)
    assert served(machine.registry) == rows
