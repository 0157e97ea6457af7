"""Timing several rivals in turn, in several fresh processes, and what comes of it.

Rivals take turns in short rounds, so that whatever disturbs the machine disturbs all of them. Every call is timed by
itself; the clock's own cost is part of each figure and is measured as a case of its own (an empty function).
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

QUANTILES = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
CURVE = {"p1": 0.01, "p10": 0.1, "p25": 0.25, "p75": 0.75, "p90": 0.9}

Samples = dict[str, "np.ndarray[tuple[int], np.dtype[np.int64]]"]


def interleave(
    cases: Mapping[str, Callable[..., object]],
    *,
    rounds: int,
    calls: Mapping[str, int],
    prepare: Mapping[str, Callable[[], object]] | None = None,
) -> Samples:
    """Nanoseconds of every call: `calls[name]` calls of each case a round, after one round that does not count.

    What `prepare[name]` gives, if there is one, is made before each call, outside the time, and handed to it. Python's
    cyclic collector is off meanwhile, as it would hit whichever case happens to run.
    """
    taken: dict[str, list[int]] = {name: [] for name in cases}
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds + 1):
            for name, call in cases.items():
                times = _time_calls(call, calls[name], (prepare or {}).get(name))
                if number:
                    taken[name] += times
    finally:
        gc.enable()
    return {name: np.array(times, dtype=np.int64) for name, times in taken.items()}


def in_fresh_processes(module: str, arguments: Sequence[str], *, count: int) -> Iterator[Samples]:
    """Run `python -m module *arguments` `count` times, one after another; each prints its samples with `send`."""
    for number in range(count):
        command = [sys.executable, "-m", module, *arguments, "--seed", str(number)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
        samples = json.loads(done.stdout.splitlines()[-1])
        yield {name: np.array(times, dtype=np.int64) for name, times in samples.items()}


def send(samples: Samples) -> None:
    """Hand samples to the process that started this one."""
    print(json.dumps({name: times.tolist() for name, times in samples.items()}))


def summary(runs: Sequence[Samples]) -> dict[str, dict[str, float]]:
    """By case: quantiles in nanoseconds over all calls of all processes (of `QUANTILES`, which tables show, and of
    `CURVE`, which pictures add), and the lowest and highest process's p50.
    """
    figures = {}
    for name in runs[0]:
        times = np.concatenate([run[name] for run in runs])
        medians = [float(np.median(run[name])) for run in runs]
        figures[name] = {label: float(np.quantile(times, q)) for label, q in (QUANTILES | CURVE).items()}
        figures[name] |= {"p50_lowest": min(medians), "p50_highest": max(medians), "calls": float(len(times))}
    return figures


def duration(nanoseconds: float) -> str:
    """Three digits and a unit."""
    for unit, scale in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= scale:
            return f"{nanoseconds / scale:.3g} {unit}"
    return f"{nanoseconds:.0f} ns"


def p50_and_p99(figures: Mapping[str, float], name: str) -> str:
    """The percentiles that stand under ``{name}_p50`` and ``{name}_p99``, in nanoseconds, as text."""
    return " / ".join(duration(figures[f"{name}_{label}"]) for label in ("p50", "p99"))


def spread(row: Mapping[str, float]) -> str:
    """The lowest and the highest process's p50; "" where one process measured."""
    if "p50_lowest" not in row or row["p50_lowest"] == row["p50_highest"]:
        return ""
    return f"{duration(row['p50_lowest'])} to {duration(row['p50_highest'])}"


def _time_calls(call: Callable[..., object], count: int, prepare: Callable[[], object] | None) -> list[int]:
    clock = time.perf_counter_ns
    times = [0] * count
    for number in range(count if prepare else 0):
        argument = prepare()  # type: ignore[misc]
        before = clock()
        call(argument)
        times[number] = clock() - before
    for number in range(0 if prepare else count):
        before = clock()
        call()
        times[number] = clock() - before
    return times
