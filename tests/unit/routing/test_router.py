"""The router: a refusal of one server, and of all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from quorin.engine.backend import connect
from quorin.engine.memory.node import Node
from quorin.engine.ops.holders import holders_path
from quorin.engine.routing.asking import finish
from quorin.engine.routing.connections import Answered, Outgoing
from quorin.engine.routing.router import Router, RowsRequest, Waiting
from quorin.errors import NotYetAppliedError, TokenError

Answers = Callable[[str], Answered]
QUESTION = RowsRequest("/v1/read", {}, "S", Waiting("token"), lambda _: None, 2)
LATE = {"detail": "late", "error": "NotYetAppliedError"}


def stream() -> Answered:
    sink, batch = pa.BufferOutputStream(), pa.record_batch({"found": [True]})
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return Answered(200, sink.getvalue().to_pybytes())


def refused(**about: Any) -> Answered:
    return Answered(412, json.dumps(about).encode())


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Router]:
    """Two servers hold partition 1."""
    backend = connect(str(tmp_path / "store"))
    (tmp_path / "shm").mkdir()
    node = Node(tmp_path / "shm", backend)
    nodes = [{"node": name, "urls": [f"http://{name}"], "count": 2, "held": [1], "ready": name == "a"} for name in "ab"]
    holders_path(node).write_text(json.dumps({"format": 1, "count": 2, "nodes": nodes}))
    yield Router(node)
    backend.close()


@pytest.fixture
def asked(router: Router) -> Callable[[Answers], tuple[list[str], Any]]:
    """Ask, with answers by URL: which servers were asked, and what was fetched."""

    def ask(answers: Answers) -> tuple[list[str], Any]:
        urls: list[str] = []

        class Fake:
            def exchange(self, requests: list[Outgoing], *, timeout_seconds: float) -> list[Answered]:
                assert timeout_seconds
                urls.extend(request.url for request in requests)
                return [answers(request.url) for request in requests]

        router._connections = Fake()  # type: ignore[assignment]
        return urls, finish(router.fetch(QUESTION, pa.array(["x"]), np.array([1], np.uint8)))

    return ask


@pytest.mark.parametrize("refusal", [refused(detail="of another log", error="TokenError"), refused(**LATE)])
def test_what_one_server_refuses_another_is_asked(asked: Any, refusal: Answered) -> None:
    urls, fetched = asked(lambda url: refusal if url == "http://a" else stream())
    assert urls == ["http://a", "http://b"]
    assert (len(fetched.parts), fetched.lacking) == (1, {})


def test_a_token_that_all_refuse_is_an_error(asked: Any) -> None:
    with pytest.raises(TokenError, match="of another log"):
        asked(lambda _: refused(detail="of another log", error="TokenError"))


def test_a_server_that_has_waited_is_believed(asked: Any) -> None:
    with pytest.raises(NotYetAppliedError):
        asked(lambda _: refused(**LATE, schema="S", position=7, timeout_ms=5, applied=3))


def test_a_refusal_without_its_fields_is_a_reason(asked: Any) -> None:
    _, fetched = asked(lambda _: refused(**LATE))
    assert fetched.lacking == {1: ["http://a: 412: late", "http://b: 412: late"]}
