"""Every benchmark, one after the other, and what is written from it.

Each run leaves one JSON file in benchmarks/results/: machine, versions, quantiles. A whole run (not `--quick`) also
writes the document: its figures go to docs/figures.json, and docs/performance.md's tables and the pictures in
docs/pictures/ are drawn from that file. Benchmarks that were left out keep the figures they had.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import document

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Benchmark:
    """A module of this folder, the mark of its place in the document, and arguments for a look in seconds."""

    mark: str
    quick: str


BENCHMARKS = {
    "engine": Benchmark("engine", "--processes 1 --rounds 1 --entities 2000 --most-entities 10000"),
    "arrow_reads": Benchmark("arrow", "--processes 1 --rounds 1 --entities 2000"),
    "asked": Benchmark("asked", "--processes 1 --rounds 1 --entities 2000"),
    "rows": Benchmark("rows", "--processes 1 --rounds 1 --entities 20000"),
    "moments": Benchmark("moments", "--processes 1 --rounds 1"),
    "feast_requests": Benchmark("feast", "--processes 1 --rounds 1 --entities 100"),
    "http": Benchmark("http", "--processes 1 --rounds 1 --entities 100 --requests 5000"),
    "log": Benchmark("log", "--rows 20000 --entities 5000 --writes 100 --syncs 50"),
    "partitions": Benchmark("partitions", "--rows 20000 --rounds 1"),
    "fleet": Benchmark(
        "fleet",
        "--nodes 2 --many-nodes 2 --rate 200 --seconds 1 --many-seconds 1 --away-seconds 4 --entities 5000 --rows 5000 "
        "--trim-rows 20000 --trim-rate 20000 --starts 1 --tail 500 --kills 1 --feast-pushes 5",
    ),
    "bootstrap": Benchmark("bootstrap", "--rows 20000 --seconds 1 --transfers 2 --rate 200"),
    "evolution": Benchmark("evolution", "--entities 20000 --quiet-seconds 0.5 --holders 2"),
    "checks": Benchmark("checks", "--entities 20000 --fields 3 --repeats 2"),
    "replace": Benchmark("replace", "--entities 20000 --nodes 2 --quiet-seconds 0.5 --rate 2000"),
    "gc_pauses": Benchmark("gc", "--objects 2000 --requests 500 --processes 1"),
    "materialize": Benchmark(
        "materialize", "--rows 2000 --wide-rows 300 --slice 200 --repeats 1 --pushes 10 --reads 20"
    ),
    "vectors": Benchmark("vectors", "--rows 500 --size 20 --searches 10"),
    "served": Benchmark("served", "--rounds 1 --entities 2000 --requests 50"),
    "routed": Benchmark("routed", "--rounds 1 --entities 2000 --requests 20"),
    "history": Benchmark(
        "history", "--entities 5000 --many 8000 --wide 1000 --rows 20000 --queries 2000 --feast-queries 100"
    ),
    "models": Benchmark("models", "--processes 1 --rounds 1 --entities 200"),
    "skew": Benchmark("skew", "--rounds 1 --entities 2000"),
}


def main() -> None:
    """Run what was asked for; the exit code is 1 if one of them failed."""
    arguments = _arguments()
    console = Console(highlight=False, width=110)
    names = [name for name in arguments.only or BENCHMARKS if name not in arguments.skip]
    if arguments.list:
        for name in names:
            first_line = (importlib.import_module(f"benchmarks.{name}").__doc__ or "").splitlines()[0]
            console.print(f"{name:16}{first_line}", soft_wrap=True)
        return
    kept = arguments.results / f"{datetime.now(UTC):%Y-%m-%dT%H%M%S}.json"
    directory = arguments.docs or (None if arguments.quick else ROOT / "docs")
    entries: dict[str, Any] = {}
    failed = []
    for number, name in enumerate(names, 1):
        console.rule(f"{name} ({number} of {len(names)})")
        entry = _run(name, quick=arguments.quick)
        if entry is None:
            failed.append(name)
            continue
        entries[BENCHMARKS[name].mark] = entry
        _keep(entries, kept)
        if directory:
            document.update(directory, entries)
        console.print(f"{name} took {entry['seconds']} s; kept in {kept}", style="dim", soft_wrap=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(BENCHMARKS)
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    parser.add_argument("--only", choices=names, action="append", help="this one; may be given more than once")
    parser.add_argument("--skip", choices=names, action="append", default=[], help="not this one; likewise")
    parser.add_argument("--quick", action="store_true", help="small sizes: whether all run, not how fast they are")
    parser.add_argument(
        "--docs", type=Path, metavar="DIRECTORY", help="the document's directory (default: docs/; with --quick none)"
    )
    results = Path(__file__).parent / "results"
    parser.add_argument("--results", type=Path, default=results, metavar="DIRECTORY", help="default: %(default)s")
    return parser.parse_args()


def _run(name: str, *, quick: bool) -> dict[str, Any] | None:
    """What the document's entry of this benchmark is made of; None if it failed."""
    benchmark = BENCHMARKS[name]
    with tempfile.TemporaryDirectory() as folder:
        figures, page = Path(folder) / "figures.json", Path(folder) / "page.md"
        page.write_text(document.place(benchmark.mark, ""))
        options = benchmark.quick.split() if quick else []
        command = [sys.executable, "-m", f"benchmarks.{name}", *options, "--json", str(figures), "--docs", str(page)]
        started = time.monotonic()
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            return None
        found = json.loads(figures.read_text())
        tables = document.section(page.read_text(), benchmark.mark)
    return {
        "machine": found.pop("machine"),
        "options": " ".join(options),
        "seconds": round(time.monotonic() - started),
        "figures": found,
        "tables": tables.splitlines(),
    }


def _keep(entries: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
