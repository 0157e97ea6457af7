"""What goes wrong in a fleet: Redis away, appliers killed; and processes that start while it is there and away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import numpy as np

from benchmarks.fleet_nodes import NAMES, Fleet, FleetRow, Node, is_ready, node, opened, seconds_until
from quorin.engine.ops.nodes import observed_nodes
from quorin.follower import PREPARE_SECONDS

FIRST_READ = """
import time
begun = time.monotonic()
import sys
from quorin.assembly import assemble
from quorin.shm import SegmentRegistry
assemble(SegmentRegistry(sys.argv[1], shm_dir=sys.argv[2]).open_stored("FleetRow"), "e0")
print(time.monotonic() - begun)
"""


def many_nodes(count: int, entities: int, rate: int, seconds: float) -> dict[str, float]:
    """Pushes to many nodes, none of them behind a trim: no error anywhere, and in the end all have the same bits."""
    with ExitStack() as stack:
        fleet = Fleet(stack, count, entities)
        fleet.reach(fleet.write(entities))
        fleet.reach(fleet.push(rate, 0.1)[-1][1])
        return _pushed_to_all(fleet, rate, seconds)


def _pushed_to_all(fleet: Fleet, rate: int, seconds: float) -> dict[str, float]:
    pushed = fleet.push(rate, seconds)
    fleet.reach(pushed[-1][1])
    answers = {each.ask("digest", fleet.entities) for each in fleet.nodes}
    errors = sum(each.ask("errors") for each in fleet.nodes)
    buried = len(list(fleet.registry.backend.log().dead_letters()))
    if len(answers) != 1 or errors or buried:
        raise SystemExit(f"{len(answers)} different answers, {errors} errors, {buried} dead letters")
    return {"many_nodes": len(fleet.nodes), "many_rows": len(pushed), "many_seconds": seconds, "many_errors": errors}


def takeovers(fleet: Fleet, kills: int) -> dict[str, float]:
    """Seconds from SIGKILL of the process that applies to the first write that another applies, which waited for it."""
    gaps = []
    with ExitStack() as stack:
        first, shm_dir = fleet.nodes[0], fleet.nodes[0].shm_dir
        appliers = [first, *(stack.enter_context(node(fleet.url, shm_dir)) for _ in range(kills))]
        for applier in appliers[1:]:
            applier.ask("applies")
        # All of them load kernels on the same cores.
        time.sleep(2 * PREPARE_SECONDS + kills)
        segment = opened(fleet.registry)
        for _ in range(kills):
            victim = _applier(appliers)
            os.kill(victim.process.pid, signal.SIGKILL)
            killed = time.monotonic()
            victim.process.join()
            appliers.remove(victim)
            position = fleet.producer.write(FleetRow, "e0", dict.fromkeys(NAMES, 0.0))
            while segment.position < position:
                time.sleep(0.001)
            gaps.append(time.monotonic() - killed)
        return {"takeover_p50_s": float(np.median(gaps)), "takeover_longest_s": max(gaps)}


def _applier(nodes: list[Node]) -> Node:
    while True:
        for each in nodes:
            if each.process.is_alive() and each.ask("applies"):
                return each
        time.sleep(0.01)


def redis_away(fleet: Fleet, seconds: float, starts: int) -> dict[str, float]:
    """Redis ends, with all nodes reading on, and comes back; processes start meanwhile."""
    figures = _first_reads(fleet, starts, "up")
    segment = opened(fleet.registry)
    _expect_ready(fleet, True)
    for each in fleet.nodes:
        each.begin("read", seconds, fleet.entities)
    gone = time.monotonic()
    fleet.server.stop()
    back = threading.Timer(seconds, fleet.server.start)
    back.start()
    figures["lag_shown_s"] = seconds_until("lag shown", lambda: segment.confirmed_age_seconds() > 1.0, since=gone)
    figures["not_ready_s"] = seconds_until("not ready", lambda: not is_ready(fleet.registry), since=gone)
    _expect_ready(fleet, False)
    figures |= _first_reads(fleet, starts, "down")
    back.join()
    returned = time.monotonic()
    figures["ready_again_s"] = seconds_until(
        "the node is ready again", lambda: is_ready(fleet.registry), since=returned
    )
    answers = [each.end() for each in fleet.nodes]
    figures["nodes_fresh_s"] = seconds_until("all nodes fresh", lambda: _all_fresh(fleet), since=returned)
    _expect_ready(fleet, True)
    failed = sum(failures for _, failures in answers)
    return figures | {"away_seconds": seconds, "away_reads": sum(len(t) for t, _ in answers), "away_failed": failed}


def _all_fresh(fleet: Fleet) -> bool:
    """Whether every node that lives shows no lag, as `quorin nodes` asks."""
    backend = fleet.registry.backend
    lags = [one.lag_seconds for one in observed_nodes(backend, [backend.log()]) if one.silent_seconds < 2.0]
    return len(lags) >= len(fleet.nodes) and all(lag is not None and lag < 2.0 for lag in lags)


def _expect_ready(fleet: Fleet, expected: bool) -> None:
    command = [sys.executable, "-m", "quorin", "ready", "-c", fleet.url, "--max-lag", "1s", "--shm-dir"]
    done = subprocess.run([*command, str(fleet.shm_dir)], capture_output=True, text=True, check=False)
    if (done.returncode == 0) is not expected:
        raise SystemExit(f"quorin ready ended with {done.returncode}: {done.stdout}{done.stderr}")


def _first_reads(fleet: Fleet, starts: int, state: str) -> dict[str, float]:
    """Seconds of import and first read in fresh processes of a node that is served already."""
    command, taken = [sys.executable, "-c", FIRST_READ, fleet.url, str(fleet.shm_dir)], []
    for _ in range(starts):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"a process that started while Redis was {state} could not read:\n{done.stderr}")
        taken.append(float(done.stdout))
    return {f"first_read_{state}_p50_s": float(np.median(taken)), f"first_read_{state}_longest_s": max(taken)}
