"""Servers of nodes that hold some partitions: they answer for all ids, as the server of a node that holds all."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pyarrow as pa
import pytest
import requests
from hypothesis import given, settings

from quorin.engine.format.partition import partition_of
from quorin.engine.ops.holders import publish_holders
from tests.support.freezing import freeze
from tests.support.http import Running, make_certificate
from tests.support.partial_nodes import PARTITIONS, PartialNodes
from tests.support.schemas import Everything
from tests.support.segment_site import ARROW, CITY, DRIVER, ROWS, batch_of, post

IDS = [str(number) for number in range(24)]
NOW_NS = 1_700_000_000_000_000_000


class Site(NamedTuple):
    """Nodes, and their servers: one of a node with all partitions, which no other asks, and two of each half."""

    nodes: PartialNodes
    full: Running
    low: Running
    masking: Running
    high: Running


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("partial")
    nodes = PartialNodes(folder, str(folder / "store"), {"full": None, "low": "0-1", "high": "2-3"})
    for node in nodes.nodes.values():
        for schema in (Everything, DRIVER, CITY):
            node.registry.create(schema, capacity=64).close()
    for entity_id, values in ROWS.items():
        row = {field.name: values.get(field.name) for field in Everything.fields}
        nodes.producer.write(Everything, entity_id, row, NOW_NS)
    for number in range(20):
        driver = {"rate": number / 7, "trips": 2**60 + number, "place": "Å" * number, "embedding": [number] * 4}
        nodes.producer.write(DRIVER, str(number), driver, NOW_NS + number * 10**9)
        if number % 3:
            nodes.producer.write(CITY, str(number), {"people": number, "rain": None}, NOW_NS)
    nodes.drain([Everything, DRIVER, CITY])
    patient, impatient = ["--peer-timeout", "60s"], ["--peer-timeout", "300ms", "--partial", "mask"]
    with (
        nodes.serving("full", advertised=False) as full,
        nodes.serving("low", *patient) as low,
        nodes.serving("low", *impatient, advertised=False) as masking,
        nodes.serving("high", *patient) as high,
    ):
        yield Site(nodes, full, low, masking, high)
    nodes.close()


ids = st.lists(st.sampled_from([*IDS, *ROWS, "nobody", "é"]), max_size=30)
reads = st.fixed_dictionaries(
    {"schema": st.sampled_from(["Driver", "City", "Everything"]), "entity_ids": ids},
    optional={"positions": st.booleans(), "max_age": st.sampled_from([None, 1e6, 9e9])},
)
parts = st.fixed_dictionaries(
    {"schema": st.sampled_from(["Driver", "City", "Everything"]), "entity": st.sampled_from(["a", "b"])},
    optional={"max_age": st.sampled_from([None, 1e6, 9e9])},
)
assemblies = st.fixed_dictionaries(
    {
        "entities": st.integers(0, 12).flatmap(
            lambda n: st.fixed_dictionaries(
                {name: st.lists(st.sampled_from([*IDS, *ROWS]), min_size=n, max_size=n) for name in "ab"}
            )
        ),
        "schemas": st.lists(parts, min_size=1, max_size=4),
    },
    optional={"positions": st.booleans()},
)


@settings(max_examples=30, deadline=None)
@given(path_body=st.tuples(st.just("/v1/read"), reads) | st.tuples(st.just("/v1/assemble"), assemblies))
def test_answers_of_halves_equal_those_of_a_whole_node(site: Site, path_body: tuple[str, dict[str, Any]]) -> None:
    path, body = path_body
    for accept in ("application/json", ARROW):
        expected, *others = (post(one, path, body, Accept=accept) for one in (site.full, site.low, site.high))
        assert expected.status_code == 200, expected.text
        for answer in others:
            assert answer.status_code == 200, answer.text
            assert content(answer) == content(expected)


def content(answer: requests.Response) -> Any:
    """What an answer says; in Arrow, what lies under a null says nothing."""
    if answer.headers["content-type"] != ARROW:
        return answer.content
    batch = batch_of(answer)
    return batch.schema, batch.schema.metadata, repr(batch.to_pylist())


def away(site: Site, *, held: bool = False) -> list[str]:
    """The ids whose partitions the low node does not hold, or those that it holds."""
    return [one for one in IDS if (partition_of(one, PARTITIONS) < 2) == held]


def test_requests_in_arrow_are_completed_too(site: Site) -> None:
    metadata = {"request": json.dumps({"schema": "Driver", "fields": ["trips"]})}
    for kind in (pa.string(), pa.large_string()):
        batch = pa.record_batch({"id": pa.array(IDS, kind)}).replace_schema_metadata(metadata)
        expected, answer = (batch_of(post(one, "/v1/read", batch, Accept=ARROW)) for one in (site.full, site.low))
        assert answer.equals(expected, check_metadata=True)


def test_a_wrong_id_is_refused_as_by_a_whole_node(site: Site) -> None:
    body = {"schema": "Driver", "entity_ids": [*IDS, ""]}
    expected, answer = (post(one, "/v1/read", body) for one in (site.full, site.low))
    assert (answer.status_code, answer.json()) == (expected.status_code, expected.json())


def test_a_forwarded_request_is_never_forwarded_again(site: Site) -> None:
    body = {"schema": "Driver", "entity_ids": away(site)[:1]}
    answer = post(site.low, "/v1/read", body, **{"Quorin-Forwarded": "true"})
    assert answer.status_code == 421
    assert "is not held by this node" in answer.json()["detail"]
    held = {"schema": "Driver", "entity_ids": away(site, held=True)}
    assert post(site.low, "/v1/read", held, **{"Quorin-Forwarded": "true"}).status_code == 200
    both = {"schemas": [{"schema": "Driver"}], "entities": {"a": IDS}}
    assert post(site.low, "/v1/assemble", both, **{"Quorin-Forwarded": "true"}).status_code == 421


def test_a_killed_server_is_not_missed_where_another_holds_the_same(site: Site) -> None:
    """The others still know its URL: nobody has published without it."""
    body = {"schema": "Driver", "entity_ids": IDS}
    expected = post(site.full, "/v1/read", body).content
    with site.nodes.serving("high") as second:
        assert post(site.low, "/v1/read", body).content == expected
        os.kill(second.process.pid, signal.SIGKILL)
        second.process.wait(60)
        for _ in range(8):  # Which server is asked is left to chance.
            assert post(site.low, "/v1/read", body).content == expected
    site.nodes.report()


@pytest.fixture
def unknown(site: Site) -> Iterator[None]:
    """The low node does not know of any other."""
    node = site.nodes["low"].registry.node
    node.beside("holders").unlink()
    yield
    publish_holders(site.nodes["low"].registry.backend.control, node)


@pytest.mark.usefixtures("unknown")
def test_without_a_holder_the_error_names_the_partition(site: Site) -> None:
    one = away(site)[0]
    partition = partition_of(one, PARTITIONS)
    for path, body in (
        ("/v1/read", {"schema": "Driver", "entity_ids": [one]}),
        ("/v1/assemble", {"schemas": [{"schema": "Driver"}], "entities": {"id": [one]}}),
    ):
        answer = post(site.low, path, body)
        assert (answer.status_code, answer.json()["partition"]) == (503, partition)
        assert answer.json()["error"] == "NotHeldError"
        assert answer.json()["detail"].startswith(f"partition {partition} of 'Driver' is not held by this node")
    held = {"schema": "Driver", "entity_ids": away(site, held=True)}
    assert post(site.low, "/v1/read", held).content == post(site.full, "/v1/read", held).content


@pytest.mark.usefixtures("unknown")
def test_a_masking_server_says_which_rows_are_not_held(site: Site) -> None:
    not_held = [one in away(site) for one in IDS]
    answer = post(site.masking, "/v1/read", {"schema": "Driver", "entity_ids": IDS}).json()
    assert answer["not_held"] == not_held
    assert answer["found"] == [one not in away(site) and int(one) < 20 for one in IDS]
    batch = batch_of(post(site.masking, "/v1/read", {"schema": "Driver", "entity_ids": IDS}, Accept=ARROW))
    assert batch.column("not_held").to_pylist() == not_held
    body = {"schemas": [{"schema": "Driver"}, {"schema": "City"}], "entities": {"id": IDS}}
    assert post(site.masking, "/v1/assemble", body).json()["not_held"] == [[one, one] for one in not_held]
    vectors = batch_of(post(site.masking, "/v1/assemble", body, Accept=ARROW))
    assert vectors.column("not_held").to_pylist() == [[one, one] for one in not_held]


def test_a_server_that_hangs_is_not_waited_for(site: Site) -> None:
    freeze(site.high.process.pid)
    try:
        answer = post(site.masking, "/v1/read", {"schema": "Driver", "entity_ids": IDS}).json()
        assert answer["not_held"] == [one in away(site) for one in IDS]
    finally:
        os.kill(site.high.process.pid, signal.SIGCONT)


def test_the_token_and_tls_are_those_of_the_server(tmp_path: Path) -> None:
    """Other nodes are asked with the token of the server, over TLS, and no log has it."""
    (tmp_path / "token").write_text("open-sesame")
    certificate, key = make_certificate(tmp_path)
    words = ["--token-file", str(tmp_path / "token"), "--tls-cert", str(certificate), "--tls-key", str(key)]
    words += ["--peer-ca", str(certificate), "--peer-timeout", "60s", "--access-log"]
    nodes = PartialNodes(tmp_path, str(tmp_path / "store"), {"low": "0-1", "high": "2-3"})
    for node in nodes.nodes.values():
        node.registry.create(CITY, capacity=64).close()
    for one in IDS:
        nodes.producer.write(CITY, one, {"people": int(one), "rain": 0.0}, NOW_NS)
    nodes.drain([CITY])
    with (
        nodes.serving("low", *words, certificate=certificate) as low,
        nodes.serving("high", *words, certificate=certificate),
        requests.Session() as client,
    ):
        # Without the environment, whose certificates would go before these.
        client.verify, client.trust_env = str(certificate), False
        url, body = low.url + "/v1/read", {"schema": "City", "entity_ids": IDS}
        assert client.post(url, json=body, timeout=60).status_code == 401
        headers = {"Authorization": "Bearer open-sesame"}
        answer = client.post(url, json=body, timeout=60, headers=headers)
        assert answer.json()["features"]["people"] == [int(one) for one in IDS], answer.text
    logs = "".join((tmp_path / f"{name}.log").read_text() for name in ("low", "high"))
    assert "/v1/read" in logs
    assert "sesame" not in logs
    nodes.close()


def test_a_pinned_generation_is_read_here_only(site: Site) -> None:
    """Other nodes have generations of their own, which may have other rows."""
    pin = ["--pin", f"Driver={site.nodes['low'].registry.generations('Driver')[0].number}"]
    held, elsewhere = away(site, held=True), away(site)
    requests_of = [
        lambda ids: ("/v1/read", {"schema": "Driver", "entity_ids": ids}),
        lambda ids: ("/v1/assemble", {"schemas": [{"schema": "Driver"}, {"schema": "City"}], "entities": {"id": ids}}),
    ]
    masks = ["--partial", "mask"]
    with site.nodes.serving("low", *pin, advertised=False) as strict:
        for request in requests_of:
            assert post(strict, *request(held)).content == post(site.full, *request(held)).content
            answer = post(strict, *request(IDS))
            assert (answer.status_code, answer.json()["error"]) == (503, "NotHeldError"), answer.text
            assert site.high.url in answer.json()["detail"]
        other = {"schema": "City", "entity_ids": IDS}
        assert post(strict, "/v1/read", other).content == post(site.full, "/v1/read", other).content
    with site.nodes.serving("low", *pin, *masks, advertised=False) as masking:
        assert post(masking, *requests_of[0](IDS)).json()["not_held"] == [one in elsewhere for one in IDS]


def test_a_server_that_stays_with_a_generation_answers_no_other_node(site: Site) -> None:
    pin = f"Driver={site.nodes['high'].registry.generations('Driver')[0].number}"
    body = {"schema": "Driver", "entity_ids": IDS}
    both = {"schemas": [{"schema": "City"}, {"schema": "Driver"}], "entities": {"id": away(site)}}
    expected = post(site.full, "/v1/read", body).content
    with site.nodes.serving("high", "--pin", pin) as pinned:
        for path, asked in (("/v1/read", {**body, "entity_ids": away(site)}), ("/v1/assemble", both)):
            answer = post(pinned, path, asked, **{"Quorin-Forwarded": "true"})
            assert (answer.status_code, "stays with one generation" in answer.json()["detail"]) == (503, True)
        for _ in range(8):  # Which server is asked is left to chance.
            assert post(site.low, "/v1/read", body).content == expected
    site.nodes.report()


def test_a_consistent_read_is_of_what_is_held(site: Site) -> None:
    body = {"schemas": [{"schema": "Driver"}], "entities": {"id": IDS}, "consistent_timeout_ms": 10_000}
    answer = post(site.low, "/v1/assemble", body)
    assert (answer.status_code, answer.json()["error"]) == (503, "NotHeldError")
