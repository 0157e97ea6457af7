"""``quorin serve --connection``: what the server answers is what the segments hold, and what is wrong is refused."""

from __future__ import annotations

import base64
import io
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import requests
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from quorin.assembly import assemble_batch, read
from quorin.evolution import upgrade_schema
from quorin.layout import insert, pack_row
from quorin.schema import FeatureField, dtype, make_schema
from quorin.wal import Token, WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.commands import run_quorin
from tests.support.http import Running
from tests.support.schemas import Everything
from tests.support.segment_site import (
    ARROW,
    CITY,
    DRIVER,
    FIELDS,
    ROWS,
    Site,
    batch_of,
    make_site,
    post,
    serving_site,
)

IDS = [*ROWS, "absent"]
BOTH = [{"schema": "Driver", "fields": ["embedding", "rate"]}, {"schema": "City"}]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return make_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def server(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("served") / "log"
    with serving_site(site, log, "--max-rows", "150000", "--max-lag", "1h") as running:
        yield running


def as_json(value: Any) -> Any:
    """A value of Arrow as the server writes it."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, list):
        return [as_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_float32(value: Any) -> Any:
    """Numbers as they are in float32, of which JSON has the shortest text."""
    if isinstance(value, list):
        return [as_float32(item) for item in value]
    return float(np.float32(value)) if isinstance(value, float) else value


def test_rows_as_json_are_the_rows_of_the_segment(site: Site, server: Running) -> None:
    answer = post(server, "/v1/read", {"schema": "Everything", "entity_ids": IDS})
    found = answer.json()
    with site.registry.open_current(Everything) as segment:
        expected = read(segment, IDS)
    assert (answer.status_code, found["schema"], found["version"]) == (200, "Everything", 1)
    assert (found["entity_ids"], found["found"]) == (IDS, [True] * len(ROWS) + [False])
    assert found["event_time_ns"] == expected["event_time_ns"].to_pylist()
    assert [*found["features"]] == [field.name for field in Everything.fields]
    for field in Everything.fields:
        values = found["features"][field.name]
        if field.dtype is dtype.float32:
            values = as_float32(values)
        assert values == as_json(expected[field.name].to_pylist()), field.name
    assert '"f32":[0.1,' in answer.text
    assert str(2**63 - 1) in answer.text


def test_rows_as_arrow_are_those_of_a_read(site: Site, server: Running) -> None:
    request = {"schema": "Everything", "entity_ids": IDS, "fields": ["tags", "f64"]}
    batch = batch_of(post(server, "/v1/read", request, Accept=ARROW))
    with site.registry.open_current(Everything) as segment:
        expected = read(segment, IDS, ["tags", "f64"])
    assert batch.schema.equals(expected.schema)
    assert batch.schema.metadata == {b"schema": b"Everything", b"version": b"1"}
    assert repr(batch.to_pylist()) == repr(expected.to_pylist()), "repr, as NaN equals nothing"


def test_one_row_may_be_read(server: Running) -> None:
    for ids in (["7"], ["none"], []):
        found = post(server, "/v1/read", {"schema": "Driver", "entity_ids": ids, "fields": ["trips"]}).json()
        assert found["features"]["trips"] == [2**60 + 7 if key == "7" else None for key in ids]


def test_vectors_of_several_schemas_are_joined(site: Site, server: Running) -> None:
    entities = {"city": ["Rome", "Oslo", "Oslo"], "driver_id": ["3", "none", "4"]}
    found = post(server, "/v1/assemble", {"entities": entities, "schemas": BOTH}).json()
    assert found["found"] == [[True, True], [False, True], [True, True]]
    places = [(column["schema"], column["field"], column["first"], column["count"]) for column in found["columns"]]
    assert places == [
        ("Driver", "embedding", 0, 4),
        ("Driver", "rate", 4, 1),
        ("City", "people", 5, 1),
        ("City", "rain", 6, 1),
    ]
    with site.registry.open_current(DRIVER) as driver, site.registry.open_current(CITY) as city:
        drivers, _ = assemble_batch(driver, entities["driver_id"])
        cities, _ = assemble_batch(city, entities["city"])
    expected = np.concatenate([drivers[:, 2:], drivers[:, :1], cities], axis=1)
    assert np.array_equal(np.array(found["vectors"], np.float32), expected, equal_nan=True)


def test_vectors_as_arrow_are_those_of_the_json(server: Running) -> None:
    request = {"entities": {"a": ["1", "x"], "b": ["Rome", "Oslo"]}}
    request["schemas"] = [{**part, "entity": name} for part, name in zip(BOTH, "ab", strict=True)]
    found = post(server, "/v1/assemble", request).json()
    batch = batch_of(post(server, "/v1/assemble", request, Accept=ARROW))
    assert batch["vector"].type == pa.list_(pa.float32(), 7)
    assert as_json(batch["vector"].to_pylist()) == as_float32(found["vectors"])
    assert batch["found"].to_pylist() == found["found"]
    assert {key.decode(): json.loads(text) for key, text in batch.schema.metadata.items()} == {
        "schemas": found["schemas"],
        "columns": found["columns"],
    }


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()])
def test_requests_may_be_arrow(server: Running, kind: pa.DataType) -> None:
    ids = pa.array(["1", "x", "2"]).cast(kind)
    batch = pa.record_batch({"driver_id": ids})
    for path, rest, request in (
        ("/v1/read", {"schema": "Driver"}, {"entity_ids": ["1", "x", "2"], "schema": "Driver"}),
        ("/v1/assemble", {"schemas": BOTH[:1]}, {"entities": {"driver_id": ["1", "x", "2"]}, "schemas": BOTH[:1]}),
    ):
        body = batch.replace_schema_metadata({"request": json.dumps(rest)})
        answer = post(server, path, body)
        assert (answer.status_code, answer.json()) == (200, post(server, path, request).json())


def reading(**changes: Any) -> tuple[str, Any]:
    return "/v1/read", {"schema": "Driver", "entity_ids": ["1"], **changes}


def joining(**changes: Any) -> tuple[str, Any]:
    return "/v1/assemble", {"entities": {"a": ["1"]}, "schemas": BOTH, **changes}


def streaming(request: str | None = '{"schema": "Driver"}', **columns: Any) -> tuple[str, Any]:
    return "/v1/read", pa.record_batch(columns, metadata={} if request is None else {"request": request})


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        (reading(schema="Drive"), 404, "no schema 'Drive' here; there are: ['City', 'Driver'"),
        (reading(schema="../x"), 404, "no schema '../x'"),
        (reading(schema=1), 422, "schema: expected a name, got 1"),
        (reading(fields=["none"]), 422, "no fields ['none']; it has ['rate"),
        (reading(fields=["rate", "rate"]), 422, "different names"),
        (reading(fields=[]), 422, "different names"),
        (reading(entity_ids=["1", 2]), 422, "entity_ids[1]: expected an entity id"),
        (reading(entity_ids=[""]), 422, "entity_ids[0]: expected an entity id"),
        (reading(entity_ids=[None]), 422, "got None"),
        (reading(entity_ids="1"), 422, "expected a list of entity ids, got '1'"),
        (reading(entity_ids=["1"] * 150_001), 413, "at most 150000 rows, got 150001"),
        (
            reading(ids=["1"]),
            422,
            "the keys schema, entity_ids, fields (optional), positions (optional), max_age (optional), got",
        ),
        (("/v1/read", []), 422, "expected an object, got []"),
        (joining(entities={"a": ["1"], "b": []}), 422, "one length, got {'a': 1, 'b': 0}"),
        (joining(entities={}), 422, "one length"),
        (joining(entities=[]), 422, "entities: expected an object"),
        (joining(schemas=[]), 422, "at least one schema"),
        (joining(schemas=["Driver"]), 422, "schemas[0]: expected an object"),
        (joining(entities={"a": [], "b": []}), 422, "one of the columns ['a', 'b'], got 'driver_id'"),
        (joining(schemas=[{"schema": "Driver", "entity": "b"}]), 422, "got 'b'"),
        (joining(schemas=[{"schema": "Driver", "fields": ["place"]}]), 422, "numeric"),
        (joining(entities={"a": ["1"] * 150_000}, schemas=BOTH * 50), 413, "at most 50000000 values"),
        (streaming(id=[1]), 422, "column 'id'"),
        (streaming(id=[""]), 422, "row 0"),
        (streaming(id=[None]), 422, "column 'id'"),
        (streaming(id=[b"\xff"]), 422, "column 'id'"),
        (streaming("{", id=["1"]), 400, "expected JSON"),
        (streaming(None, id=["1"]), 422, "expected the key 'request'"),
        (streaming(a=["1"], b=["1"]), 422, "exactly one"),
    ],
    ids=[str(number) for number in range(29)],
)
def test_what_is_wrong_is_named(server: Running, request_: tuple[str, Any], status: int, reason: str) -> None:
    refused = post(server, *request_)
    assert (refused.status_code, [*refused.json()]) == (status, ["detail"])
    assert reason in refused.json()["detail"]


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b"{", 400),
        ("application/json", b'{"schema": "Driver", "entity_ids": ["\xff"]}', 400),
        ("application/json", b'{"schema": "Driver", "entity_ids": ["\\ud800"]}', 400),
        ("application/json", b"[" * 100_000, 400),
        ("text/plain", b"{}", 415),
        (ARROW, b"", 400),
        (ARROW, b"\xff\xff\xff\xff\x10\x00\x00\x00garbage and nothing", 400),
    ],
)
def test_bodies_that_are_none_are_refused(server: Running, kind: str, body: bytes, status: int) -> None:
    for path in ("/v1/read", "/v1/assemble"):
        refused = requests.post(server.url + path, data=body, headers={"Content-Type": kind}, timeout=60)
        assert (refused.status_code, [*refused.json()]) == (status, ["detail"])


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_what_stands_for_more_bytes_than_it_has_is_refused(server: Running, compression: str) -> None:
    schema = pa.schema({"id": pa.string()}, metadata={"request": '{"schema": "Driver"}'})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_batch(pa.record_batch([["x" * 1_000_000]], schema))
    headers = {"Content-Type": ARROW}
    refused = requests.post(server.url + "/v1/read", data=sink.getvalue().to_pybytes(), headers=headers, timeout=60)
    assert (refused.status_code, "without dictionaries and compression" in refused.json()["detail"]) == (400, True)
    coded = pa.record_batch({"id": pa.array(["x"]).dictionary_encode()}, metadata=schema.metadata)
    assert "without dictionaries" in post(server, "/v1/read", coded).json()["detail"]


@given(cuts=st.lists(st.tuples(st.floats(0, 0.999), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
def test_streams_that_are_damaged_are_answered_or_refused(server: Running, cuts: list[tuple[float, bytes]]) -> None:
    _, batch = streaming(id=["1", "none", "999"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    body = bytearray(sink.getvalue().to_pybytes())
    for share, damage in cuts:
        start = int(share * len(body))
        body[start : start + len(damage)] = damage
    headers = {"Content-Type": ARROW}
    answer = requests.post(server.url + "/v1/read", data=bytes(body), headers=headers, timeout=60)
    assert answer.status_code in (200, 400, 404, 422), answer.text


def test_paths_and_methods_that_are_not_there_are_refused(server: Running) -> None:
    assert requests.get(server.url + "/v1/nothing", timeout=60).status_code == 404
    refused = requests.get(server.url + "/v1/read", timeout=60)
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert requests.delete(server.url + "/v1/schemas", timeout=60).headers["allow"] == "GET, HEAD"


def test_replies_are_compressed_only_if_asked(server: Running) -> None:
    request = {"schema": "Driver", "entity_ids": [str(number) for number in range(1_000)]}
    plain = post(server, "/v1/read", request)
    assert "content-encoding" not in plain.headers
    for asked, encoding in (("gzip", "gzip"), ("br, gzip;q=0.5, zstd", "zstd"), ("gzip;q=0", None), ("br", None)):
        headers = {"Accept-Encoding": asked}
        with requests.post(server.url + "/v1/read", json=request, headers=headers, stream=True, timeout=60) as answer:
            assert answer.headers.get("content-encoding") == encoding
            raw = answer.raw.read(decode_content=False)
        if encoding is not None:
            assert len(raw) < len(plain.content)
            raw = pa.CompressedInputStream(io.BytesIO(raw), encoding).read()
        assert raw == plain.content
    short = post(server, "/v1/read", {**request, "entity_ids": ["1"]}, **{"Accept-Encoding": "gzip"})
    assert "content-encoding" not in short.headers


def test_many_rows_are_the_rows_of_few(server: Running) -> None:
    ids = ["1", "none", "999", "5"] * 25_000
    few = post(server, "/v1/read", {"schema": "Driver", "entity_ids": ids[:4]}).json()
    many = post(server, "/v1/read", {"schema": "Driver", "entity_ids": ids}).json()
    assert many["features"] == {name: values * 25_000 for name, values in few["features"].items()}
    assert (many["found"], many["event_time_ns"]) == (few["found"] * 25_000, few["event_time_ns"] * 25_000)
    joined = {"entities": {"id": ids}, "schemas": [{"schema": "Driver", "fields": ["embedding", "trips"]}]}
    vectors = post(server, "/v1/assemble", joined).json()["vectors"]
    assert vectors == vectors[:4] * 25_000


def test_threads_get_their_own_answers(server: Running) -> None:
    def ask(number: int) -> list[int]:
        ids = [str(number)] * (1 if number % 2 else 4_000)
        return [*{*post(server, "/v1/read", {"schema": "Driver", "entity_ids": ids}).json()["features"]["trips"]}]

    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(ask, range(40))] == [[2**60 + number] for number in range(40)]


def test_schemas_are_described(server: Running) -> None:
    described = {one["schema"]: one for one in requests.get(server.url + "/v1/schemas", timeout=60).json()["schemas"]}
    driver = described["Driver"]
    assert (driver["rows"], driver["version"], driver["entity"], driver["problem"]) == (1_000, 1, "driver_id", None)
    assert driver["fields"][3] == {"name": "embedding", "dtype": "float32", "shape": [4], "default": None}
    assert described["Everything"]["newest_event_time_ns"] == 1_700_000_000_123_456_789
    assert driver["lag_seconds"] is None, "no consumer has confirmed it"


def test_the_machine_is_not_ready_while_its_lag_is_unknown(server: Running) -> None:
    assert requests.get(server.url + "/health", timeout=60).json() == {"status": "ok"}
    ready = requests.get(server.url + "/ready", timeout=60)
    assert (ready.status_code, ready.json()["ready"], len(ready.json()["schemas"])) == (503, False, 3)


def test_segments_are_followed_when_they_change(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    city = {"schema": "City", "entity_ids": ["Oslo"]}
    later = make_schema("City", [*CITY.fields, FeatureField("snow", dtype.float64)], version=2, entity="city")
    with serving_site(site, tmp_path / "log") as server:
        assert post(server, "/v1/read", city).json()["features"] == {"people": [700_000], "rain": [0.5]}
        upgrade_schema(CITY, later, site.registry)
        upgraded = post(server, "/v1/read", city).json()
        assert (upgraded["version"], upgraded["features"]["snow"]) == (2, [None])
        for number in range(100):  # grows
            with site.registry.open_current(later, read_only=False) as segment:
                insert(segment, f"city {number}", pack_row(later, people=number, rain=None, snow=None))
        ids = [f"city {number}" for number in range(100)]
        grown = post(server, "/v1/read", {"schema": "City", "entity_ids": ids, "fields": ["people"]}).json()
        assert grown["features"]["people"] == [*range(100)]
        site.registry.discard(site.registry.open_current(later, read_only=False))
        assert post(server, "/v1/read", city).status_code == 404
        with site.registry.create(later, capacity=16) as segment:
            insert(segment, "Oslo", pack_row(later, people=1, rain=None, snow=1.5))
        assert post(server, "/v1/read", city).json()["features"]["snow"] == [1.5]
        new = make_schema("New", FIELDS)
        assert post(server, "/v1/read", {"schema": "New", "entity_ids": ["a"]}).status_code == 404
        with site.registry.create(new, capacity=16) as segment:
            insert(segment, "a", pack_row(new, rate=None, trips=1, place=None))
        assert post(server, "/v1/read", {"schema": "New", "entity_ids": ["a"]}).json()["features"]["trips"] == [1]
        assert "New" in [
            one["schema"] for one in requests.get(server.url + "/v1/schemas", timeout=60).json()["schemas"]
        ]


def test_named_schemas_and_the_token_are_all_that_is_served(site: Site, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("correct-horse")
    options = ["--schema", "City", "--token-file", str(tmp_path / "token"), "--workers", "2"]
    with serving_site(site, tmp_path / "log", *options) as server:
        headers = {"Authorization": "Bearer correct-horse"}
        assert post(server, "/v1/read", {"schema": "City", "entity_ids": ["Oslo"]}).status_code == 401
        assert post(server, "/v1/read", {"schema": "City", "entity_ids": ["Oslo"]}, **headers).ok
        refused = post(server, "/v1/read", {"schema": "Driver", "entity_ids": ["1"]}, **headers)
        assert (refused.status_code, refused.json()) == (
            404,
            {"detail": "there is no schema 'Driver' here; there are: ['City']"},
        )
        assert requests.get(server.url + "/v1/schemas", timeout=60).status_code == 401
        described = requests.get(server.url + "/v1/schemas", headers=headers, timeout=60).json()["schemas"]
        assert [one["schema"] for one in described] == ["City"]
        assert len(requests.get(server.url + "/ready", timeout=60).json()["schemas"]) == 1


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--repo", ".", "--connection", "STORE"], "or --connection (segments), got both"),
        (["--connection", "STORE", "--metrics"], "--metrics: expected --repo with it"),
        (["--repo", ".", "--schema", "City"], "--schema: expected --connection with it"),
        (["--connection", "STORE", "--shm-dir", "SHM", "--schema", "Cty"], "got 'Cty'; there are: City, Driver"),
        (["--connection", "nowhere"], "there is no store at nowhere"),
        (
            ["--connection", "STORE", "--tls-key", "no.pem", "--tls-cert", "no.pem"],
            "--tls-cert no.pem, --tls-key no.pem: expected a certificate and its private key in PEM",
        ),
        (["--connection", "STORE", "--peer-ca", "no.pem"], "--peer-ca no.pem: expected certificates in PEM"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_served_is_refused(site: Site, words: list[str], reason: str, tmp_path: Path) -> None:
    words = [{"STORE": str(site.store), "SHM": str(site.shm_dir)}.get(word, word) for word in words]
    (tmp_path / "no.pem").write_text("no key")
    refused = run_quorin(["serve", *words], {"COLUMNS": "400"}, directory=tmp_path)
    assert refused.returncode == 2
    assert reason in refused.stderr


def test_serving_segments_imports_nothing_of_feast() -> None:
    script = (
        "import quorin.http, sys; print({'feast', 'fastapi', 'starlette', 'pydantic', 'pandas'} & sys.modules.keys())"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "set()\n"


def log_site(tmp_path: Path) -> tuple[Site, Any]:
    """A site whose rows came by the log, and the position of each."""
    site = make_site(tmp_path)
    with WALProducer(site.registry.backend) as producer:
        tokens = {city: producer.write(CITY, city, {"people": 1, "rain": 0.5}) for city in ("Oslo", "Bern")}
        WALConsumer(site.registry.backend, [CITY], registry=site.registry).drain()
    return site, tokens


def test_positions_and_tokens(tmp_path: Path) -> None:
    site, tokens = log_site(tmp_path)
    ids, own = ["Bern", "absent", "Oslo"], [tokens["Bern"], None, tokens["Oslo"]]
    with serving_site(site, tmp_path / "log") as server:
        for fields in ({}, {"fields": ["people"]}):
            body = {"schema": "City", "entity_ids": ids, **fields}
            plain, asked = (post(server, "/v1/read", body | more).json() for more in ({}, {"positions": True}))
            assert asked.pop("log_position") == own
            assert asked == plain == post(server, "/v1/read", body | {"positions": False}).json()
            batch = batch_of(post(server, "/v1/read", body | {"positions": True}, Accept=ARROW))
            assert batch["log_position"].to_pylist() == own
        parts = [{"schema": "City", "fields": ["people"]}, {"schema": "City"}, {"schema": "Driver"}]
        body = {"entities": {"city": ids}, "schemas": parts}
        plain, asked = (post(server, "/v1/assemble", body | more).json() for more in ({}, {"positions": True}))
        assert asked.pop("log_position") == [[one, one, None] for one in own]
        assert asked == plain
        batch = batch_of(post(server, "/v1/assemble", body | {"positions": True}, Accept=ARROW))
        assert batch["log_position"].to_pylist() == [[one, one, None] for one in own]
        wrong = post(server, "/v1/read", {"schema": "City", "entity_ids": ids, "positions": 1})
        assert (wrong.status_code, wrong.json()["detail"]) == (422, "positions: expected true or false, got 1")
        identity, last = tokens["Bern"].parts[0]
        late, other = Token((identity, last + 1)), Token((identity ^ 1, 5))
        read, joined = (
            {"schema": "City", "entity_ids": ids},
            {"entities": {"city": ids}, "schemas": [{"schema": "City"}]},
        )
        for path, body in (("/v1/read", read), ("/v1/assemble", joined)):
            shown = post(server, path, body, **{"Quorin-At-Least": tokens["Bern"].text})
            assert shown.json() == post(server, path, body).json()
            answer = post(server, path, body, **{"Quorin-At-Least": late.text, "Quorin-Timeout-Ms": "5"})
            assert answer.status_code == 412
            expected = {"error": "NotYetAppliedError", "schema": "City", "position": late, "applied": last}
            assert answer.json().items() >= (expected | {"timeout_ms": 5}).items()
            answer = post(server, path, body, **{"Quorin-At-Least": other.text})
            assert (answer.status_code, answer.json()["error"]) == (412, "TokenError")
            for name, value in (("At-Least", "q1.5"), ("Timeout-Ms", "-1"), ("Timeout-Ms", "10001")):
                answer = post(server, path, body, **{f"Quorin-{name}": value})
                assert answer.status_code == 422
                assert answer.json()["detail"].startswith(f"Quorin-{name}: expected ")
