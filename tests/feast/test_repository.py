"""What commands read of a repository without Feast is what Feast reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from feast.types import from_value_type
from feast.value_type import ValueType

from feast_quorin.config import StoreSettings
from feast_quorin.names import FEAST_TYPES, field_name, schema_name
from feast_quorin.repository import find, shown_feature, shown_view
from quorin.cli.options import resolve_name


@pytest.mark.parametrize(
    "settings",
    [
        {"type": "quorin"},
        {"type": "feast_quorin.QuorinOnlineStore", "path": "elsewhere", "offline_path": "data/history"},
        {"type": "quorin", "path": "/absolute", "shm_dir": "memory", "shm_group": 0, "snapshots": "s3://bucket/here"},
        {"type": "quorin", "redis_url": "redis://:secret@host:6379/1", "offline_path": "~/history"},
    ],
)  # fmt: skip
def test_the_store_is_the_one_that_feast_opens(
    settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "feature_store.yaml").write_text(yaml.safe_dump({"project": "shop", "online_store": settings}))
    found, opened = find(tmp_path), StoreSettings(**settings)
    assert found is not None
    assert (found.connection, found.offline, found.snapshots) == opened.places(tmp_path)
    assert found.shm_dir in (None, opened.shm_dir)
    assert found.shm_group in (None, str(opened.shm_group))


def test_the_file_is_where_feast_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(tmp_path) is None
    (tmp_path / "other.yaml").write_text("{project: shop, online_store: quorin}")
    monkeypatch.setenv("FEAST_FS_YAML_FILE_PATH", str(tmp_path / "other.yaml"))
    found = find(tmp_path / "anywhere")
    assert found is not None
    assert (found.project, found.connection) == ("shop", str(tmp_path / "data" / "quorin"))


def test_types_are_called_as_feast_calls_them() -> None:
    assert set(FEAST_TYPES) >= {kind.name.lower() for kind in ValueType}
    for name in ("BYTES", "FLOAT", "DOUBLE", "INT64_LIST", "UNIX_TIMESTAMP", "STRING_SET", "MAP_LIST", "DECIMAL"):
        assert FEAST_TYPES[name.lower()] == str(from_value_type(ValueType[name]))
    assert shown_feature(field_name("conv_rate", "float")) == ("conv_rate", "Float32")
    assert shown_feature("a__x") is None
    assert shown_view("shop__trip", ["score"]) is None
    assert shown_view("shop__trip", ["score__float", "created_ns"]) == "trip"


def test_names_that_are_no_identifiers_can_be_typed() -> None:
    stored = [schema_name("shop", "driver-stats"), schema_name("shop", "driver.stats")]
    assert resolve_name(stored, "driver-stats", "here") == stored[0]
    assert resolve_name(stored, "driver.stats", "here") == stored[1]
