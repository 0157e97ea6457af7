"""``inspect``, ``get``, ``put``, ``doctor`` and ``bench`` as their users have them, on both kinds of control plane."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

import quorin
from quorin.engine.backend import Backend, connect
from quorin.engine.loads.coordinator import Coordinator
from quorin.engine.log.record import Kind, encode
from quorin.engine.ops.health import check_machine
from quorin.engine.rows.batch import row_batch
from quorin.offline import ParquetDatasetStore
from quorin.schema import FeatureField, dtype, make_schema, schema_to_json
from quorin.shm import SegmentRegistry
from quorin.wal import Token, WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.commands import run_quorin, start_quorin
from tests.support.schemas import Everything
from tests.support.world import until

ROOT = Path(__file__).parents[3]
TRIP = make_schema("shop__trip", [FeatureField("score", dtype.float64), FeatureField("tags", dtype.string, (None,))])
EVENT_NS = 1_700_000_000_000_000_000


class Place:
    """A deployment with some rows, and the command line pointed at it."""

    def __init__(self, connection: str, shm_dir: Path) -> None:
        self.shm_dir = shm_dir
        self.connection = connection
        self.backend: Backend = connect(connection)
        self.registry = SegmentRegistry(self.backend, shm_dir=shm_dir)
        self.producer = WALProducer(self.backend, registry=self.registry)

    def drain(self, *schemas: Any) -> None:
        with WALConsumer(self.backend, schemas or [TRIP], registry=self.registry) as consumer:
            consumer.drain()

    def run(self, *words: str, code: int | None = 0, **environment: str) -> Any:
        variables = {"QUORIN_CONNECTION": self.connection, "QUORIN_SHM_DIR": str(self.shm_dir), "COLUMNS": "200"}
        done = run_quorin([*words], {**os.environ, **variables, **environment}, directory=ROOT)
        assert code is None or done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self.run(*words, "--json", code=code).stdout)


@pytest.fixture(params=["embedded", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    embedded = request.param == "embedded"
    connection = str(tmp_path / "store") if embedded else str(request.getfixturevalue("redis_url"))
    (tmp_path / "shm").mkdir()
    place = Place(connection, tmp_path / "shm")
    place.backend.control.put_schema(TRIP.__name__, schema_to_json(TRIP))
    place.producer.write(TRIP, "a", {"score": 1.5, "tags": ["x", "[red]"]}, EVENT_NS)
    place.producer.write(TRIP, "b", {"score": float("nan"), "tags": None}, EVENT_NS + 10**9)
    place.drain()
    yield place
    place.producer.close()
    place.backend.close()


def test_inspect_shows_segments_lag_and_detail(place: Place) -> None:
    for number in range(3):
        place.producer.write(TRIP, f"late{number}", {"score": 1, "tags": []})
    seen = place.json("inspect")
    (segment,) = seen["segments"]
    assert (segment["rows"], segment["generation"], segment["problem"]) == (2, 1, None)
    assert (segment["lag"]["entries"], segment["lag"]["rows"], segment["lag"]["is_exact"]) == (3, 3, True)
    assert segment["lag"]["seconds"] > 0
    assert segment["oldest_event_time_ns"] == EVENT_NS
    assert segment["newest_event_time_ns"] == EVENT_NS + 10**9
    assert seen["log"]["entries"] == 5
    assert seen["log"]["last"] > segment["position"] > 0
    with place.registry.open_current(TRIP) as held:
        text = place.run("inspect", "trip").stdout
        assert f"mapped by     {os.getpid()}" in text
        assert held.name in text
    assert "string[]" in text
    assert "2023-11-14 22:13:20.000+00:00" in text
    assert "shop__trip" in place.run("inspect").stdout
    assert "expected the name of one schema" in place.run("inspect", "nothing", code=2).stderr


def test_inspect_says_what_is_missing(place: Place) -> None:
    for path in place.shm_dir.glob("quorin_*"):
        path.unlink()
    (segment,) = place.json("inspect", code=1)["segments"]
    assert "there is no such file" in segment["problem"]
    assert [field["name"] for field in segment["fields"]] == ["score", "tags"]
    assert "there is no such file" in place.run("inspect", code=1).stdout


def test_get_shows_typed_values_and_ages(place: Place) -> None:
    answer = place.json("get", "a", "b", "nobody", code=1)
    assert [row["values"] for row in answer["rows"]] == [
        {"score": 1.5, "tags": ["x", "[red]"]},
        {"score": "NaN", "tags": None},
    ]
    assert answer["rows"][0]["types"]["score"] == "float64"
    assert answer["rows"][0]["event_time_ns"] == EVENT_NS
    assert answer["rows"][0]["age_seconds"] > 3600
    assert answer["missing"] == [{"schema": None, "entity_id": "nobody"}]
    text = place.run("get", "a", "--schema", "trip", "--field", "tags")
    assert "['x', '[red]']" in text.stdout
    assert "score" not in text.stdout
    for words in (("-s", "trip"), ()):
        refused = place.run("get", "a", *words, "-f", "colour", code=2)
        assert "shop__trip has no field 'colour'; there are: score, tags" in refused.stderr
        assert "no row" not in refused.stderr


def test_get_shows_the_last_rows_of_the_log_and_the_history(place: Place, tmp_path: Path) -> None:
    history = ParquetDatasetStore(tmp_path / "history")
    with WALConsumer(place.backend, [TRIP], registry=place.registry, offline=history) as consumer:
        place.producer.write(TRIP, "a", {"score": 2.5, "tags": []}, EVENT_NS + 10**9)
        consumer.drain()
    place.backend.log().trim(history.flushed_position(TRIP))
    place.producer.write(TRIP, "a", {"score": 3.5, "tags": None}, EVENT_NS + 2 * 10**9)
    words = "get", "a", "b", "nobody", "-s", "trip", "--last", "2"
    answer = place.json(*words, "--offline", str(tmp_path / "history"), code=1)
    scores = [(row["entity_id"], row["values"]["score"], row["types"]["score"]) for row in answer["rows"]]
    assert scores == [("a", 3.5, "float64"), ("a", 2.5, "float64"), ("b", "NaN", "float64")]
    assert answer["missing"] == [{"schema": "shop__trip", "entity_id": "nobody"}]
    text = place.run("get", "a", "--last", "50", "--field", "score").stdout
    assert "2023-11-14 22:13:22.000+00:00" in text
    assert "2.5" not in text
    assert "there is no history at" in place.run(*words, "--offline", str(tmp_path / "none"), code=2).stderr


def test_changes_are_shown_written_and_refused(place: Place, tmp_path: Path) -> None:
    before = place.backend.log().bounds().last
    place.producer.delete(TRIP, "a", event_time_ns=EVENT_NS + 1)
    place.producer.write(TRIP, "c", {"score": 1, "tags": []}, EVENT_NS)
    place.drain()
    last = place.backend.log().bounds().last
    answer = place.json("changes", "trip", "--since", str(before))
    assert (answer["schema"], answer["since"], answer["through"]) == ("shop__trip", before, last)
    rows = {row["entity_id"]: row for row in answer["rows"]}
    assert rows.keys() == {"a", "c"}
    assert (rows["a"]["deleted"], rows["a"]["values"], rows["a"]["event_time_ns"]) == (True, None, EVENT_NS + 1)
    assert (rows["c"]["values"], rows["c"]["position"]) == ({"score": 1.0, "tags": []}, last)
    assert place.json("changes", "trip", "--since", "0", "--limit", "1")["through"] is None
    text = place.run("changes", "trip", "--since", str(before), "-f", "score").stdout
    assert "deleted" in text
    assert f"all through {last}" in text
    said = place.json("changes", "trip", "--since", "0", "--to", str(tmp_path / "all.parquet"))
    assert (said["rows"], said["through"]) == (3, last)
    assert pq.read_table(tmp_path / "all.parquet").column("deleted").to_pylist().count(True) == 1
    assert (
        "expected a file that ends in" in place.run("changes", "trip", "--since", "0", "--to", "x.txt", code=2).stderr
    )
    with place.registry.open_current(TRIP, read_only=False) as segment:
        segment.current_view().header["partitions"][0]["forgotten"] = before
    assert "has forgotten deletions up to" in place.run("changes", "trip", "--since", "1", code=1).stderr


def test_put_is_typed_and_goes_through_the_log(place: Place) -> None:
    assert "in the log" in place.run("put", "trip", "c", "score=2.25", 'tags=["new"]').stdout
    place.drain()
    event_time = "2024-01-01T00:00:00Z"
    said = place.json("put", "shop__trip", "c", "score=7", "--null", "tags", "--event-time", event_time)
    assert said["position"] == place.backend.log().bounds().last
    assert Token.parse(said["token"]).parts == ((place.backend.log().identity(), said["position"]),)
    place.drain()
    assert place.json("get", "c")["rows"][0]["values"] == {"score": 2.25, "tags": ["new"]}
    for words, text in (
        (("score=much",), "expected float64, got 'much'"),
        (("score=1", "score=2"), "expected field=value, each field once"),
        (("colour=red",), "has no field 'colour'"),
        (("score=1", "--partial", "--event-time", "soon"), "event time 'soon'"),
        (("score=1",), "no value for tags: give field=value, --null tags for a null, or --partial"),
    ):
        assert text in " ".join(place.run("put", "trip", "c", *words, code=2).stderr.replace("│", " ").split())


def test_put_applies_its_row_unless_another_process_applies_the_log(place: Place) -> None:
    assert "served at position" in place.run("put", "trip", "d", "score=1", "--null", "tags", "--sync").stdout
    assert place.json("get", "d")["rows"][0]["values"] == {"score": 1, "tags": None}
    words = "put", "trip", "d", "score=2", "--partial", "--sync", "--timeout-ms", "50"
    how = f"run `quorin consumer --connection {shlex.quote(place.backend.address)}`"
    with place.registry.open_current(TRIP, read_only=False) as segment:
        segment.acquire_writer_lease()
        unserved = place.run(*words, code=1).stderr
        assert "it is not lost" in unserved
        assert how in unserved
    for path in place.shm_dir.glob("quorin_*"):
        path.unlink()
    assert how in place.run(*words, code=1).stderr


def test_sync_says_which_write_a_newer_one_overruled(place: Place) -> None:
    """`a` is of EVENT_NS: what is older is in the log and takes no effect, and what is as old or newer does."""
    (before,) = place.json("get", "a")["rows"]
    older, newer = ("--event-time", str(EVENT_NS - 1)), ("--event-time", str(EVENT_NS + 2))
    row = "put", "trip", "a", "score=9", "tags=[]", "--sync"
    said = place.run(*row, *older, code=1)
    assert "served" not in said.stdout
    assert "is not served: the row of 'a' at position" in said.stderr
    assert f"is newer, with the event time 2023-11-14 22:13:20.000+00:00 ({EVENT_NS})" in said.stderr
    told = place.json(*row, *older, code=1)
    (one,) = told["overruled_by"]
    assert (told["is_served"], one["entity_id"], one["event_time_ns"], one["deleted"]) == (False, "a", EVENT_NS, False)
    assert 0 < one["position"] < told["position"]
    assert place.json("get", "a")["rows"][0]["values"] == before["values"]
    stays = place.run("delete", "trip", "a", "b", "--sync", *newer, code=1)  # b's row is a second newer than a's
    assert "1 deletion applied" in stays.stdout
    assert "took no effect: the row of 'b'" in stays.stderr
    told = place.json(*row, *older, code=1)
    assert (told["overruled_by"][0]["deleted"], told["overruled_by"][0]["event_time_ns"]) == (True, EVENT_NS + 2)
    assert "the deletion of 'a'" in place.run(*row, *older, code=1).stderr
    told = place.json(*row, *newer)
    assert (told["is_served"], told["overruled_by"]) == (True, [])
    told = place.json(*row[:-1], *older)
    assert (told["is_served"], told["overruled_by"]) == (None, None)


def test_features_go_by_their_names_in_feast(place: Place) -> None:
    rides = make_schema("shop__rides", [FeatureField(name, dtype.float32) for name in ("rate__float", "a__x", "a__y")])
    place.backend.control.put_schema(rides.__name__, schema_to_json(rides))
    place.run("put", "rides", "a", "rate=0.5", "a__x=1", "--null", "a__y")
    place.drain(TRIP, rides)
    found = place.run("get", "a", "-f", "rate", "--json")
    assert [row["values"] for row in json.loads(found.stdout)["rows"]] == [{"rate__float": 0.5}]
    assert found.stderr == ""
    for asked, hint in (("a", "there are: rate, a__x, a__y"), ("ratte", "did you mean rate?")):
        refused = place.run("get", "a", "-s", "rides", "-f", asked, code=2)
        assert f"has no field {asked!r}; {hint}" in refused.stderr


def test_put_knows_every_type(place: Place) -> None:
    place.backend.control.put_schema("Everything", schema_to_json(Everything))
    words = [
        "f32=0.5", "f64=1e300", "i32=-7", "i64=9007199254740993", "u8=255", "flag=true", "text=null", "blob=00ff",
        "vector=[1, 2, 3]", "grid=[[1, 2], [3, 4]]", "flags=[true, false, true]", "numbers=[]", "marks=[false]",
        'tags=["é"]', 'blobs=["0a"]',
    ]  # fmt: skip
    place.run("put", "Everything", "e", *words)
    place.drain(Everything)
    (row,) = place.json("get", "e", "-s", "Everything")["rows"]
    assert row["values"] == {
        "f32": 0.5, "f64": 1e300, "i32": -7, "i64": 9007199254740993, "u8": 255, "flag": True, "text": "null",
        "blob": "00ff", "vector": [1, 2, 3], "grid": [[1, 2], [3, 4]], "flags": [True, False, True], "numbers": [],
        "marks": [False], "tags": ["é"], "blobs": ["0a"],
    }  # fmt: skip


def test_doctor_names_what_is_wrong(place: Place) -> None:
    checks = {check["name"]: check for check in place.json("doctor")["checks"]}
    assert checks["segment of shop__trip"]["status"] == "ok"
    assert checks["lag of shop__trip"]["found"] == "none"
    assert checks["event times of shop__trip"]["status"] == "ok"
    assert checks["dead letters"]["status"] == "ok"
    if place.connection.startswith("unix"):
        assert checks["persistence of Redis"]["status"] == "warning"
        assert "noeviction" in checks["memory of Redis"]["found"]
    old = encode(Kind.upsert, TRIP, row_batch(TRIP, "z", {"score": 1.0, "tags": []}, 5), written_ns=EVENT_NS)
    place.backend.log().append([(TRIP.__name__, old)])
    place.backend.log().bury(1, b"bad", "reason")
    (path,) = place.shm_dir.glob("quorin_*")
    stale = place.run("doctor", code=1).stdout
    assert "the log is not applied" in stale
    assert "quorin deadletter list" in stale
    content = bytearray(path.read_bytes())
    content[70] ^= 1
    path.write_bytes(content)
    checks = {check["name"]: check for check in place.json("doctor", code=1)["checks"]}
    assert checks["segment of shop__trip"]["status"] == "problem"
    assert "checksum" in checks["segment of shop__trip"]["found"]


def test_a_row_from_the_future_is_told_and_can_be_written_over(place: Place) -> None:
    future = time.time_ns() + 1_130 * 86_400 * 10**9 + 10**12
    for values, words in ((3, ["--event-time", str(future)]), (4, [])):
        place.run("put", "trip", "a", f"score={values}", "tags=[]", *words)
        place.drain()
        assert place.json("get", "a")["rows"][0]["values"]["score"] == 3
    assert "+00:00, in 1,130 d" in place.run("get", "a").stdout
    assert "in 1,130 d" in place.run("inspect").stdout
    checks = {check["name"]: check for check in place.json("doctor")["checks"]}
    check = checks["event times of shop__trip"]
    found = "the newest event is 1,130 d in the future: writes to 'a' with older times are ignored"
    assert (check["status"], check["found"]) == ("warning", found)
    assert f"overwrites the row of 'a' from {future} on" in check["advice"]
    place.run("put", "trip", "a", "score=5", "tags=[]", "--event-time", str(future))
    for number in range(1, 6):
        place.producer.write(TRIP, f"later{number}", {"score": 1, "tags": []}, future + number)
    place.drain()
    assert place.json("get", "a")["rows"][0]["values"]["score"] == 5
    assert "writes to 'later5', 'later4', 'later3' and 3 more with older times" in place.run("doctor").stdout


def test_doctor_without_a_deployment_looks_at_the_machine(tmp_path: Path) -> None:
    names = {check.name for check in check_machine(tmp_path)}
    assert {"RemoveIPC of logind", "compiled kernels", "Feast", "huge pages for shared memory"} <= names
    (missing,) = [check for check in check_machine(tmp_path / "none") if check.name.startswith("shared memory")]
    assert missing.status == "problem"
    assert "QUORIN_SHM_DIR" in missing.advice


def test_doctor_tells_an_unreachable_control_plane(tmp_path: Path) -> None:
    environment = {**os.environ, "QUORIN_CONNECTION": f"unix://:hunter2@{tmp_path}/no.sock", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "quorin", "doctor"],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "problem control plane" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr


def test_prewarm_says_what_it_did_and_where(tmp_path: Path) -> None:
    done = run_quorin(["prewarm", "--json"], dict(os.environ))
    told = json.loads(done.stdout)
    assert told["kernels"] >= told["compiled"] >= 0
    assert told["seconds"] >= told["compiled_seconds"]
    text = run_quorin(["prewarm"], dict(os.environ)).stdout
    assert text.endswith(f"kept in {told['directory']}\n")
    assert f"{told['kernels']} kernels: {told['kernels']} loaded in" in text


def test_bench_measures_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "shm").mkdir()
    words = [sys.executable, "-m", "quorin", "bench", "--entities", "1000", "--seconds", "0.1", "--json"]
    environment = {**os.environ, "QUORIN_SHM_DIR": str(tmp_path / "shm"), "TMPDIR": str(tmp_path)}
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    results = json.loads(done.stdout)
    assert results["quorin"] == quorin.__version__
    assert 0 < results["read_hot_seconds"]["p50"] <= results["read_hot_seconds"]["p99"] < 5
    assert results["batch_arrow_rows_per_second"] > 1000
    assert 0 < results["write_sync_seconds"]["p50"] < 30
    assert [path for path in tmp_path.rglob("*bench*") if "numba" not in str(path)] == []
    assert list((tmp_path / "shm").glob("quorin_*")) == []


GAUGES = {
    f"quorin_{name}"
    for name in (
        "control_plane_up", "log_entries", "log_last_position", "log_dead_letters", "processes", "segment_up",
        "segment_rows", "segment_deleted_rows", "segment_capacity", "segment_load", "segment_bytes",
        "segment_heap_bytes", "segment_heap_used_bytes", "segment_heap_garbage_bytes", "segment_generation",
        "segment_position", "segment_age_seconds", "lag_entries", "lag_rows", "lag_seconds", "newest_event_age_seconds",
        "oldest_event_age_seconds", "segment_readers", "writer_heartbeat_age_seconds",
    )
}  # fmt: skip


def scraped(port: int) -> dict[str, dict[str, float]]:
    """What is served: series, then value by schema (or other label)."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=120) as answer:
        text = answer.read().decode()
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[next(iter(sample.labels.values()), "")] = sample.value
    return found


@contextmanager
def serving(place: Place, *words: str) -> Iterator[int]:
    """A command that serves metrics, for a block; its port."""
    own = {"QUORIN_CONNECTION": place.connection, "QUORIN_SHM_DIR": str(place.shm_dir)}
    process = start_quorin(list(words), {**os.environ, **own}, directory=ROOT)
    try:
        lines = (json.loads(line) for line in process.stderr or [])
        yield next(line["port"] for line in lines if line["event"] == "metrics_served")
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.close()


def test_a_consumer_serves_metrics_of_the_whole_machine(place: Place) -> None:
    with serving(place, "consumer", "--metrics-port", "0") as port:
        for number in range(50):
            place.producer.write_sync(TRIP, f"m{number}", {"score": 1, "tags": ["t"]}, timeout_ms=60_000)
        script = (
            "from quorin.shm import SegmentRegistry; from quorin.assembly import assemble; import sys, time\n"
            f"from tests.unit.cli.test_cli_commands import TRIP\n"
            f"s = SegmentRegistry({place.connection!r}).open_current(TRIP)\n"
            "[assemble(s, 'm7') for _ in range(1000)]; print('read', flush=True); time.sleep(60)"
        )
        environment = {**os.environ, "QUORIN_SHM_DIR": str(place.shm_dir)}
        reader = subprocess.Popen(
            [sys.executable, "-c", script], env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert reader.stdout is not None
        assert reader.stdout.readline() == "read\n"
        until(lambda: scraped(port)["quorin_segment_readers"].get(TRIP.__name__) == 2)  # Found between two scrapes.
        series = scraped(port)
        reader.kill()
        reader.communicate()
    assert set(series) >= GAUGES
    name = TRIP.__name__
    assert series["quorin_segment_rows"][name] == 52
    assert series["quorin_reads_total"][name] == 1000
    assert series["quorin_rows_applied_total"][name] == 50
    assert series["quorin_lag_rows"][name] == 0
    assert series["quorin_processes"]["consumer"] == 1
    assert 0 <= series["quorin_newest_event_age_seconds"][name] < 600
    assert series["quorin_oldest_event_age_seconds"][name] > 3600


def test_a_consumers_metrics_are_of_the_directory_that_it_applies_in(place: Place, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with serving(place, "consumer", "--metrics-port", "0", "--shm-dir", str(other)) as port:
        node = SegmentRegistry(place.backend, shm_dir=other).node.id
        assert scraped(port)["quorin_node_info"] == {node: 1}
        until(lambda: scraped(port)["quorin_segment_rows"] == {TRIP.__name__: 2})


def test_metrics_can_be_served_by_a_process_of_their_own(place: Place) -> None:
    place.producer.write(TRIP, "late", {"score": 1, "tags": []})
    with serving(place, "metrics", "--port", "0") as port:
        series = scraped(port)
        assert series["quorin_lag_rows"][TRIP.__name__] == 1
        assert series["quorin_lag_seconds"][TRIP.__name__] > 0
        taken = place.run("metrics", "--port", str(port), code=1)
        assert "cannot serve metrics" in taken.stderr
        for path in place.shm_dir.glob("quorin_*"):
            path.unlink()
        assert scraped(port)["quorin_segment_up"][TRIP.__name__] == 1  # Who has it mapped still reads it.


def test_help_teaches_by_examples_and_says_exit_codes() -> None:
    for name in ("inspect", "get", "put", "doctor", "bench", "consumer", "metrics", "top"):
        done = run_quorin([name, "--help"], {**os.environ, "COLUMNS": "200"}, directory=ROOT)
        assert done.returncode == 0, name
        assert "Examples" in done.stdout, name
        assert "Exit codes" in done.stdout, name
    version = subprocess.run([sys.executable, "-m", "quorin", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert version.stdout == f"quorin {quorin.__version__}\n"


def test_replace_and_rollback(place: Place, tmp_path: Path) -> None:
    def scores() -> dict[str, Any]:
        return {row["entity_id"]: row["values"]["score"] for row in place.json("scan", "trip")["rows"]}

    place.drain()
    before, old = place.backend.log().bounds().last, scores()
    file = tmp_path / "trips.parquet"
    pq.write_table(pa.table({"entity_id": ["b", "c"], "score": [2.0, 3.0], "tags": [["y"], None]}), file)
    assert (
        f"2 rows would replace {len(old)} rows here: this was a dry run"
        in place.run("replace", "trip", "--from", str(file), "--dry-run").stdout
    )
    assert "on this node" in place.run("replace", "trip", "--from", str(file)).stdout
    assert scores() == {"b": 2.0, "c": 3.0}
    done = place.json("rollback", "trip", "--to", f"position:{before}")
    assert (done["rows"], done["replaced_rows"], scores()) == (len(old), 2, old)
    place.json("replace", "trip", "--from", "history")
    assert scores() == old
    shown = place.run("log", "tail", "-n", "3").stdout
    assert f"commit {place.json('log', 'tail', '-n', '1')['entries'][0]['load']}" in shown
    assert place.json("replace", "trip", "--abort") == {"schema": "shop__trip", "aborted": None}
    with Coordinator(place.backend, TRIP) as load:
        assert f"since position {load.load}" in place.run("doctor", code=None).stdout
        assert "is replacing 'shop__trip'" in place.run("replace", "trip", "--from", str(file), code=1).stderr
        assert str(load.load) in place.run("replace", "trip", "--abort").stdout


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["replace", "trip"], "give either --from or --abort"),
        (
            ["replace", "trip", "--from", "no/such/file.parquet"],
            "file.parquet: no such file or directory",
        ),
        (["replace", "trip", "--from", "history", "--dry-run"], "--dry-run checks the rows of a file"),
        (["rollback", "trip"], "give --to or --without"),
        (["rollback", "trip", "--to", "yesterday"], "expected position:P, time:T or generation:N"),
        (["rollback", "trip", "--without", "5"], "expected two positions, A..B"),
    ],
)
def test_wrong_words_for_a_replacement(place: Place, words: list[str], problem: str) -> None:
    assert problem in place.run(*words, code=2).stderr
