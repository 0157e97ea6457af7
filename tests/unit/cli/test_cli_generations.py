"""``quorin generations`` and ``quorin serve --pin`` as their users have them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from quorin import layout
from quorin.evolution import upgrade_schema
from quorin.shm import SegmentRegistry
from tests.support.commands import run_quorin
from tests.support.segment_site import Site, post, serving_site
from tests.support.upgrades import IDS, table, version


class Place:
    """A segment of version 3, with its versions 1 and 2 kept."""

    def __init__(self, tmp_path: Path) -> None:
        self.store, self.shm_dir, self.path = tmp_path / "store", tmp_path / "shm", tmp_path
        self.shm_dir.mkdir()
        self.registry = SegmentRegistry(self.store, shm_dir=self.shm_dir, keep_generations=5)
        with self.registry.create(version(1), capacity=100) as segment:
            layout.insert_many(segment, table(version(1), 1))
        upgrade_schema(version(1), version(2), self.registry)
        upgrade_schema(version(2), version(3), self.registry)
        with self.registry.open_stored("Moving", read_only=False) as segment:
            layout.insert_many(segment, table(version(3), 3))

    def run(self, *words: str, code: int = 0) -> Any:
        places = {"QUORIN_CONNECTION": str(self.store), "QUORIN_SHM_DIR": str(self.shm_dir)}
        environment = {**os.environ, **places, "COLUMNS": "200", "NO_COLOR": "1"}
        done = run_quorin([*words], environment, directory=self.path)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done


@pytest.fixture
def place(tmp_path: Path) -> Any:
    place = Place(tmp_path)
    yield place
    place.registry.backend.close()


def test_generations_are_listed_and_dropped(place: Place) -> None:
    with place.registry.open_stored("Moving", pin="v1"):
        listed = json.loads(place.run("generations", "--json").stdout)["generations"]
        facts = [(one["schema"], one["generation"], one["version"], one["state"], one["pinned"]) for one in listed]
        assert facts == [
            ("Moving", 3, 3, "current", False),
            ("Moving", 2, 2, "kept", False),
            ("Moving", 1, 1, "kept", True),
        ]
        assert [one["kept_after"] for one in listed] == [None, "upgrade", "upgrade"]
        assert all(one["rows"] == len(IDS) and one["bytes"] > 0 for one in listed)
        assert [holder.split(":")[-2] for holder in listed[2]["pinned_by"]] == [str(os.getpid())]
        shown = place.run("generations", "Moving").stdout
        assert str(os.getpid()) in shown
        for number, state in ((3, "current"), (1, "pinned")):
            refused = place.run("generations", "Moving", "--drop", "2", "--drop", str(number), code=1).stderr
            assert f"generation {number} of 'Moving' is {state}" in refused
        assert (
            "there is no generation 9; there are: 3, 2, 1"
            in place.run("generations", "Moving", "--drop", "9", code=2).stderr
        )
        assert "removed generation 2" in place.run("generations", "Moving", "--drop", "2").stdout
    place.run("generations", "Moving", "--drop", "1")
    assert [one.number for one in place.registry.generations("Moving")] == [3]


def test_a_server_stays_with_a_generation(place: Place) -> None:
    site = Site(place.store, place.shm_dir, place.registry)
    with serving_site(site, place.path / "log", "--pin", "Moving=v1") as server:
        found = post(server, "/v1/read", {"schema": "Moving", "entity_ids": IDS[:1]}).json()
        assert (found["version"], found["features"]["counter"]) == (1, [1])
        assert "new_in_0" in found["features"]
        assert [one.is_pinned for one in place.registry.generations("Moving")] == [False, False, True]
    assert "no generation 'v9'" in place.run("serve", *site.options, "--pin", "Moving=v9", code=1).stderr
    assert "expected a generation such as 17" in place.run("serve", *site.options, "--pin", "Moving", code=2).stderr
