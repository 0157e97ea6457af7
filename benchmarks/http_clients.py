"""Clients over HTTP: a remote store of Quorin beside Feast's `remote` store, both on one `quorin serve`.

    python -m benchmarks.http_clients

The calls alternate in one process, after both have given the same answers.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import feast_views, http_servers, machine, measuring

QUORIN, FEAST = CLIENTS = ("remote store of Quorin", "remote store of Feast")
REQUEST = "100 rows × 50"
TARGET = 10.0
_ENTITIES = 2_000
_ROUNDS = 10


def main() -> None:
    """Measure, and print both times and their ratio."""
    console = Console(highlight=False)
    console.print(machine.one_line(machine.describe()), style="dim", soft_wrap=True)
    with (
        tempfile.TemporaryDirectory() as name,
        _repository(Path(name)) as repository,
        http_servers.quorin_serve(repository, core=0) as server,
    ):
        figures = to_dict_times(repository, server.url)
    for client in CLIENTS:
        console.print(f"{REQUEST} to_dict, {client}: {measuring.duration(figures[client]['p50'])}")
    console.print(f"ratio of the medians: {ratio(figures):.1f}×, asked {TARGET:g}×")


@contextmanager
def _repository(directory: Path) -> Iterator[Path]:
    """A repository on Quorin with the rows that requests ask for."""
    from feast import FeatureStore

    folder = directory / "repository"
    http_servers.write_repository(folder, {"type": "quorin", "path": str(directory / "store")})
    store = FeatureStore(repo_path=str(folder))
    try:
        feast_views.fill(store, directory, entities=_ENTITIES)
        yield folder
    finally:
        store.teardown()


def ratio(figures: dict[str, dict[str, float]]) -> float:
    """How many times as fast Quorin's client is as Feast's, by their medians."""
    return figures[FEAST]["p50"] / figures[QUORIN]["p50"]


def to_dict_times(repository: Path, url: str, *, calls: int = 200, entities: int = _ENTITIES) -> dict[str, Any]:
    """Quantiles of the time of a request and its `to_dict`, by client, in nanoseconds."""
    rng = np.random.default_rng(11)
    request = next(one for one in feast_views.requests() if one.name == REQUEST)
    rows = request.entity_rows(rng, entities)
    online_stores: dict[str, dict[str, Any]] = {
        QUORIN: {"type": "quorin", "remote": url},
        FEAST: {"type": "remote", "path": url},
    }
    asks = {name: _ask(repository, online, request.features, rows) for name, online in online_stores.items()}
    _check_equal(*(ask() for ask in asks.values()))
    samples = measuring.interleave(asks, rounds=_ROUNDS, calls=dict.fromkeys(asks, calls // _ROUNDS))
    return measuring.summary([samples])


def _ask(
    repository: Path, online_store: dict[str, Any], features: list[str] | str, rows: list[dict[str, Any]]
) -> Callable[[], dict[str, list[Any]]]:
    """A function that sends the request, from a machine without the repository's segments."""
    from feast import FeatureStore
    from feast.repo_config import RepoConfig

    config = RepoConfig(
        project="benchmark",
        provider="local",
        registry=str(repository / "registry.db"),
        online_store=online_store,
        entity_key_serialization_version=3,
    )
    store: Any = FeatureStore(config=config)

    def ask() -> dict[str, list[Any]]:
        return store.get_online_features(features, rows).to_dict()

    return ask


def _check_equal(ours: dict[str, list[Any]], theirs: dict[str, list[Any]]) -> None:
    """The same names and, but for the digits that JSON leaves out of a float32, the same values."""
    assert ours.keys() == theirs.keys(), "the clients disagree about the columns"
    for name, values in ours.items():
        pairs = zip(values, theirs[name], strict=True)
        assert all(math.isclose(one, other, rel_tol=1e-6) for one, other in pairs), f"the clients disagree about {name}"


if __name__ == "__main__":
    main()
