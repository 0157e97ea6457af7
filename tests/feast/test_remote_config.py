"""Settings of a remote store: which there are, what they exclude, and the store that Feast makes of them."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
from feast.infra.online_stores.helpers import get_online_store_from_config

from feast_quorin import QuorinOnlineStoreConfig
from feast_quorin.config import ConfigError
from feast_quorin.online_store import QuorinOnlineStore, QuorinRemoteOnlineStore

URL = "https://features.example:6566"


@pytest.mark.parametrize("url", [URL, "http://127.0.0.1:1/prefix", "http://[::1]:6566", "https://host"])
def test_feast_makes_a_store_without_segments(url: str) -> None:
    settings = QuorinOnlineStoreConfig(type="quorin", remote=url)
    for config in (settings, copy.copy(settings), pickle.loads(pickle.dumps(settings))):
        assert (config.remote, type(get_online_store_from_config(config))) == (url, QuorinRemoteOnlineStore)
    for config in (QuorinOnlineStoreConfig(), QuorinOnlineStoreConfig(remote=None)):
        assert type(get_online_store_from_config(config)) is QuorinOnlineStore


def test_files_are_relative_to_the_repository(tmp_path: Path) -> None:
    settings = QuorinOnlineStoreConfig(remote=URL, token_file="token", tls_ca="/etc/ca.pem")  # noqa: S106
    assert settings.server_files(tmp_path) == (tmp_path / "token", Path("/etc/ca.pem"))
    assert QuorinOnlineStoreConfig(remote=URL).server_files(tmp_path) == (None, None)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"remote": "features:6566"}, "remote: expected http://host:port or https://host:port"),
        ({"remote": "redis://host"}, "remote: expected http.*got 'redis://host'"),
        ({"remote": "https://u:s3cret@host"}, "remote: expected .*without user, password.*got 'https://host'"),
        ({"remote": "https://host?token=s3cret"}, "remote: expected .*got 'https://host'"),
        ({"remote": "https://"}, "remote: expected http"),
        ({"remote": "https://host/#s3cret"}, "remote: expected http.*got 'https://…'"),
        ({"remote": "https://host\r\nX: s3cret"}, "remote: expected http.*got 'https://…'"),
        ({"remote": 7}, "remote: .*string, got 7"),
        ({"remote": URL, "path": "a"}, "path and remote exclude each other: set path where the segments are"),
        ({"remote": URL, "redis_url": "redis://u:s3cret@h"}, "redis_url and remote exclude each other"),
        ({"remote": URL, "shm_dir": "segments", "wait": "logged"}, "shm_dir and remote .*; wait and remote"),
        ({"remote": URL, "timeout_ms": 0}, "timeout_ms: expected a whole number of 1 or more, got 0"),
        ({"remote": URL, "token_file": ""}, "token_file: expected a file, got ''"),
        ({"token_file": "token"}, "token_file 'token' needs remote, bootstrap_from or redis_url"),
        ({"tls_ca": "ca.pem"}, "tls_ca 'ca.pem' needs remote, bootstrap_from or redis_url"),
    ],
    ids=str,
)
def test_bad_settings_are_named(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        QuorinOnlineStoreConfig(**settings)
    assert "s3cret" not in str(caught.value)
