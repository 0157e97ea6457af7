"""Flight features, from CSV files to reads out of shared memory, in about a minute.

Prepares the sources, runs `feast apply` and `feast materialize` for 2013 up to Christmas Eve, then serves: worker
processes read as fast as they can while this process pushes the landings of the last week of the year, hour by hour.
At the end every worker reads all aircraft, and what it gets must equal the newest rows of the Parquet file.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from feast import FeatureStore
from feast.data_source import PushMode
from prepare import prepare
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from quorin.logging import shown

REPO = Path(__file__).resolve().parent
DATA = REPO / "data"
YEAR_BEGINS, REPLAY_BEGINS = datetime(2013, 1, 1, tzinfo=UTC), datetime(2013, 12, 25, tzinfo=UTC)
FOUR_FEATURES = [
    f"aircraft_delays:{name}" for name in ("landings_7d", "mean_arr_delay_7d", "worst_arr_delay_7d", "late_share_7d")
]

console = Console(highlight=False)


def main() -> None:
    """Run the example, or only remove what an earlier run left."""
    arguments = _arguments()
    # Importing Feast is mostly typeguard preparing checks, which Python leaves out when it is started so.
    os.environ["PYTHONOPTIMIZE"] = "1"
    config = _config_file(arguments.redis_url)
    if arguments.teardown:
        _tear_down(config)
        return
    with step("Parquet sources from the flights of 2013") as say:
        sizes = dict(prepare(DATA))
        say(f"{sum(sizes.values()):,} rows in {len(sizes)} files")
    if (DATA / "registry.db").exists():
        with step("feast teardown of an earlier run"):
            _feast(config, "teardown")
    with step("feast apply"):
        _feast(config, "apply")
    with step("feast materialize, up to 2013-12-25") as say:
        _feast(config, "materialize", f"{YEAR_BEGINS:%Y-%m-%dT%H:%M:%S}", f"{REPLAY_BEGINS:%Y-%m-%dT%H:%M:%S}")
        say(f"{_online_rows():,} online rows")
    pushes, reports = _serve(config, workers=arguments.workers, seconds=arguments.seconds)
    _show(pushes, reports, arguments.redis_url)
    _compare_with_parquet(reports)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=_at_least_one, default=2, help="reading processes (default: %(default)s)")
    parser.add_argument("--seconds", type=_at_least_one, default=10, help="how long they read (default: %(default)s)")
    parser.add_argument("--redis-url", help="keep the log and control plane in this Redis instead of feature_repo/data")
    parser.add_argument("--teardown", action="store_true", help="only remove what an earlier run left, then stop")
    return parser.parse_args()


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {number}")
    return number


def _config_file(redis_url: str | None) -> Path:
    """The repo's feature_store.yaml; with a Redis, a copy of it that names the Redis."""
    plain = REPO / "feature_store.yaml"
    if redis_url is None:
        return plain
    config = yaml.safe_load(plain.read_text())
    config["online_store"]["redis_url"] = redis_url
    DATA.mkdir(parents=True, exist_ok=True)
    copy = DATA / "feature_store.redis.yaml"
    copy.touch(mode=0o600)  # the URL may hold a password
    copy.write_text(yaml.safe_dump(config, sort_keys=False))
    return copy


def _feast(config: Path, *command: str) -> None:
    """The real command line, as a user types it; its output only if it fails."""
    feast = Path(sys.executable).with_name("feast")
    done = subprocess.run([feast, "-c", REPO, "-f", config, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"feast {' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def _tear_down(config: Path) -> None:
    if (DATA / "registry.db").exists():
        with step("feast teardown"):
            _feast(config, "teardown")
    shutil.rmtree(DATA, ignore_errors=True)


# --- serving ----------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What one worker process saw: rows × features and latencies in nanoseconds by request, all aircraft at the end."""

    pid: int
    shapes: dict[str, str]
    latencies_ns: dict[str, list[int]]
    aircraft: dict[str, list[Any]]
    updates_seen: int
    segments: dict[str, int]


@dataclass
class Pushes:
    """What the writer did: how long each push took, and how many rows it carried."""

    seconds: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)


def _serve(config: Path, *, workers: int, seconds: int) -> tuple[Pushes, list[Report]]:
    """Start the workers, push the last week of the year meanwhile, and collect their reports."""
    spawn = mp.get_context("spawn")
    ready, go = spawn.Barrier(workers + 1), spawn.Event()
    pipes, processes = [], []
    with step(f"{workers} worker processes started"):
        for number in range(workers):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_worker, args=(config, number, seconds, ready, go, theirs), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        store = FeatureStore(repo_path=str(REPO), fs_yaml_file=config)
        ready.wait(timeout=120)
    go.set()
    pushes = _push_last_week(store, seconds)
    for pipe in pipes:
        pipe.send("all pushed")
    reports = [_received(pipe, process) for pipe, process in zip(pipes, processes, strict=True)]
    for process in processes:
        process.join()
    return pushes, reports


def _received(pipe: Connection, process: Any) -> Report:
    try:
        report: Report = pipe.recv()
    except EOFError:
        process.join()
        raise SystemExit(f"worker {process.pid} ended with exit code {process.exitcode} before it reported") from None
    return report


def _push_last_week(store: FeatureStore, seconds: int) -> Pushes:
    """Push the landings after REPLAY_BEGINS, one hour of them at a time, spread over `seconds`."""
    landings = pd.read_parquet(DATA / "aircraft_delays.parquet")
    landings = landings[landings["event_timestamp"] > REPLAY_BEGINS].sort_values("event_timestamp")
    hours = [rows for _, rows in landings.groupby(landings["event_timestamp"].dt.floor("h"))]
    pushes, begin = Pushes(), time.monotonic()
    with _progress() as progress:
        task = progress.add_task("reading, and pushing the last week by the hour", total=len(hours))
        for number, rows in enumerate(hours):
            time.sleep(max(0.0, begin + seconds * number / len(hours) - time.monotonic()))
            before = time.perf_counter()
            store.push("landings", rows, to=PushMode.ONLINE)
            pushes.seconds.append(time.perf_counter() - before)
            pushes.rows.append(len(rows))
            progress.advance(task)
    return pushes


def _worker(config: Path, number: int, seconds: int, ready: Any, go: Any, pipe: Connection) -> None:
    """Read at full speed, in turn one aircraft, the whole service for one flight, and for a hundred flights."""
    store = FeatureStore(repo_path=str(REPO), fs_yaml_file=config)
    service = store.get_feature_service("flight_delay")
    rng = np.random.default_rng(number)
    flights = _flights()
    tails = sorted({flight["tailnum"] for flight in flights})

    def read(features: Any, rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
        return store.get_online_features(features, rows).to_dict()

    requests: dict[str, Callable[[], dict[str, list[Any]]]] = {
        "one aircraft": lambda: read(FOUR_FEATURES, [{"tailnum": tails[rng.integers(len(tails))]}]),
        "one flight, whole service": lambda: read(service, [flights[rng.integers(len(flights))]]),
        "100 flights, whole service": lambda: read(service, [flights[i] for i in rng.integers(len(flights), size=100)]),
    }
    shapes = {name: _shape(request()) for name, request in requests.items()}
    seen = _aircraft(store, tails)
    updates = 0
    ready.wait(timeout=120)
    go.wait()
    latencies: dict[str, list[int]] = {name: [] for name in requests}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, request in requests.items():
            for _ in range(10 if name.startswith("100") else 100):
                before = time.perf_counter_ns()
                request()
                latencies[name].append(time.perf_counter_ns() - before)
        now = _aircraft(store, tails)
        updates += _changed(seen, now)
        seen = now
    pipe.recv()
    now = _aircraft(store, tails)
    pipe.send(Report(os.getpid(), shapes, latencies, now, updates + _changed(seen, now), _mapped_segments()))


def _shape(answer: dict[str, list[Any]]) -> str:
    keys = {"tailnum", "origin", "carrier", "flight_number", "minutes_since_landing"}
    return f"{len(answer['tailnum'])} × {len(answer.keys() - keys)}"


def _aircraft(store: FeatureStore, tails: list[str]) -> dict[str, list[Any]]:
    names = ["aircraft_delays:last_airport", *FOUR_FEATURES]
    return store.get_online_features(names, [{"tailnum": tail} for tail in tails]).to_dict(
        include_event_timestamps=True
    )


def _changed(before: dict[str, list[Any]], after: dict[str, list[Any]]) -> int:
    """How many aircraft have a newer row; an older one than before would be a fault."""
    old, new = (_event_times(answer) for answer in (before, after))
    if (new < old).any():
        tail = after["tailnum"][int(np.argmax(new < old))]
        raise RuntimeError(f"aircraft {tail} went back in time between two reads")
    return int((new > old).sum())


def _event_times(answer: dict[str, list[Any]]) -> np.ndarray:
    times = answer["landings_7d__ts"]
    return pd.to_datetime(pd.Series(times), utc=True).astype("int64").to_numpy()


def _flights() -> list[dict[str, Any]]:
    """Requests as they come in before a departure: the keys of 5,000 real flights."""
    numbers = pd.read_parquet(
        DATA / "flight_punctuality.parquet", columns=["carrier", "flight_number"]
    ).drop_duplicates()
    tails = pd.read_parquet(DATA / "aircraft_delays.parquet", columns=["tailnum"])["tailnum"].unique()
    origins = ["EWR", "JFK", "LGA"]
    return [
        {
            "tailnum": tails[row % len(tails)],
            "origin": origins[row % 3],
            "carrier": flight.carrier,
            "flight_number": flight.flight_number,
            "minutes_since_landing": 30 + row % 90,
        }
        for row, flight in enumerate(numbers.drop_duplicates().head(5000).itertuples())
    ]


def _mapped_segments() -> dict[str, int]:
    """The segments that this process maps, with their sizes in bytes, as the kernel tells it."""
    paths = set(re.findall(r"/\S*/quorin_[^/\s]+$", Path("/proc/self/maps").read_text(), re.MULTILINE))
    return {path: Path(path).stat().st_size for path in sorted(paths) if Path(path).exists()}


# --- what was seen ----------------------------------------------------------------------------------------------------


def _show(pushes: Pushes, reports: list[Report], redis_url: str | None) -> None:
    title = f"{len(reports)} processes read while another pushed ({os.cpu_count()} cores for all)"
    table = Table(title=title, title_justify="left")
    table.add_column("request, with to_dict()")
    for heading in ("rows × features", "reads", "p50", "p99"):
        table.add_column(heading, justify="right")
    for name, shape in reports[0].shapes.items():
        latencies = np.concatenate([report.latencies_ns[name] for report in reports]) / 1e9
        table.add_row(name, shape, f"{len(latencies):,}", *_percentiles(latencies))
    rows = f"{np.mean(pushes.rows):.0f} × 5"
    table.add_row("push, until it can be read", rows, f"{len(pushes.rows):,}", *_percentiles(np.array(pushes.seconds)))
    console.print()
    console.print(table)
    updates = ", ".join(f"{report.updates_seen:,} (pid {report.pid})" for report in reports)
    console.print(f"  {sum(pushes.rows):,} rows pushed; updates seen: {updates}")
    segments = {Path(path): size for report in reports for path, size in report.segments.items()}
    for directory in {path.parent for path in segments}:
        console.print(
            f"  read from {len(segments)} segments in {directory}, {sum(segments.values()) / 1e6:.1f} MB in all:"
        )
    for path in sorted(segments):
        console.print(f"    {path.name}", style="dim")
    console.print(f"  log and control plane: {shown(redis_url) if redis_url else DATA / 'quorin'}")


def _percentiles(seconds: np.ndarray) -> list[str]:
    return [_duration(value) for value in np.percentile(seconds, [50, 99])]


def _duration(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def _compare_with_parquet(reports: list[Report]) -> None:
    """Every worker's last answer against the newest row of each aircraft in the source."""
    source = (
        pd.read_parquet(DATA / "aircraft_delays.parquet").drop_duplicates("tailnum", keep="last").set_index("tailnum")
    )
    names = ["last_airport", *(name.partition(":")[2] for name in FOUR_FEATURES)]
    for report in reports:
        served = pd.DataFrame({name: report.aircraft[name] for name in names}, index=report.aircraft["tailnum"])
        expected = source.loc[served.index, names]
        same = (served.to_numpy() == expected.to_numpy()).all(axis=1)
        if not same.all():
            tail = served.index[int(np.argmin(same))]
            raise SystemExit(
                f"worker {report.pid}: {(~same).sum():,} of {len(same):,} aircraft differ from Parquet; "
                f"{tail}: served {served.loc[tail].to_dict()}, expected {expected.loc[tail].to_dict()}"
            )
    console.print(f"  [green]✓[/] every worker reads all {len(source):,} aircraft as Parquet's newest rows have them")
    console.print("  left in place to be looked at; run.py --teardown removes it", style="dim")


def _online_rows() -> int:
    keys = {
        "aircraft_delays": ["tailnum"],
        "aircraft_facts": ["tailnum"],
        "origin_carrier_departures": ["origin", "carrier"],
        "flight_punctuality": ["carrier", "flight_number"],
        "origin_weather": ["origin"],
    }
    total = 0
    for name, columns in keys.items():
        rows = pd.read_parquet(DATA / f"{name}.parquet", columns=[*columns, "event_timestamp"])
        total += len(rows[rows["event_timestamp"] <= REPLAY_BEGINS][columns].drop_duplicates())
    return total


def _progress() -> Progress:
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


@contextmanager
def step(title: str) -> Iterator[Callable[[str], None]]:
    """Show that something is being done, then how long it took and what came of it."""
    notes: list[str] = []
    begin = time.monotonic()
    with console.status(f"{title} ..."):
        yield notes.append
    note = f": {notes[0]}" if notes else ""
    console.print(f"  [green]✓[/] {title}{note} [dim]({time.monotonic() - begin:.1f} s)[/]")


if __name__ == "__main__":
    main()
