"""Calls on segment files that the system refuses while a log is drained: a clear error, and the next drain goes on."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from quorin.errors import QuorinError
from quorin.schema import FeatureField, dtype, make_schema
from tests.support.machines import Machine

Pair = make_schema("Pair", [FeatureField("a", dtype.float64), FeatureField("b", dtype.string)])


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EMLINK])
@pytest.mark.parametrize(
    ("owner", "name"), [(os, "link"), (os, "unlink"), (os, "posix_fallocate"), (os, "open"), (fcntl, "flock")]
)
@pytest.mark.parametrize("step", ["create", "grow"])
def test_drain_raises_no_raw_error_and_goes_on(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int, step: str
) -> None:
    rows = 40 if step == "create" else 4000
    if step == "grow":
        machine.producer.write(Pair, "first", {"a": 0.0, "b": "x"}, 1)
        machine.drain([Pair], capacity=64)
    machine.producer.write_many(
        Pair, {"entity_id": [f"e{row}" for row in range(rows)], "a": [1.0] * rows, "b": ["text"] * rows}
    )
    real, refused = getattr(owner, name), []

    def refuse(*arguments: Any, **options: Any) -> Any:
        where = arguments[0]
        path = str(Path(f"/proc/self/fd/{where}").readlink() if isinstance(where, int) else where)
        if str(machine.shm) in path and "quorin_Pair" in path:
            refused.append(path)
            raise OSError(number, os.strerror(number), path)
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(QuorinError, match=os.strerror(number)):
        machine.drain([Pair], capacity=64)
    monkeypatch.undo()
    assert refused
    machine.drain([Pair], capacity=64)
    with machine.registry.open_current(Pair) as segment:
        assert len(segment) == rows + (step == "grow")
