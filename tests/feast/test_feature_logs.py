"""The served log as Feast's feature logs: written to the destination of a service, and read back through Feast."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from feast import FeatureService, FeatureStore
from feast.feature_logging import LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus

import feast_quorin
from feast_quorin.config import ConfigError
from quorin.errors import RepositoryError
from tests.feast.repos import CUSTOMERS, END, START, definitions, make_store
from tests.feast.test_served import flush, logging_store, push

ENTITIES = [
    {"origin_id": 1001, "target_id": 1002, "customer": CUSTOMERS[1]},
    {"origin_id": 1003, "target_id": 99, "customer": "Åse"},
]
BEGINNING, END_OF_TIME = dt.datetime(2020, 1, 1, tzinfo=dt.UTC), dt.datetime(2200, 1, 1, tzinfo=dt.UTC)


def with_logging(service: FeatureService, path: Path, rate: float = 1.0) -> FeatureService:
    service.logging_config = LoggingConfig(FileLoggingDestination(path=str(path)), sample_rate=rate)
    return service


def logged(store: FeatureStore, service: FeatureService) -> pa.Table:
    """What Feast has at the destination of the service."""
    job = store._get_provider().retrieve_feature_service_logs(
        feature_service=service,
        start_date=BEGINNING,
        end_date=END_OF_TIME,
        config=store.config,
        registry=store.registry,
    )
    return job.to_arrow().sort_by("__log_timestamp")


@pytest.fixture
def store(online_store: dict[str, Any], data: Path, tmp_path: Path) -> FeatureStore:
    store = logging_store(tmp_path, data, online_store)
    store.materialize(START, END)
    return store


def test_feast_writes_the_answers_of_a_service_to_its_destination(store: FeatureStore, tmp_path: Path) -> None:
    service = with_logging(store.get_feature_service("rides"), tmp_path / "logs")
    store.apply([service])
    answers = []
    for number, full_names in enumerate([True, False]):
        push(store, 1.5 + number, number)
        with feast_quorin.request_id(f"request-{number}"):
            # Both views have a feature "conv_rate", so Feast allows full names only.
            asked = service if full_names else ["customer_stats:score", "customer_stats:city"]
            rows = ENTITIES if full_names else [{"customer": CUSTOMERS[1]}]
            answers.append(store.get_online_features(asked, rows, full_feature_names=full_names))
    push(store, 99.0, 9)
    flush(store)

    store.write_logged_features(feast_quorin.logged_features(store, service), service)
    found = logged(store, service)
    answer = answers[0].to_dict(include_event_timestamps=True)
    assert found["__request_id"].to_pylist() == ["request-0"] * 2
    for name in answer:
        feature, is_time, _ = name.partition("__ts")
        if not is_time:
            assert found[name].to_pylist() == answer[name], name
        elif feature in answer and "__" in feature:
            times = found[f"{feature}__timestamp"].cast(pa.timestamp("s")).cast(pa.int64()).fill_null(0)
            assert times.to_pylist() == answer[name], name
    assert found["target__conv_rate__status"].to_pylist() == [FieldStatus.PRESENT, FieldStatus.NOT_FOUND]
    assert found["__log_date"].to_pylist() == [time.date() for time in found["__log_timestamp"].to_pylist()]
    store.teardown()


def test_either_kind_of_names_age_limits_and_the_rate_of_the_service(store: FeatureStore, tmp_path: Path) -> None:
    table = store.get_feature_view("customer_stats")
    service = with_logging(FeatureService(name="scores", features=[table]), tmp_path / "logs")
    rare = with_logging(FeatureService(name="rare", features=[table]), tmp_path / "rare", rate=0.3)
    store.apply([service, rare])
    push(store, 1.5)
    for number in range(100):
        store.get_online_features(service, [{"customer": CUSTOMERS[1]}], full_feature_names=number % 2 == 0)
    with feast_quorin.max_age({"customer_stats:city": 60}):
        store.get_online_features(service, [{"customer": CUSTOMERS[2]}])
    store.get_online_features(["customer_stats:score"], [{"customer": CUSTOMERS[2]}])  # None of the service's.
    flush(store)
    found = feast_quorin.logged_features(store, service).sort_by("__log_timestamp")
    assert found["customer_stats__score"].to_pylist() == [1.5] * 101
    assert found["customer_stats__city"].to_pylist() == ["x"] * 100 + [None]
    statuses = found["customer_stats__city__status"].to_pylist()
    assert statuses == [FieldStatus.PRESENT] * 100 + [FieldStatus.OUTSIDE_MAX_AGE]
    some = feast_quorin.logged_features(store, rare)
    assert 5 < len(some) < 70
    assert some.equals(feast_quorin.logged_features(store, rare))
    first = found["__log_timestamp"].cast(pa.int64()).to_pylist()[50] * 1000
    assert len(feast_quorin.logged_features(store, service, since_ns=first)) == 51
    assert len(feast_quorin.logged_features(store, service, until_ns=first)) == 50
    store.teardown()


def test_what_does_not_fit_is_refused_by_name(
    online_store: dict[str, Any], data: Path, tmp_path: Path, store: FeatureStore
) -> None:
    boosted = FeatureService(name="boosting", features=[store.get_on_demand_feature_view("boosted")])
    with pytest.raises(RepositoryError, match="on-demand view 'boosted'"):
        feast_quorin.logged_features(store, boosted)
    store.teardown()
    plain = make_store(tmp_path / "plain", online_store, data=data, project="plain")
    plain.apply(definitions(data))
    with pytest.raises(ConfigError, match="served_log"):
        feast_quorin.logged_features(plain, plain.get_feature_service("rides"))
    plain.teardown()
