"""Settings that cannot work: one clear error when the repository is opened, or when it is applied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from feast import FeatureStore

from quorin.errors import QuorinError
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from tests.feast.repos import definitions, write_data

FORBIDDEN = "/sys/quorin"
"""Where nobody can make anything, root included."""


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    repo = tmp_path / "repo"
    write_data(repo / "data")
    (tmp_path / "segments").mkdir()
    (tmp_path / "file").write_text("")
    return repo


def opened(repo: Path, **settings: Any) -> FeatureStore:
    online_store = {"type": "feast_quorin.QuorinOnlineStore", "shm_dir": str(repo.parent / "segments"), **settings}
    config = {
        "project": "shop",
        "provider": "local",
        "registry": "data/registry.db",
        "online_store": online_store,
        "entity_key_serialization_version": 3,
    }
    (repo / "feature_store.yaml").write_text(yaml.safe_dump(config))
    return FeatureStore(str(repo))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pth": "x"}, "pth: unknown key, did you mean path?"),
        ({"ttl": 1}, "ttl: unknown key, expected one of type, path, redis_url"),
        (
            {"path": "data/q", "redis_url": "redis://:s3cret@localhost"},
            "path 'data/q' and redis_url .* exclude each other",
        ),
        ({"wait": "never"}, "wait: .*'applied', 'logged' or 'fleet', got 'never'"),
    ],
)
def test_what_is_wrong_in_itself_is_said_when_the_repository_is_opened(
    repo: Path, settings: dict[str, Any], expected: str
) -> None:
    with pytest.raises(QuorinError, match=expected) as caught:
        opened(repo, **settings)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"redis_url": "redis://:s3cret@127.0.0.1:1/0"}, r"127\.0\.0\.1:1"),
        ({"redis_url": "unix:///nowhere/redis.sock?password=s3cret"}, "/nowhere/redis.sock"),
        ({"path": "no/such/place"}, "no/such/place"),
        ({"path": "../file/place"}, "file/place"),
        ({"path": FORBIDDEN}, FORBIDDEN),
        ({"shm_dir": FORBIDDEN}, FORBIDDEN),
        ({"shm_dir": "/no/such/place"}, "/no/such/place"),
    ],
)
def test_what_is_not_there_is_said_when_the_repository_is_applied(
    repo: Path, settings: dict[str, Any], expected: str
) -> None:
    store = opened(repo, **settings)
    with pytest.raises(QuorinError, match=expected) as caught:
        store.apply(definitions(repo / "data"))
    assert "s3cret" not in str(caught.value)
    assert list((repo.parent / "segments").iterdir()) == []


def test_a_segment_that_is_no_feature_views_is_left_alone(repo: Path) -> None:
    store = opened(repo, path="data/quorin")
    other = make_schema("shop__pair_stats", [FeatureField("rides", dtype.float32)])
    registry = SegmentRegistry(repo / "data" / "quorin", shm_dir=repo.parent / "segments")
    with registry.create(other, capacity=8) as segment:
        with pytest.raises(QuorinError, match=r"'pair_stats': the schema 'shop__pair_stats' at .*data/quorin.*'rides'"):
            store.apply(definitions(repo / "data"))
        with registry.open_current(other) as still:
            assert still.name == segment.name
            assert still.schema.fields == other.fields
        registry.discard(segment)
    store.teardown()
    registry.backend.close()
