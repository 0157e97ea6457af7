"""Several nodes on one Redis: how soon a write on one is visible on another, what following costs, and what fails.

Each node is a process with a `shm_dir` of its own and a follower thread, as a serving process with `redis_url` has; the
rows are pushed by another process of the first node. `visible` ends when the segment of another node has passed the
write's position; the first pushes, which load code, do not count. Beside it, in the same run, Feast's own Redis store:
from the call of `push` to the moment when another process reads the value. "Reads beside the follower" are bursts of
single reads in the process whose thread applies. New nodes are `quorin consumer`, from its start until `quorin ready`
would pass. A run that finds an error, a lost row or two nodes that differ fails.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import fleet_bulk, fleet_failures, fleet_feast, machine, measuring, report
from benchmarks.fleet_nodes import Fleet, Node


def main() -> None:
    """Measure, print a table, and with `--json` and `--docs` write it."""
    arguments = _arguments()
    console = Console(highlight=False, width=110)
    where = machine.describe()
    console.print(machine.one_line(where), style="dim", soft_wrap=True)
    figures = _measure(arguments)
    table = _table(figures, arguments)
    console.print(table)
    report.keep(arguments, "fleet", where, {"fleet": figures}, [table])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fleet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    numbers = {
        "nodes": (3, "nodes"),
        "rate": (1_000, "rows pushed a second"),
        "seconds": (20, "of pushes at that rate"),
        "entities": (1_000_000, "different ids"),
        "rows": (1_000_000, "rows in bulk, for each node"),
        "trim-rows": (5_000_000, "rows that are written beside a consumer that trims"),
        "trim-rate": (300_000, "of them a second"),
        "many-nodes": (8, "nodes of the longer run of pushes"),
        "many-seconds": (60, "of it"),
        "away-seconds": (60, "without Redis"),
        "starts": (5, "fresh processes and new nodes of each kind"),
        "tail": (100_000, "rows that a new node reads from the log"),
        "kills": (10, "killed appliers"),
        "feast-pushes": (300, "pushes by Feast on Redis"),
    }
    for name, (default, what) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and figures there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table into this Markdown file")
    return parser.parse_args()


def _measure(arguments: argparse.Namespace) -> dict[str, float]:
    with ExitStack() as stack:
        fleet = Fleet(stack, arguments.nodes, arguments.entities)
        fleet.reach(fleet.write(arguments.entities))
        fleet.reach(fleet.push(arguments.rate, 0.5)[-1][1])
        figures = _idle(fleet)
        figures |= _visible(fleet, arguments.rate, arguments.seconds)
        figures |= fleet_bulk.one_log(fleet, arguments.rows)
        figures |= fleet_bulk.memory_behind_the_trim(fleet, arguments.trim_rows, arguments.trim_rate)
        figures |= fleet_failures.redis_away(fleet, arguments.away_seconds, arguments.starts)
        figures |= fleet_failures.takeovers(fleet, arguments.kills)
        figures |= fleet_feast.push_to_visible(fleet.server.address, arguments.feast_pushes)
    figures |= fleet_failures.many_nodes(
        arguments.many_nodes, arguments.entities, arguments.rate, arguments.many_seconds
    )
    return figures | fleet_bulk.new_nodes(arguments.rows, min(arguments.tail, arguments.rows), arguments.starts)


def _idle(fleet: Fleet) -> dict[str, float]:
    """What following costs while nothing is written: the largest share of a core over the nodes."""
    time.sleep(1)
    begun, before = time.monotonic(), [node.ask("cpu") for node in fleet.nodes]
    time.sleep(5)
    spent = [node.ask("cpu") - start for node, start in zip(fleet.nodes, before, strict=True)]
    return {"idle_core_share": max(spent) / (time.monotonic() - begun)}


def _visible(fleet: Fleet, rate: int, seconds: float) -> dict[str, float]:
    first, *others = fleet.nodes
    quiet = _reads(first, seconds / 2, fleet)
    first.begin("read", seconds, fleet.entities)
    for node in others:
        node.begin("watch", seconds + 2)
    pushed = fleet.push(rate, seconds)
    busy, failed = first.end()
    late = np.concatenate([_late(node.end(), pushed) for node in others])
    if failed:
        raise SystemExit(f"{failed} reads failed")
    figures: dict[str, float] = {}
    for name, times in (("visible", late), ("read_quiet", quiet), ("read_busy", busy)):
        figures |= {f"{name}_p50": float(np.quantile(times, 0.5)), f"{name}_p99": float(np.quantile(times, 0.99))}
    return figures | {"visible_longest": float(late.max())}


def _reads(node: Node, seconds: float, fleet: Fleet) -> list[int]:
    times: list[int] = node.ask("read", seconds, fleet.entities)[0]
    return times


def _late(seen: list[tuple[int, int]], pushed: list[tuple[int, int]]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Nanoseconds from each push to the first look that saw its position."""
    times, positions = (np.array(column, np.int64) for column in zip(*seen, strict=True))
    begun, wanted = (np.array(column, np.int64) for column in zip(*pushed, strict=True))
    first = np.searchsorted(positions, wanted)
    if (first == len(times)).any():
        raise SystemExit(f"{(first == len(times)).sum()} of {len(pushed)} rows did not become visible")
    late: np.ndarray[tuple[int], np.dtype[np.int64]] = times[first] - begun
    return late


def _table(figures: dict[str, float], arguments: argparse.Namespace) -> Table:
    table = Table(title=f"{arguments.nodes} nodes on one Redis, 4 float32 fields", title_justify="left")
    table.add_column("what", no_wrap=True)
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("target", justify="right", no_wrap=True)
    for rows in (_at_a_rate(figures, arguments), _in_bulk(figures, arguments), _when_it_fails(figures)):
        for row in rows:
            table.add_row(*row)
    return table


def _at_a_rate(f: dict[str, float], arguments: argparse.Namespace) -> list[tuple[str, str, str]]:
    def both(name: str) -> str:
        return " / ".join(measuring.duration(f[f"{name}_{label}"]) for label in ("p50", "p99"))

    rate = f"{arguments.rate:,} rows/s"
    busy = f"{both('read_busy')} ({f['read_busy_p99'] / f['read_quiet_p99']:.1f}× at p99)"
    many = f"{f['many_rows']:,.0f} rows, {f['many_errors']:.0f} errors, the same bits"
    return [
        (f"visible on another node, {rate}, p50 / p99", both("visible"), "5 ms / 50 ms"),
        ("Feast on Redis: push to another process's read", both("feast_visible"), ""),
        ("read beside its own follower, quiet, p50 / p99", both("read_quiet"), ""),
        (f"the same at {rate}", busy, "2× quiet"),
        ("a follower with nothing to do, share of a core", f"{f['idle_core_share']:.2%}", "1%"),
        (f"{f['many_nodes']:.0f} nodes, {f['many_seconds']:.0f} s of pushes", many, "no error, the same bits"),
    ]


def _in_bulk(f: dict[str, float], arguments: argparse.Namespace) -> list[tuple[str, str, str]]:
    megabytes = [f[f"memory_{when}_bytes"] / 1e6 for when in ("start", "first_half", "second_half")]
    without = f["memory_start_bytes"] / 1e6 + f["trim_rows"] * f["log_bytes_per_row"] / 1e6
    trim = " / ".join(f"{size:.0f}" for size in megabytes) + f" MB ({without:.0f} MB untrimmed)"
    slowest = f"{f['bulk_slowest_per_s'] / 1e6:.2f} M rows/s"
    rows = [
        (f"{arguments.rows:,} rows from one log, one node at a time, the slowest", slowest, "0.5 M rows/s"),
        ("all nodes at once on the cores there are, a node", f"{f['bulk_together_per_s'] / 1e6:.2f} M rows/s", ""),
        (f"Redis, {f['trim_rows']:,.0f} rows behind the trim: at first / most of each half", trim, "flat"),
    ]
    for way, target in (("snapshot", "5 s"), ("history", "10 s")):
        label = f"new node ready, {arguments.rows:,} rows from the {way}, {arguments.tail:,} from the log"
        rows.append((label, _seconds(f, f"new_{way}"), target))
    return rows


def _when_it_fails(f: dict[str, float]) -> list[tuple[str, str, str]]:
    away = f"{f['away_failed']:.0f} of {f['away_reads']:,.0f}"
    return [
        (f"Redis away for {f['away_seconds']:.0f} s: reads that failed", away, "0"),
        ("lag of more than a second shown after", f"{f['lag_shown_s']:.2f} s", "2 s"),
        ("quorin ready fails after", f"{f['not_ready_s']:.2f} s", ""),
        ("Redis back: quorin ready passes after", f"{f['ready_again_s']:.2f} s", ""),
        ("Redis back: quorin nodes shows all without lag after", f"{f['nodes_fresh_s']:.2f} s", ""),
        ("import and first read, Redis up, p50 / longest", _seconds(f, "first_read_up"), "1 s"),
        ("import and first read, Redis down", _seconds(f, "first_read_down"), "1 s"),
        ("applier killed: gap p50 / longest", _seconds(f, "takeover"), "1.5 s"),
    ]


def _seconds(f: dict[str, float], name: str) -> str:
    return f"{f[f'{name}_p50_s']:.2f} s / {f[f'{name}_longest_s']:.2f} s"


if __name__ == "__main__":
    main()
