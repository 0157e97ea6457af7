"""Requests for features with and without pins, through Feast in a process and over HTTP, in turn."""

from __future__ import annotations

import http.client
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd

from benchmarks import measuring, servers

VIEW, SERVICE = "prices", "pinned"
FEATURES = [f"{VIEW}:f{number}" for number in range(4)]
ENTITIES, MANY = 1_000, 100
_CALLS, _HTTP_CALLS = 50, 20
_FEAST, _HTTP = "get_online_features and to_dict", "POST /get-online-features"
_PINS = {"block": "in a block of at_generation", "service": "of a service in pins", "header": "with Quorin-Pin"}


def measured(repeats: int) -> dict[str, float]:
    """The p50 of each kind of request in seconds, by ``feast_1``, ``feast_1_block`` and so on."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shm = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm", prefix="quorin-bench-")))
        (folder / "feature_store.yaml").write_text(json.dumps(_settings(folder, shm)))
        store = _filled(folder)
        stack.callback(store.teardown)
        generation = store.provider.online_store.registry(store.config).generations(f"shop__{VIEW}")[0].number
        server = stack.enter_context(servers.serving(["quorin", "serve", "-r", str(folder), "-p", "{port}"]))
        cases = _in_process(store, generation) | _over_http(server.url, generation)
        calls = {name: _HTTP_CALLS if name.startswith("http") else _CALLS for name in cases}
        samples = measuring.interleave(cases, rounds=10 * repeats, calls=calls)
    return {f"request_{name}": row["p50"] / 1e9 for name, row in measuring.summary([samples]).items()}


def rows(figures: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Of a table: each kind of request, and the ratio of those with pins to the one without."""
    for kind, title in (("feast", _FEAST), ("http", _HTTP)):
        for count in (1, MANY):
            plain = figures[f"request_{kind}_{count}"]
            yield f"{title}, {count} × {len(FEATURES)}", measuring.duration(plain * 1e9)
            for pin, words in _PINS.items():
                seconds = figures.get(f"request_{kind}_{count}_{pin}")
                if seconds is not None:
                    yield f"  {words}", f"{measuring.duration(seconds * 1e9)} ({seconds / plain:.2f}x)"


def _settings(folder: Path, shm: Path) -> dict[str, Any]:
    online = {"type": "quorin", "path": str(folder / "quorin"), "shm_dir": str(shm), "pins": {SERVICE: "current"}}
    settings = {"project": "shop", "provider": "local", "registry": str(folder / "registry.db")}
    return {**settings, "online_store": online, "entity_key_serialization_version": 3}


def _filled(folder: Path) -> Any:
    from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
    from feast.types import Float32

    names = [name.partition(":")[2] for name in FEATURES]
    columns = {name: [float(number) for number in range(ENTITIES)] for name in names}
    frame = pd.DataFrame({"key": range(ENTITIES), "at": datetime(2024, 1, 1, tzinfo=UTC), **columns})
    frame.to_parquet(folder / "prices.parquet")
    key = Entity(name="key", join_keys=["key"], value_type=ValueType.INT64)
    source = FileSource(path=str(folder / "prices.parquet"), timestamp_field="at")
    schema = [Field(name=name, dtype=Float32) for name in names]
    view = FeatureView(name=VIEW, entities=[key], schema=schema, source=source)
    store = FeatureStore(repo_path=str(folder))
    store.apply([key, view, *(FeatureService(name=name, features=[view]) for name in (SERVICE, "plain"))])
    store.write_to_online_store(VIEW, frame)
    return store


def _in_process(store: Any, generation: int) -> dict[str, Callable[[], object]]:
    from feast_quorin import at_generation

    def asking(features: Any, count: int) -> Callable[[], object]:
        entities = [{"key": number} for number in range(count)]
        return lambda: store.get_online_features(features, entities).to_dict()

    def in_a_block(ask: Callable[[], object]) -> Callable[[], object]:
        def asked() -> object:
            with at_generation({VIEW: generation}):
                return ask()

        return asked

    cases: dict[str, Callable[[], object]] = {}
    plain, service = (store.get_feature_service(name) for name in ("plain", SERVICE))
    for count in (1, MANY):
        cases[f"feast_{count}"] = asking(plain, count)
        cases[f"feast_{count}_block"] = in_a_block(asking(plain, count))
        cases[f"feast_{count}_service"] = asking(service, count)
    return cases


def _over_http(url: str, generation: int) -> dict[str, Callable[[], object]]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc)

    def asking(count: int, **headers: str) -> Callable[[], object]:
        body = json.dumps({"features": FEATURES, "entities": {"key": list(range(count))}})

        def asked() -> object:
            connection.request("POST", "/get-online-features", body, {"Content-Type": "application/json", **headers})
            response = connection.getresponse()
            answer = response.read()
            if response.status != http.client.OK:
                raise SystemExit(f"{response.status}: {answer.decode()}")
            return answer

        return asked

    cases = {}
    for count in (1, MANY):
        cases[f"http_{count}"] = asking(count)
        cases[f"http_{count}_header"] = asking(count, **{"Quorin-Pin": json.dumps({VIEW: generation})})
    return cases
