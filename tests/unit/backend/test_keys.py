"""Every name of the control plane stands in the page that documents it."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from quorin.engine.backend import growth_keys, keys, load_keys, partition_keys
from quorin.errors import ConnectionFailedError

PAGE = (Path(__file__).parents[3] / "docs" / "format.md").read_text()


def test_every_key_is_tabled() -> None:
    log = keys.log_keys("namespace", "LOG")
    names = {getattr(log, field.name).replace("{namespace}:LOG", "<log>") for field in fields(log)}
    names |= {function("namespace") for function in keys._NAMESPACE_KEYS}
    tabled = set(re.findall(r"^\| `([^`]+)` \| (?:hash|string|stream) \|", PAGE, flags=re.MULTILINE))
    assert tabled == names
    assert all(f"``{name}``" in (keys.__doc__ or "") for name in names)


def test_every_script_and_table_is_named() -> None:
    names = [name for module in (keys, load_keys, partition_keys, growth_keys) for name in vars(module)]
    assert all(name in PAGE for name in names if name.startswith("LUA_"))
    tables = re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", keys.SQL_SCHEMA)
    assert len(tables) == 13
    assert all(f"`{name}`" in PAGE for name in tables)


@pytest.mark.parametrize(
    "suffix",
    [
        "current",
        "schemas",
        "beginnings",
        "dropped",
        "processes",
        "heartbeats",
        "clock",
        "replicas",
        "partitions",
        "growth",
        "closed",
        "identity",
        "trimmed",
        "historian",
        "dead",
        "reasons",
    ],
)
def test_a_log_s_name_must_not_end_in_a_reserved_suffix(suffix: str) -> None:
    for name in (suffix, f"mine:{suffix}"):
        with pytest.raises(ConnectionFailedError, match=f"stream key '{name}'.* reserved suffix .*'{suffix}'"):
            keys.check_stream_key(name)
    keys.check_stream_key(f"{suffix}:mine")
