"""What Ray, Dask, joblib and PySpark send to other processes arrives there, or is refused with what to send instead."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from quorin import assembly
from quorin.errors import NotPicklableError, QuorinError
from quorin.offline import ParquetDatasetStore
from quorin.schema import (
    FeatureField,
    FeatureSchema,
    Schema,
    dtype,
    fingerprint,
    make_schema,
    schema_from_json,
    schema_to_json,
)
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.schemas import Everything

DEFINITION = """
from quorin.schema import FeatureField, FeatureSchema, dtype
class Trips(FeatureSchema):
    \"\"\"What trips are.\"\"\"
    version = 2
    fields = [FeatureField("distance", dtype.float32, default=0.5), FeatureField("tags", dtype.string, (None,)),
              FeatureField("at", dtype.int64)]
    tie_breaker = "at"
    entity = "trip_id"
    @classmethod
    def names(cls):
        return [field.name for field in cls.fields]
"""


def python(code: str, *arguments: str) -> str:
    return subprocess.check_output([sys.executable, "-c", code, *arguments], text=True, timeout=180)


def other_version(schema: Schema) -> Schema:
    return make_schema(schema.__name__, schema.fields, version=schema.version + 1, entity=schema.entity)


@pytest.mark.parametrize("library", [pickle, cloudpickle])
@pytest.mark.parametrize("schema", [Everything, schema_from_json(schema_to_json(Everything))])
def test_schemas_come_back_equal(library: Any, schema: Schema) -> None:
    back = library.loads(library.dumps(schema))
    assert back == schema == Everything
    assert hash(back) == hash(schema)
    assert {schema: 1}[back] == 1
    assert schema_to_json(back) == schema_to_json(schema)
    assert fingerprint(back) == fingerprint(schema)
    assert back != other_version(schema)
    assert back not in {other_version(schema), FeatureSchema}
    assert back != schema_to_json(schema)


def test_schemas_that_can_be_imported_are_pickled_by_name() -> None:
    assert pickle.loads(pickle.dumps(Everything)) is Everything


def test_schemas_inside_functions_are_pickled_as_json() -> None:
    class Local(FeatureSchema):
        version = 1
        fields = [FeatureField("n", dtype.int64)]

    assert pickle.loads(pickle.dumps(Local)) == Local


@pytest.mark.parametrize("library", ["pickle", "cloudpickle"])
def test_schemas_of_a_script_are_equal_in_another_process(library: str, tmp_path: Path) -> None:
    file = str(tmp_path / "pickled")
    python(f"{DEFINITION}\nimport sys, {library}; open(sys.argv[1], 'wb').write({library}.dumps(Trips))", file)
    said = python(
        f"import sys, pickle; sent = pickle.load(open(sys.argv[1], 'rb'))\n{DEFINITION}\n"
        "from quorin.schema import fingerprint as number\n"
        "assert sent == Trips and hash(sent) == hash(Trips) and number(sent) == number(Trips) and sent is not Trips\n"
        "import cloudpickle; assert cloudpickle.loads(cloudpickle.dumps(sent)) == Trips\n"
        "print(sent.__name__, sent.version, sent.tie_breaker, sent.entity, len(sent.fields))",
        file,
    )
    assert said == "Trips 2 at trip_id 3\n"


def test_methods_of_schemas_survive_cloudpickle(tmp_path: Path) -> None:
    file = str(tmp_path / "pickled")
    python(f"{DEFINITION}\nimport sys, cloudpickle; open(sys.argv[1], 'wb').write(cloudpickle.dumps(Trips))", file)
    said = python("import sys, pickle; print(pickle.load(open(sys.argv[1], 'rb')).names())", file)
    assert said == "['distance', 'tags', 'at']\n"


def test_a_class_without_fields_is_still_refused() -> None:
    with pytest.raises(QuorinError, match="version must be an int"):

        class Empty(FeatureSchema):
            pass


NUMBERS = make_schema("Numbers", [FeatureField("n", dtype.int64)])


def test_registries_producers_and_histories_are_pickled_by_their_connection(connection: str, tmp_path: Path) -> None:
    registry = SegmentRegistry(connection, shm_dir=tmp_path)
    registry.create(NUMBERS, capacity=4).close()
    producer = WALProducer(registry.backend, registry=registry)
    history = ParquetDatasetStore(tmp_path / "history")
    producer.write(NUMBERS, "a", {"n": 1})
    file = tmp_path / "pickled"
    file.write_bytes(cloudpickle.dumps((NUMBERS, registry, producer, history)))
    python(
        """
import pickle, sys
from quorin.wal_consumer import WALConsumer
schema, registry, producer, history = pickle.load(open(sys.argv[1], "rb"))
producer.write(schema, "b", {"n": 2})
with WALConsumer(registry.backend, schema, registry=registry, offline=history) as consumer:
    consumer.drain()
""",
        str(file),
    )
    with registry.open_current(NUMBERS) as segment:
        assert assembly.read(segment, ["a", "b"]).column("n").to_pylist() == [1, 2]
    assert history.latest_features(NUMBERS).column("n").to_pylist() == [1, 2]


def test_what_is_this_process_s_own_is_refused(tmp_path: Path) -> None:
    registry = SegmentRegistry(tmp_path / "store", shm_dir=tmp_path)
    vectors = make_schema("Vectors", [FeatureField("v", dtype.float32, (2,))])
    segment = registry.create(vectors, capacity=4)
    consumer = WALConsumer(registry.backend, [segment], registry=registry)
    pipeline = WALProducer(registry.backend).pipeline(vectors)
    bound = [
        segment,
        assembly.reader(segment),
        assembly.column_reader(segment),
        assembly.row_reader([(segment, None)]),
    ]
    for each in bound:
        with pytest.raises(NotPicklableError, match="pickle the SegmentRegistry and the schema"):
            cloudpickle.dumps(each)
    with pytest.raises(TypeError, match="make one in the other process"):
        pickle.dumps(consumer)
    with pytest.raises(TypeError, match="pickle the WALProducer"):
        pickle.dumps(pipeline)


def test_types_and_fields_are_pickled_by_their_public_name() -> None:
    field = FeatureField("n", dtype.int64)
    content = pickle.dumps(field)
    assert b"quorin.schema" in content
    assert b"quorin.engine" not in content
    assert pickle.loads(content) == field
