from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from feast.repo_config import FeastConfigError, RepoConfig, load_repo_config
from hypothesis import given
from hypothesis import strategies as st

from feast_quorin import QuorinOnlineStore, QuorinOnlineStoreConfig
from feast_quorin.config import ConfigError
from quorin.errors import QuorinError
from tests.support.passwords import urls_with_passwords, without_password


def test_every_key_has_a_default(tmp_path: Path) -> None:
    config = QuorinOnlineStoreConfig()
    assert config.type == "quorin"
    assert config.connection(tmp_path) == str(tmp_path / "data" / "quorin")


@pytest.mark.parametrize("name", ["quorin", "feast_quorin.QuorinOnlineStore"])
def test_both_names_are_taken(name: str) -> None:
    assert QuorinOnlineStoreConfig(type=name).type == name


def test_paths_are_relative_to_the_repository(tmp_path: Path) -> None:
    assert QuorinOnlineStoreConfig(path="here").connection(tmp_path) == str(tmp_path / "here")
    assert QuorinOnlineStoreConfig(path="/there").connection(tmp_path) == "/there"
    assert QuorinOnlineStoreConfig(path="here").connection(None) == str(Path.cwd() / "here")
    for url in ("redis://h:1/2", "rediss://u:p@h:1,g:2?cluster=true", "redis+sentinel://h,g/svc/1", "unix:///r.sock"):
        assert QuorinOnlineStoreConfig(redis_url=url).connection(tmp_path) == url


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pth": "x"}, "pth: unknown key, did you mean path?"),
        ({"ttl": 1}, "ttl: unknown key, expected one of .*type, path, redis_url"),
        (
            {"path": "a", "redis_url": "redis://u:s3cret@h"},
            "path 'a' and redis_url 'redis://h' exclude each other",
        ),
        ({"path": ""}, "path: expected a directory, got ''"),
        ({"path": 7}, "path: .*string, got 7"),
        (
            {"redis_url": "http://:s3cret@h"},
            "redis_url: expected a URL that starts with redis://.*got 'http://h'",
        ),
        ({"redis_url": "localhost:6379"}, "redis_url: expected a URL"),
        ({"redis_url": "redis+sentinel://:s3cret@h:1"}, r"sentinel://.*/service/db.*, got 'redis\+sentinel://…'"),
        ({"redis_url": "redis://:s3cret@h:1,g:2"}, r"\?cluster=true.*, got 'redis://…'"),
        ({"redis_url": "redis://:s3cret/x@h"}, r"redis_url: expected redis://\[user:.*%2F for /.*, got 'redis://…'"),
        ({"redis_url": ["redis://:s3cret@h"]}, "redis_url: .*string, got list"),
        ({"path": "redis://:s3cret@h"}, "path: expected a directory, not a URL, got 'redis://h'"),
        ({"offline_path": "s3://K:s3cret/x@b"}, r"offline_path: expected a directory or scheme://.*, got 's3://…'"),
        ({"consumer": "sometimes"}, "consumer: .*'auto', 'external' or 'inline', got 'sometimes'"),
        ({"wait": "never"}, "wait: .*'applied', 'logged' or 'fleet', got 'never'"),
        ({"capacity": 0}, "capacity: expected a whole number of 1 or more, got 0"),
        ({"capacity": 1.5}, "capacity: .*got 1.5"),
        ({"timeout_ms": True}, "timeout_ms: .*got True"),
        ({"key_ttl_seconds": 0}, "key_ttl_seconds: expected a whole number of 1 or more, got 0"),
        ({"partitions": 12}, "partitions: .*1, 2, 4, 8, 16, .* or 256, got 12"),
        ({"partitions": "16"}, "partitions: .* or 256, got '16'"),
        ({"type": "redis"}, "type: .*'quorin'.*got 'redis'"),
    ],
)
def test_bad_settings_are_named_in_one_error(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        QuorinOnlineStoreConfig(**settings)
    assert isinstance(caught.value, (QuorinError, FeastConfigError))
    assert "s3cret" not in str(caught.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError, match=r"(?s)capacity.*; .*pth"):
        QuorinOnlineStoreConfig(capacity=-1, pth="x")


def test_feast_reads_the_settings_and_passes_the_error_on(tmp_path: Path) -> None:
    settings = tmp_path / "feature_store.yaml"
    text = "project: p\nprovider: local\nregistry: r.db\nonline_store:\n  type: feast_quorin.QuorinOnlineStore\n"
    settings.write_text(text + "  capacity: 9\n")
    config = load_repo_config(tmp_path, settings)
    assert isinstance(config.online_store, QuorinOnlineStoreConfig)
    assert config.online_store.capacity == 9
    settings.write_text(text + "  redis_url: nonsense://:s3cret@h\n")
    with pytest.raises(ConfigError, match="redis_url") as caught:
        load_repo_config(tmp_path, settings)
    assert "s3cret" not in str(caught.value)


def test_feast_finds_the_store_beside_its_config() -> None:
    from feast.infra.online_stores.helpers import get_online_store_from_config

    config = RepoConfig(
        project="p", provider="local", registry="r.db", online_store={"type": "feast_quorin.QuorinOnlineStore"}
    )
    assert isinstance(get_online_store_from_config(config.online_store), QuorinOnlineStore)


@given(
    urls_with_passwords(
        "redis://u:PASSWORD@h:1/0",
        "redis://h:1/0?username=a&Password=PASSWORD",
        "redis://h/0?password=PASSWORD",
        "redis://u:PASSWORD",
        "redis://us er:PASSWORD@h",
        "unix://:PASSWORD@/run/r.sock",
        "rdis://:PASSWORD",
        "REDIS://:PASSWORD@h",
        "redis:/:PASSWORD@h",
        "u:PASSWORD@h",
    ),
    st.sampled_from([str, str.encode, lambda url: [url], lambda url: {"url": url}]),
)
def test_nothing_of_a_password_is_in_an_error(url: str, made: Any) -> None:
    for settings in ({"path": "x", "redis_url": made(url)}, {"redis_url": made(url), "capacity": 0}):
        with pytest.raises(ConfigError) as caught:
            QuorinOnlineStoreConfig(**settings)
        without_password(caught.value)


@given(
    urls_with_passwords("s3://KEY:PASSWORD@bucket/x", "s3://KEY:PASSWORD", "redis://u:PASSWORD@h", "rdis://:PASSWORD")
)
def test_no_setting_shows_the_password_of_a_url(url: str) -> None:
    for key in ("path", "shm_dir", "consumer", "capacity", "enforce_ttl", "type"):
        with pytest.raises(ConfigError, match=f"^{key}: ") as caught:
            QuorinOnlineStoreConfig(**{key: url})
        without_password(caught.value)
    try:
        text: object = repr(QuorinOnlineStoreConfig(offline_path=url))
    except ConfigError as error:
        text = error
    without_password(text)


def test_settings_are_shown_without_the_urls_that_may_hold_passwords() -> None:
    settings = QuorinOnlineStoreConfig(
        redis_url="redis://:s3cret@h", offline_path="s3://KEY:s3cret@bucket/x", snapshots="s3://K:s3cret@b/y"
    )
    assert "s3cret" not in f"{settings!r} {settings}"


def test_a_process_that_changes_its_directory_keeps_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = QuorinOnlineStoreConfig(shm_dir="shm", offline_path="history", snapshots="s3://bucket/x")
    monkeypatch.chdir("/")
    for settings in (made, pickle.loads(pickle.dumps(made))):
        assert settings.shm_dir == str(tmp_path / "shm")
        repo = tmp_path / "repo"
        places = str(repo / "data" / "quorin"), str(repo / "history"), "s3://bucket/x"
        assert settings.places(Path("repo")) == places
        assert settings.connection(Path("/elsewhere")) == "/elsewhere/data/quorin"


def test_absolute_paths_need_no_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "removed").mkdir()
    monkeypatch.chdir(tmp_path / "removed")
    (tmp_path / "removed").rmdir()
    settings = QuorinOnlineStoreConfig(shm_dir=str(tmp_path))
    assert settings.shm_dir == str(tmp_path)
    assert settings.connection(tmp_path) == str(tmp_path / "data" / "quorin")
