"""Many rows at once: nodes that take them from one log, Redis's memory behind the trim, and nodes that are new."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.fleet_nodes import NAMES, Fleet, FleetRow, consumer, is_ready, opened, seconds_until
from quorin.shm import SegmentRegistry
from quorin.snapshot import SnapshotStore


def one_log(fleet: Fleet, rows: int) -> dict[str, float]:
    """Rows a second that each node applies of one log: one node after another, then all at once."""
    for node in fleet.nodes:
        node.ask("stop")
    before = fleet.server.used_memory()
    begun = time.monotonic()
    position = fleet.write(rows, seed=1)
    figures = {"bulk_appended_per_s": rows / (time.monotonic() - begun)}
    figures["log_bytes_per_row"] = (fleet.server.used_memory() - before) / rows
    rates = []
    for node in fleet.nodes:
        begun = time.monotonic()
        node.ask("start")
        rates.append(rows / (node.ask("reach", position) - begun))
    begun = time.monotonic()
    fleet.reach(fleet.write(rows, seed=2))
    figures["bulk_together_per_s"] = rows / (time.monotonic() - begun)
    return figures | {"bulk_slowest_per_s": min(rates), "bulk_fastest_per_s": max(rates)}


def memory_behind_the_trim(fleet: Fleet, rows: int, per_second: float) -> dict[str, float]:
    """Redis's memory while a consumer on the first node trims behind all nodes: at first, and the most of each half."""
    log = fleet.registry.backend.log()
    fleet.nodes[0].ask("stop")
    with consumer(fleet.url, fleet.shm_dir, "--trim"):
        held = fleet.server.used_memory()
        fleet.reach(fleet.write(min(1000, fleet.entities), seed=3))
        seconds_until("the log is trimmed", lambda: fleet.server.used_memory() < held / 2 or log.bounds().trimmed)
        start = fleet.server.used_memory()
        halves = [_most_memory(fleet, rows // 2, seed, per_second) for seed in (4, 5)]
    fleet.nodes[0].ask("start")
    return {
        "memory_start_bytes": start,
        "memory_first_half_bytes": halves[0],
        "memory_second_half_bytes": halves[1],
        "trim_rows": rows,
    }


def _most_memory(fleet: Fleet, rows: int, seed: int, per_second: float) -> int:
    most, step = 0, max(1, rows // 20)
    for number in range(20):
        position = fleet.write(step, seed=seed + number, per_second=per_second)
        most = max(most, fleet.server.used_memory())
    fleet.reach(position)
    return most


def new_nodes(rows: int, tail: int, starts: int) -> dict[str, float]:
    """Seconds from the start of `quorin consumer` on an empty node until it is ready, with a tail of single rows."""
    with ExitStack() as stack:
        fleet = Fleet(stack, 0, rows)
        history, snapshots = fleet.folder / "history", fleet.folder / "snapshots"
        kept = ("--offline", str(history), "--snapshots", str(snapshots), "--snapshot-every", "3s")
        position = fleet.write(rows)
        with consumer(fleet.url, fleet.shm_dir, *kept):
            segment = opened(fleet.registry)
            seconds_until("all rows are applied", lambda: segment.position >= position)
            store = SnapshotStore(snapshots)
            seconds_until(
                "a snapshot with all rows",
                lambda: any(file.position >= position for file in store.snapshots(FleetRow.__name__)),
            )
        with fleet.producer.pipeline(FleetRow) as pipe:
            for number in range(tail):
                pipe.write(f"e{number}", dict.fromkeys(NAMES, float(number)))
        ways = {
            "snapshot": (("--snapshots", str(snapshots)), "snapshot_restored"),
            "history": (("--offline", str(history)), "segment_hydrated"),
        }
        figures: dict[str, float] = {}
        for way, (options, event) in ways.items():
            folders = [fleet.folder / f"{way}{number}" for number in range(starts)]
            taken = [_start(fleet, folder, options, event, pipe.position) for folder in folders]
            figures |= {f"new_{way}_p50_s": float(np.median(taken)), f"new_{way}_longest_s": max(taken)}
        return figures


def _start(fleet: Fleet, shm_dir: Path, options: tuple[str, ...], event: str, position: int) -> float:
    begun = time.monotonic()
    with consumer(fleet.url, shm_dir, "--capacity", str(fleet.entities), *options) as said:
        registry = SegmentRegistry(fleet.url, shm_dir=shm_dir)
        taken = seconds_until("the new node is ready", lambda: is_ready(registry), since=begun)
        with registry.open_current(FleetRow) as segment:
            if segment.position < position or len(segment) != fleet.entities or event not in said.read_text():
                raise SystemExit(f"the new node has {len(segment)} rows; its consumer said:\n{said.read_text()}")
        registry.backend.close()
    return taken
