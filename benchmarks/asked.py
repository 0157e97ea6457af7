"""Reads that return log positions or ask for a token, each beside the same read without, in the same process.

The token is one that the segment shows already, as that of most reads after a write: how long a read waits for another
depends on the consumer. Feast's answers know their positions in any case; there the case is taking them out.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.repo_config import RepoConfig
from feast.types import Float32
from rich.console import Console
from rich.progress import track

import feast_quorin
from benchmarks import machine, measuring, report
from benchmarks.engine import floats, ids_of, segment_of
from quorin.assembly import assemble, assemble_batch, read
from quorin.wal import Token

if TYPE_CHECKING:
    from quorin.shm import Segment

FIELDS, MANY = 10, 1000
PLAIN, POSITIONS, TOKEN = "", "with positions", "with a token"


def main() -> None:
    """Measure, print a table, and with `--json` and `--docs` write it."""
    arguments = _arguments()
    if arguments.child:
        _child(arguments)
        return
    console = Console(highlight=False, width=110)
    where = machine.describe()
    console.print(machine.one_line(where), style="dim", soft_wrap=True)
    passed = ["--child", "--rounds", str(arguments.rounds), "--entities", str(arguments.entities)]
    runs = measuring.in_fresh_processes("benchmarks.asked", passed, count=arguments.processes)
    figures = measuring.summary(list(track(runs, total=arguments.processes, console=console)))
    table = report.against_plain("Positions and tokens", figures)
    console.print(table)
    report.keep(arguments, "asked", where, {"asked": figures}, [table])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.asked", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=4, help="fresh processes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="rounds a process (default: %(default)s)")
    parser.add_argument("--entities", type=int, default=100_000, help="rows (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and figures there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table into this Markdown file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def _child(arguments: argparse.Namespace) -> None:
    """One process's samples of every case."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        with segment_of(folder, floats(FIELDS), arguments.entities) as segment, _store(folder) as store:
            cases = {**_engine_cases(segment, arguments), **_feast_cases(store)}
            calls = {name: 1000 if "1 row" in name else 20 for name in cases}
            measuring.send(measuring.interleave(cases, rounds=arguments.rounds, calls=calls))


def _engine_cases(segment: Segment, arguments: argparse.Namespace) -> dict[str, Callable[[], object]]:
    segment.commit_position(100, 1)
    token, positions = Token((1, 100)), np.empty(MANY, np.int64)
    chosen = np.random.default_rng(arguments.seed).integers(arguments.entities, size=MANY)
    every = ids_of(arguments.entities)
    ids = pa.array([every[number] for number in chosen])
    one = ids[0].as_py()
    return {
        f"assemble, 1 row|{PLAIN}": partial(assemble, segment, one),
        f"assemble, 1 row|{TOKEN}": partial(assemble, segment, one, at_least=token),
        f"assemble_batch, {MANY:,} rows|{PLAIN}": partial(assemble_batch, segment, ids),
        f"assemble_batch, {MANY:,} rows|{POSITIONS}": partial(assemble_batch, segment, ids, positions=positions),
        f"assemble_batch, {MANY:,} rows|{TOKEN}": partial(assemble_batch, segment, ids, at_least=token),
        f"read, 1 row|{PLAIN}": partial(read, segment, [one]),
        f"read, 1 row|{POSITIONS}": partial(read, segment, [one], positions=True),
        f"read, {MANY:,} rows|{PLAIN}": partial(read, segment, ids),
        f"read, {MANY:,} rows|{POSITIONS}": partial(read, segment, ids, positions=True),
        f"read, {MANY:,} rows|{TOKEN}": partial(read, segment, ids, at_least=token),
    }


def _feast_cases(store: FeatureStore) -> dict[str, Callable[[], object]]:
    names = [f"stats:{name}" for name in _names()]
    token = feast_quorin.last_token(store) or Token()
    few, many = {"user": [1]}, {"user": list(range(100))}

    def answer(features: list[str], rows: dict[str, list[int]]) -> Any:
        response = store.get_online_features(features=features, entity_rows=rows)
        response.to_dict()
        return response

    def with_token(features: list[str], rows: dict[str, list[int]]) -> Any:
        with feast_quorin.at_least(token):
            return answer(features, rows)

    cases: dict[str, Callable[[], object]] = {}
    for name, features, rows in (("1 row × 4", names[:4], few), (f"100 rows × {FIELDS}", names, many)):
        cases[f"Feast to_dict, {name}|{PLAIN}"] = partial(answer, features, rows)
        cases[f"Feast to_dict, {name}|{POSITIONS}"] = lambda features=features, rows=rows: answer(  # type: ignore[misc]
            features, rows
        ).positions()
        cases[f"Feast to_dict, {name}|{TOKEN}"] = partial(with_token, features, rows)
    return cases


@contextmanager
def _store(folder: Path) -> Iterator[FeatureStore]:
    """A Feast store with one view of 100 rows."""
    repo, segments = folder / "repo", folder / "segments"
    repo.mkdir()
    segments.mkdir()
    config = RepoConfig(
        project="asked",
        provider="feast_quorin.QuorinProvider",
        registry=str(repo / "registry.db"),
        online_store={"type": "feast_quorin.QuorinOnlineStore", "shm_dir": str(segments), "path": str(repo / "store")},
        entity_key_serialization_version=3,
        repo_path=repo,
    )
    store = FeatureStore(config=config)
    user = Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)
    source = FileSource(path=str(repo / "none.parquet"), timestamp_field="at")
    rows = pd.DataFrame({"user": range(100), "at": pd.Timestamp.now("UTC"), **dict.fromkeys(_names(), np.float32(0.5))})
    rows.to_parquet(repo / "none.parquet")
    schema = [Field(name=name, dtype=Float32) for name in _names()]
    store.apply([user, FeatureView(name="stats", entities=[user], schema=schema, source=source)])
    store.write_to_online_store("stats", rows)
    yield store
    store.teardown()


def _names() -> list[str]:
    return [f"f{number}" for number in range(FIELDS)]


if __name__ == "__main__":
    main()
