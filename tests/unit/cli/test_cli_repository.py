"""Commands in a Feast repository without Feast: they find its store, show Feast's names, and run as their help says."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import typer

from quorin.cli import app
from quorin.cli.repository import Names, repository
from quorin.engine.backend import connect
from quorin.engine.log.record import Kind, encode
from quorin.engine.rows.batch import delete_batch, to_batch
from quorin.offline import ParquetDatasetStore
from quorin.schema import FeatureField, Schema, dtype, make_schema, schema_to_json
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.commands import run_quorin

DRIVERS = make_schema(
    "shop__driver_stats",
    [FeatureField("conv_rate__float", dtype.float32), FeatureField("tags__string_list", dtype.string, (None,))],
)
HYPHENS = make_schema("shop__driver_stats_h0123456789abcdef", [FeatureField("trips__int64", dtype.int64)])
USERS = make_schema(
    "UserFeatures",
    [
        FeatureField("age_normalized", dtype.float32),
        FeatureField("session_count_7d", dtype.int64),
        FeatureField("ltv_score", dtype.float64),
    ],
)
ITEMS = make_schema("Items", [FeatureField("tags", dtype.string, (None,)), FeatureField("price", dtype.float64)])
YAML = """
project: shop
provider: local
registry: data/registry.db
online_store:
    type: quorin
    path: ${STORE_DIRECTORY}
    shm_dir: shm
    offline_path: data/history
"""
EVENT_NS = 1_700_000_000_000_000_000
OTHER_WORDS = {
    "schema_name", "segment_name", "entity_count", "row_count", "byte_count", "schema_version", "path", "file_name",
    "event_time", "age", "elapsed", "lag_rows", "log_position",
}  # fmt: skip


def keys_of(value: Any) -> Iterator[str]:
    """The keys in a command's JSON, without the names of fields."""
    for key, item in value.items() if isinstance(value, dict) else ():
        yield key
        yield from () if key in ("values", "types") else keys_of(item)
    for item in value if isinstance(value, list) else ():
        yield from keys_of(item)


class FeastRepository:
    """A repository whose store has rows, a history and log entries, as a process of Feast's would leave them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "shm").mkdir()
        (directory / "data").mkdir()
        (directory / "feature_store.yaml").write_text(YAML)
        self.store = directory / "data" / "store"
        backend = connect(str(self.store))
        registry = SegmentRegistry(backend, shm_dir=directory / "shm")
        history = ParquetDatasetStore(directory / "data" / "history")
        schemas = [DRIVERS, USERS, ITEMS]
        for schema in schemas:
            backend.control.put_schema(schema.__name__, schema_to_json(schema))
        with WALProducer(backend, registry=registry) as producer:
            for number in range(1001, 1004):
                row = {"conv_rate__float": number / 2, "tags__string_list": ["a"]}
                producer.write(DRIVERS, str(number), row, EVENT_NS)
            producer.write(USERS, "user_001", {"age_normalized": 1, "session_count_7d": 2, "ltv_score": 3}, EVENT_NS)
        letter = encode(Kind.delete, DRIVERS, delete_batch(["1001"], EVENT_NS))
        backend.log().bury(1873942786347008000, letter, "a test")
        with WALConsumer(backend, schemas, registry=registry, offline=history) as consumer:
            consumer.drain()
        backend.close()

    def run(self, *words: str, code: int | None = 0, **environment: str) -> Any:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("QUORIN_")}
        variables = {"STORE_DIRECTORY": "data/store", "COLUMNS": "200"}
        done = run_quorin([*words], {**kept, **variables, **environment}, directory=self.directory)
        assert code is None or done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def json(self, *words: str, code: int = 0) -> Any:
        answer = json.loads(self.run(*words, "--json", code=code).stdout)
        assert isinstance(answer, dict)
        assert not OTHER_WORDS & set(keys_of(answer))
        return answer


@pytest.fixture
def repo(tmp_path: Path) -> FeastRepository:
    return FeastRepository(tmp_path)


@pytest.mark.parametrize(
    "words",
    [("generations",), ("inspect",), ("log", "tail"), ("changes", "driver_stats", "--since", "0")],
    ids=" ".join,
)
def test_a_terminal_of_80_columns_cuts_nothing_that_is_copied_elsewhere(
    repo: FeastRepository, words: tuple[str, ...]
) -> None:
    repo.run("put", "Items", "i7", "tags=[]", "price=1")  # the history has all that was in the log
    shown = repo.run(*words, COLUMNS="80").stdout
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    if words != ("inspect",):
        told = json.dumps(repo.json(*words))
        positions = set(re.findall(r'"position": ([0-9]+)', told))
        assert positions
        assert positions <= set(shown.split())
    assert words[0] not in ("inspect", "generations") or "driver_stats" in shown.split()


@pytest.mark.parametrize(
    "words",
    [
        ("get", "1001"), ("get", "1001", "-s", "driver_stats"), ("ready",), ("ready", "--json"),
        ("ready", "--max-lag", "1s"), ("inspect",), ("inspect", "--json"), ("inspect", "driver_stats"), ("doctor",),
        ("top", "--once"),
        ("scan", "driver_stats"), ("export", "driver_stats", "x.parquet"), ("snapshot", "driver_stats", "x.snapshot"),
        ("changes", "driver_stats", "--since", "0"), ("discard", "driver_stats", "--yes"), ("generations",),
        ("put", "driver_stats", "1001", "conv_rate=1", "--partial", "--sync"),
        ("delete", "driver_stats", "1", "--sync"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_missing_segment_is_told_in_the_names_of_feasts_users(repo: FeastRepository, words: tuple[str, ...]) -> None:
    for path in repo.directory.glob("shm/quorin_shop__driver_stats_*"):
        path.unlink()
    done = repo.run(*words, code=None)
    assert done.returncode == (0 if words[0] in ("top", "generations") else 1)
    shown = re.sub(r"quorin_shop__driver_stats_[0-9a-f]{20}", "", done.stdout + done.stderr)  # a file's name
    assert "shop__" not in shown
    assert "__float" not in shown
    if words[0] in ("put", "delete"):
        assert "the write is in the log at position" in shown
    elif words[0] != "generations":
        assert "driver_stats" in shown or "no such file" in shown


def test_names_are_those_of_feasts_users_and_the_engines_with_raw(repo: FeastRepository) -> None:
    seen = repo.run("inspect", "driver_stats").stdout
    assert "conv_rate  Float32" in seen
    assert "tags       Array(String)" in seen
    assert "shop__" not in repo.run("schema").stdout
    (row,) = repo.json("get", "1001")["rows"]
    assert (row["schema"], row["values"]) == ("driver_stats", {"conv_rate": 500.5, "tags": ["a"]})
    assert row["types"] == {"conv_rate": "Float32", "tags": "Array(String)"}
    (row,) = repo.json("get", "1001", "--raw")["rows"]
    assert row["schema"] == "shop__driver_stats"
    assert row["types"] == {"conv_rate__float": "float32", "tags__string_list": "string[]"}
    listed = {schema["schema"]: schema["fields"] for schema in repo.json("schema")["schemas"]}
    assert listed["driver_stats"] == ["conv_rate", "tags"]
    assert listed["UserFeatures"] == [field.name for field in USERS.fields]


def test_a_replacement_is_shown_by_feasts_names(repo: FeastRepository) -> None:
    repo.run("export", "driver_stats", "stats.parquet")
    replace = ["replace", "driver_stats", "--from", "stats.parquet"]
    first = repo.json(*replace)
    assert first["schema"] == "driver_stats"
    rollback = ["rollback", "driver_stats", "--to", f"position:{first['position']}"]
    for words in (replace, rollback):
        assert repo.json(*words, "--raw")["schema"] == "shop__driver_stats"
        shown = repo.run(*words).stdout
        assert "driver_stats" in shown
        assert "shop__" not in shown
    assert repo.json("replace", "driver_stats", "--abort") == {"schema": "driver_stats", "aborted": None}


def test_errors_have_feasts_names_and_the_engines_with_raw(repo: FeastRepository) -> None:
    checks = repo.directory / "checks.json"
    checks.write_text('[{"check": "range", "field": "conv_rate", "low": 0, "high": 1}]')
    repo.run("export", "driver_stats", "stats.parquet")
    replace = "replace", "driver_stats", "--from", "stats.parquet"
    repo.run(*replace)
    for words, code, expected in (
        ([*replace, "--checks", "checks.json"], 3, "driver_stats does not pass 1 of its checks: range of 'conv_rate'"),
        (["rollback", "driver_stats", "--to", "generation:77"], 1, "driver_stats has no generation 77 on this node"),
        (["generations", "driver_stats", "--drop", "2"], 1, "generation 2 of 'driver_stats' is current"),
        (["serve", "--pin", "driver_stats=77", "-c", str(repo.store)], 1, "driver_stats has no generation 77"),
    ):
        shm = {"QUORIN_SHM_DIR": str(repo.directory / "shm")}
        said = repo.run(*words, code=code, **shm).stderr
        assert expected in said
        assert "shop__" not in said
        assert "__float" not in said
        if words[0] != "serve":
            raw = repo.run(*words, "--raw", code=code, **shm).stderr
            assert "shop__driver_stats" in raw
            assert code == 1 or "range of 'conv_rate__float'" in raw
    found = repo.json("check", "driver_stats", "--checks", "checks.json", code=3)
    assert (found["schema"], found["checks"][0]["field"]) == ("driver_stats", "conv_rate")
    listed = {one["schema"] for one in repo.json("generations")["generations"]}
    assert listed == {"driver_stats", "UserFeatures", "Items"}


@pytest.mark.parametrize("raw", [[], ["--raw"]], ids=["feast", "raw"])
def test_every_command_speaks_of_views_by_feasts_names(repo: FeastRepository, raw: list[str]) -> None:
    said = ""
    for line, code in (
        ("put driver_stats 1009 conv_rate=1 --null tags --json", 0),
        ("put driver_stats 1009 conv_rate=much --null tags", 2),
        ("put driver_stats 1009 conv_rate=1", 2),
        ("put driver_stats 1009 conv_rate=1 --partial --sync", 0),
        ("delete driver_stats 1001 --json", 0),
        ("log tail --rows", 0),
        ("deadletter list", 0),
        ("deadletter show 1873942786347008000 --json", 0),
        ("deadletter replay --all --json", 0),
        ("inspect --json", 0),
        ("nodes --schemas", 0),
        ("nodes --json", 0),
        ("doctor --json", None),  # of the machine that runs the tests
        ("snapshot driver_stats drivers.snapshot", 0),
        ("snapshot driver_stats drivers.snapshot --json", 0),
        ("discard driver_stats --yes", 0),
        ("discard driver_stats --yes", 1),
        ("hydrate driver_stats --json", 0),
        ("discard driver_stats --yes --json", 0),
        ("restore drivers.snapshot", 0),
        ("hydrate driver_stats", 1),
        ("compact", 0),
        ("compact --json", 0),
    ):
        words = shlex.split(line)
        done = repo.run(*words, *raw, code=code)
        said += f"{line}: {done.stdout}{done.stderr}\n"
        assert "--json" not in words or not OTHER_WORDS & set(keys_of(json.loads(done.stdout)))
    engines = re.findall(r"(?<!quorin_)shop__driver_stats\b(?!/)|conv_rate__float", said)
    assert bool(engines) == bool(raw), said


def test_a_repository_without_a_store_is_told_what_makes_it(repo: FeastRepository) -> None:
    for words in (("doctor",), ("inspect",)):
        refused = repo.run(*words, code=2, STORE_DIRECTORY="data/new").stderr
        assert re.search(r"there is no store at \S+data/new; `feast apply` makes it", refused)
    refused = repo.run("inspect", "-c", "data/new", code=2).stderr
    assert "there is no store at data/new\n" in refused


def test_errors_say_what_to_do_next(repo: FeastRepository) -> None:
    """Also where the error is told in the names of Feast's users."""
    repo.run("snapshot", "driver_stats", "drivers.snapshot")
    assert (
        "stop the consumer, `quorin discard` the schema, and restore"
        in repo.run("restore", "drivers.snapshot", code=1).stderr
    )
    backend = connect(str(repo.store))
    registry = SegmentRegistry(backend, shm_dir=repo.directory / "shm")
    with registry.open_current(DRIVERS, read_only=False) as segment:
        segment.acquire_writer_lease()
        assert "if it is a consumer, stop it first" in repo.run("discard", "driver_stats", "--yes", code=1).stderr
        late = repo.run(
            "put", "driver_stats", "1001", "conv_rate=1", "--partial", "--sync", "--timeout-ms", "50", code=1
        ).stderr
        assert "the write to 'driver_stats' is in the log at position" in late
        assert "no consumer is running: run `quorin consumer" in late
    last = backend.log().bounds().last
    backend.log().trim(last)
    assert repo.run("log", "tail").stdout == f"no entries; trimmed to {last}\n"
    backend.close()
    lost = repo.run("rollback", "UserFeatures", "--to", "position:5", "-c", str(repo.store), "--shm-dir", "shm", code=1)
    assert "give --offline, or set QUORIN_OFFLINE" in lost.stderr


def test_only_names_change_in_a_text() -> None:
    names = Names({DRIVERS.__name__: DRIVERS, USERS.__name__: USERS})
    text = "shop__driver_stats: 'conv_rate__float' at /data/shop__driver_stats/quorin_shop__driver_stats_0a.kept, age."
    assert names.text(text) == (
        "driver_stats: 'conv_rate' at /data/shop__driver_stats/quorin_shop__driver_stats_0a.kept, age."
    )
    assert Names({DRIVERS.__name__: DRIVERS}, raw=True).text(text) == text


def test_a_field_that_does_not_exist_is_no_missing_row(repo: FeastRepository) -> None:
    unknown = repo.run("get", "1001", "-f", "nope", code=2).stderr
    assert "no schema has the field 'nope'" in unknown
    assert "no row" not in unknown
    unknown = repo.run("get", "1001", "-s", "driver_stats", "-f", "conv", code=2).stderr
    assert "driver_stats has no field 'conv'; did you mean conv_rate?" in unknown
    assert "shop__" not in unknown
    assert [row["values"] for row in repo.json("get", "1001", "-f", "conv_rate")["rows"]] == [{"conv_rate": 500.5}]
    assert "no row for entity id 'nobody'" in repo.run("get", "nobody", "-f", "conv_rate", code=1).stderr


def test_the_connection_and_the_environment_win(repo: FeastRepository, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    connect(str(tmp_path / "other")).close()
    other = str(tmp_path / "other")
    memory = {"QUORIN_SHM_DIR": str(tmp_path / "shm")}
    for words, variables in ((("-c", other), memory), ((), {**memory, "QUORIN_CONNECTION": other})):
        seen = json.loads(repo.run("inspect", "--json", *words, **variables).stdout)
        assert (seen["address"], seen["segments"]) == (other, [])
    file = repo.directory / "feature_store.yaml"
    for text, problem in (
        ("online_store: {type: sqlite}", "is 'sqlite', expected `type: quorin`"),
        ("online_store: {type: quorin, remote: 'http://a:1'}", "is remote: run the command on a machine with segments"),
        ("online_store: {redis_url: 'redis://:hunter2@a", "cannot be read: line"),
        ("- a", "expected keys such as project and online_store, got list"),
    ):
        file.write_text(text)
        said = repo.run("inspect", code=1).stderr
        assert problem in said
        assert "hunter2" not in said
        repo.run("inspect", "-c", other, **memory)
    file.unlink()
    assert "set QUORIN_CONNECTION, or run the command in a Feast repository" in repo.run("inspect", code=2).stderr


def test_rows_are_scanned_exported_deleted_discarded_and_restored(repo: FeastRepository) -> None:
    found = repo.json("scan", "driver_stats", "--prefix", "100", "-f", "conv_rate")
    values = {row["entity_id"]: row["values"] for row in found["rows"]}
    assert values == {str(number): {"conv_rate": number / 2} for number in range(1001, 1004)}
    assert len(repo.json("scan", "driver_stats", "--limit", "2")["rows"]) == 2
    assert sorted(repo.run("scan", "driver_stats", "--ids").stdout.split()) == ["1001", "1002", "1003"]
    assert repo.json("export", "driver_stats", "rows.parquet")["rows"] == 3
    rows = pa.parquet.read_table(repo.directory / "rows.parquet")
    assert rows.column_names == ["entity_id", "event_time_ns", "conv_rate", "tags"]
    assert (repo.directory / "rows.parquet").stat().st_mode & 0o777 == 0o600
    assert "CSV has no lists, as in tags" in repo.run("export", "driver_stats", "rows.csv", code=2).stderr
    assert "No such file or directory" in repo.run("export", "driver_stats", "none/rows.arrow", code=1).stderr
    repo.run("export", "UserFeatures", "rows.csv", "--field", "ltv_score")
    assert (repo.directory / "rows.csv").read_text().splitlines()[1] == f'"user_001",{EVENT_NS},3'
    repo.run("snapshot", "driver_stats", "drivers.snapshot")
    assert "aborted" in repo.run("discard", "driver_stats", code=1).stderr
    assert repo.json("discard", "driver_stats", "--yes")["rows"] == 3
    repo.run("restore", "drivers.snapshot")
    position = repo.json("delete", "driver_stats", "1001", "1002")["position"]
    assert [entry["position"] for entry in repo.json("log", "tail", "-n", "1")["entries"]] == [position]
    repo.run("put", "Items", "i7", "tags=[]", "price=1")
    (entry,) = repo.json("log", "tail", "-n", "1", "-s", "driver_stats")["entries"]
    assert (entry["kind"], entry["schema"], entry["rows"]) == ("delete", "driver_stats", 1)
    assert "'1002'" in repo.run("log", "tail", "--rows").stdout
    assert repo.json("delete", "driver_stats", "1003", "--sync")["is_served"] is True
    assert repo.json("scan", "driver_stats", "--ids")["rows"] == []


def test_what_is_served_is_compared_with_the_history(repo: FeastRepository) -> None:
    """By Feast's names; the repository's history is used only if it is named, as Feast's offline store comes first."""
    words = "skew", "driver_stats", "UserFeatures", "--offline", "data/history"
    drivers, users = repo.json(*words)["views"]
    assert (drivers["name"], users["name"]) == ("driver_stats", "UserFeatures")
    assert (drivers["rows"]["equal"], drivers["compared"], drivers["exceeded"]) == (3, 3, [])
    assert [field["name"] for field in drivers["fields"]] == ["conv_rate", "tags"]
    assert "3 equal" in repo.run(*words).stdout
    history = ParquetDatasetStore(repo.directory / "data" / "history")
    row = {"entity_id": ["1001"], "event_time_ns": [EVENT_NS + 60 * 10**9]}
    late = to_batch(DRIVERS, {**row, "conv_rate__float": [0.25], "tags__string_list": [["a"]]})
    history.append(DRIVERS, late, pa.array([history.flushed_position(DRIVERS) + 1]))
    history.flush()
    shown = repo.run(*words, "--html", "skew.html", "--textfile", "skew.prom", code=1)
    assert "stale by p50 60 s" in shown.stdout
    assert shown.stderr.strip() == (
        "skewed by more than 0 of the entities: driver_stats: stale, driver_stats: conv_rate"
    )
    page = repo.directory / "skew.html"
    assert page.stat().st_mode & 0o777 == 0o600
    assert "conv_rate: 1 stale" in page.read_text()
    metrics = (repo.directory / "skew.prom").read_text()
    assert 'quorin_skew_entities{kind="stale",view="driver_stats"} 1.0' in metrics
    assert 'quorin_skew_staleness_seconds{quantile="max",view="driver_stats"} 60.0' in metrics
    assert repo.json(*words, "--threshold", "0.5")["views"][0]["exceeded"] == []
    as_of = repo.json(*words, "--as-of", "2023-11-14T22:13:30")["views"]
    assert [view["rows"]["equal"] for view in as_of] == [3, 1]
    raw = repo.json(*words[:2], *words[3:], "--raw", "-f", "tags", code=1)["views"]
    assert [(view["name"], [field["name"] for field in view["fields"]]) for view in raw] == [
        ("shop__driver_stats", ["tags__string_list"])
    ]
    assert "No such file or directory" in repo.run(*words, "--html", "none/x.html", code=1).stderr
    assert "there is no history at" in repo.run("skew", "--offline", "data/nothing", code=2).stderr
    assert "give --offline" in repo.run("skew", "-c", "data/store", code=2).stderr


LEAVES = {
    (name, inner) if inner else (name,): leaf
    for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
    for inner, leaf in (getattr(command, "commands", None) or {"": command}).items()
}
UNENDING = {("consumer",), ("metrics",), ("serve",), ("top",), ("watchdog",), ("bench",)}
OF_A_STATE = {
    ("rollback",),
    ("generations",),
    ("served", "replay"),
    ("served", "collect"),
    ("repartition",),
}
"""Commands that run until they are stopped, or for long, or whose examples name a time, a generation or a log of their
own: their examples are only read.
"""
BEFORE = {
    ("hydrate",): ["discard driver_stats --yes"],
    ("check",): [
        "check driver_stats --checks checks.json --save",
        "export driver_stats new.parquet",
        "export UserFeatures new.csv",
    ],
    ("replace",): ["export driver_stats stats.parquet", "export driver_stats exports/one.parquet"],
    ("restore",): ["snapshot driver_stats driver_stats.snapshot", "discard driver_stats --yes"],
}


def examples(leaf: Any) -> list[str]:
    lines = [line.strip() for line in leaf.help.splitlines()]
    return [line for line in lines if line.startswith("quorin ")]


def next_version(schema: Schema, version: int) -> str:
    fields = [*schema.fields, *(FeatureField(f"new_{number}", dtype.float32) for number in range(1, version))]
    return schema_to_json(make_schema(schema.__name__, fields, version=version))


@pytest.mark.parametrize("name", LEAVES, ids="-".join)
def test_examples_run_as_printed(name: tuple[str, ...], repo: FeastRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = repo.directory
    (directory / "feature_repo").mkdir()
    for file in ("key.pem", "cert.pem", "token"):
        (directory / file).write_text("secret")
    (directory / "user_v2.json").write_text(next_version(USERS, 2))
    (directory / "features").mkdir()
    (directory / "features" / "user.py").write_text(
        f"from quorin.schema import schema_from_json\nUserFeatures = schema_from_json('''{next_version(USERS, 3)}''')\n"
    )
    (directory / "exports").mkdir()
    for file in ("checks.json", "checks.yaml"):
        (directory / file).write_text('[{"check": "row_count", "at_least": 1}]')
    printed = examples(LEAVES[name])
    assert printed, f"the help of {name} has no examples"
    assert "Exit codes:" in LEAVES[name].help
    for line in BEFORE.get(name, []):
        repo.run(*shlex.split(line))
    for line in printed:
        if line == "quorin deadletter replay --all":
            continue  # the first example has replayed it
        words = shlex.split(line, comments=True)[1:]
        words = words[: words.index(">")] if ">" in words else words
        needs_feast = "--reference" in words or (name == ("skew",) and "--offline" not in words)
        if needs_feast or name in OF_A_STATE or (name in UNENDING and "--once" not in words):
            monkeypatch.chdir(directory)
            monkeypatch.setenv("STORE_DIRECTORY", "data/store")
            monkeypatch.setenv("QUORIN_SERVED_LOG", "data/served")
            repository.cache_clear()
            LEAVES[name].make_context("quorin", words[len(name) :])
        elif name == ("doctor",):
            run_quorin(words, {**os.environ, "STORE_DIRECTORY": "data/store"}, directory=directory)
        else:
            answer = repo.run(*words)
            if "--json" in words:
                assert isinstance(told := json.loads(answer.stdout), dict)
                assert not OTHER_WORDS & set(keys_of(told))
    repository.cache_clear()
