"""The example's sources against brute force over the raw flights: right, and without a look into the future."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

FEATURE_REPO = Path(__file__).parents[2] / "feature_repo"


@pytest.fixture(scope="module")
def prepare() -> ModuleType:
    sys.path.insert(0, str(FEATURE_REPO))
    try:
        import prepare
    finally:
        sys.path.remove(str(FEATURE_REPO))
    return prepare


@pytest.fixture(scope="module")
def flights(prepare) -> pd.DataFrame:
    return prepare.read_flights()


@pytest.fixture(scope="module")
def sources(prepare, tmp_path_factory) -> dict[str, pd.DataFrame]:
    directory = tmp_path_factory.mktemp("sources")
    counts = dict(prepare.prepare(directory))
    frames = {name: pd.read_parquet(directory / f"{name}.parquet") for name in counts}
    assert counts == {name: len(frame) for name, frame in frames.items()}
    for name, schema in prepare.SCHEMAS.items():
        assert pq.read_schema(directory / f"{name}.parquet").equals(schema)
    return frames


def test_flights_land_after_they_departed_and_flew(flights):
    flown = flights.dropna(subset=["landed", "air_time"])
    on_the_ground = (flown["landed"] - flown["departed"]).dt.total_seconds() / 60 - flown["air_time"]
    assert on_the_ground.between(0, 300).all()


def test_aircraft_windows_hold_exactly_the_landings_of_seven_days(sources, flights):
    for row in chosen(sources["aircraft_delays"]):
        known = flights[(flights["tailnum"] == row.tailnum) & flights["arr_delay"].notna()]
        window = known[within(known["landed"], row.event_timestamp, "7D")].sort_values("landed", kind="stable")
        assert row.landings_7d == len(window)
        assert row.mean_arr_delay_7d == pytest.approx(window["arr_delay"].mean(), rel=1e-5, abs=1e-4)
        assert row.worst_arr_delay_7d == window["arr_delay"].max()
        assert row.late_share_7d == pytest.approx((window["arr_delay"] > 15).mean(), abs=1e-12)
        assert row.last_airport == window["dest"].iloc[-1]


def test_departure_windows_hold_exactly_what_was_known_for_a_day(sources, flights):
    left = flights["departed"].notna()
    moment = flights["departed"].where(left & (flights["departed"] > flights["scheduled"]), flights["scheduled"])
    flights = flights.assign(known=moment + np.timedelta64(1, "m"))
    for row in chosen(sources["origin_carrier_departures"]):
        at = flights[(flights["origin"] == row.origin) & (flights["carrier"] == row.carrier)]
        window = at[within(at["known"], row.event_timestamp, "24h")]
        assert row.departures_24h == window["departed"].notna().sum()
        assert row.cancelled_24h == window["departed"].isna().sum()
        mean = window["dep_delay"].mean()
        assert row.mean_dep_delay_24h == pytest.approx(mean, rel=1e-5, abs=1e-4, nan_ok=True)


def test_flight_windows_hold_exactly_the_landings_of_thirty_days(sources, flights):
    for row in chosen(sources["flight_punctuality"]):
        same = (flights["carrier"] == row.carrier) & (flights["flight_number"] == row.flight_number)
        known = flights[same & flights["arr_delay"].notna()]
        window = known[within(known["landed"], row.event_timestamp, "30D")]
        assert row.landings_30d == len(window)
        assert row.mean_arr_delay_30d == pytest.approx(window["arr_delay"].mean(), rel=1e-5, abs=1e-4)


def test_no_flight_is_in_the_features_that_it_is_predicted_from(sources, flights):
    """Joined at its scheduled departure, a flight gets rows that were known before; its own come later."""
    assert (flights["landed"].dropna() > flights["scheduled"][flights["landed"].notna()]).all()
    keys = ["origin", "carrier"]
    mine = flights.sort_values("scheduled")[[*keys, "scheduled"]]
    known = sources["origin_carrier_departures"].sort_values("event_timestamp")
    known = known.astype({"event_timestamp": "datetime64[ns, UTC]"})
    joined = pd.merge_asof(mine, known, left_on="scheduled", right_on="event_timestamp", by=keys)
    first_of_day = flights.groupby([*keys, flights["scheduled"].dt.date])["scheduled"].min()
    assert len(first_of_day) > 1000
    assert (joined["event_timestamp"].dropna() <= joined["scheduled"][joined["event_timestamp"].notna()]).all()
    own_moment = flights["departed"].fillna(flights["scheduled"]).clip(lower=flights["scheduled"])
    assert (own_moment + np.timedelta64(1, "m") > flights["scheduled"]).all()


def test_there_are_nulls_of_every_kind(sources):
    assert sources["aircraft_facts"]["year_built"].isna().sum() == 70
    weather = sources["origin_weather"]
    assert weather["wind_gust_mph"].isna().sum() > 20_000
    assert weather["wind_from"].isna().any()
    assert weather["wind_from"].dropna().isin(["N", "NE", "E", "SE", "S", "SW", "W", "NW"]).all()
    assert not any(np.isnan(winds).any() for winds in weather["recent_wind_mph"])
    assert {len(winds) for winds in weather["recent_wind_mph"]} <= set(range(1, 7))


@pytest.mark.parametrize(
    "name", ["aircraft_delays", "origin_carrier_departures", "flight_punctuality", "origin_weather"]
)
def test_one_row_for_each_key_and_moment(sources, prepare, name):
    keys = prepare.SCHEMAS[name].names
    keys = keys[: keys.index("event_timestamp") + 1]
    assert not sources[name].duplicated(keys).any()


def chosen(frame: pd.DataFrame) -> list:
    return list(frame.sample(25, random_state=3).itertuples())


def within(times: pd.Series, end: pd.Timestamp, window: str) -> pd.Series:
    return (times <= end) & (times > end - np.timedelta64(int(window[:-1]), window[-1]))
