"""What Feast knows of the flights: entities, sources, feature views, an on-demand view, and the model's service."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String

aircraft = Entity(name="aircraft", join_keys=["tailnum"], value_type=ValueType.STRING, description="by tail number")
origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING, description="EWR, JFK or LGA")
carrier = Entity(name="carrier", join_keys=["carrier"], value_type=ValueType.STRING, description="two-letter code")
flight = Entity(name="flight", join_keys=["flight_number"], value_type=ValueType.INT64, description="carrier's number")


def parquet(name: str) -> FileSource:
    """The source that `prepare.py` writes under this name."""
    return FileSource(name=f"{name}_source", path=f"data/{name}.parquet", timestamp_field="event_timestamp")


# Landings arrive one by one during the day: the push source is their way in, the Parquet file their history.
landings = PushSource(name="landings", batch_source=parquet("aircraft_delays"))

aircraft_delays = FeatureView(
    name="aircraft_delays",
    entities=[aircraft],
    ttl=timedelta(days=30),
    schema=[
        Field(name="landings_7d", dtype=Int64),
        Field(name="mean_arr_delay_7d", dtype=Float32),
        Field(name="worst_arr_delay_7d", dtype=Int32),
        Field(name="late_share_7d", dtype=Float64),
        Field(name="last_airport", dtype=String),
    ],
    source=landings,
)

aircraft_facts = FeatureView(
    name="aircraft_facts",
    entities=[aircraft],
    ttl=timedelta(0),
    schema=[
        Field(name="manufacturer", dtype=String),
        Field(name="model", dtype=String),
        Field(name="seats", dtype=Int32),
        Field(name="year_built", dtype=Int32),
        Field(name="jet", dtype=Bool),
    ],
    source=parquet("aircraft_facts"),
)

origin_carrier_departures = FeatureView(
    name="origin_carrier_departures",
    entities=[origin, carrier],
    ttl=timedelta(days=2),
    schema=[
        Field(name="departures_24h", dtype=Int64),
        Field(name="cancelled_24h", dtype=Int64),
        Field(name="mean_dep_delay_24h", dtype=Float32),
    ],
    source=parquet("origin_carrier_departures"),
)

flight_punctuality = FeatureView(
    name="flight_punctuality",
    entities=[carrier, flight],
    ttl=timedelta(days=60),
    schema=[
        Field(name="landings_30d", dtype=Int64),
        Field(name="mean_arr_delay_30d", dtype=Float32),
        Field(name="destination", dtype=String),
    ],
    source=parquet("flight_punctuality"),
)

origin_weather = FeatureView(
    name="origin_weather",
    entities=[origin],
    ttl=timedelta(hours=6),
    schema=[
        Field(name="temperature_f", dtype=Float32),
        Field(name="wind_speed_mph", dtype=Float32),
        Field(name="wind_gust_mph", dtype=Float32),
        Field(name="wind_from", dtype=String),
        Field(name="visibility_miles", dtype=Float32),
        Field(name="pressure_mbar", dtype=Float32),
        Field(name="precipitation_in", dtype=Float64),
        Field(name="recent_wind_mph", dtype=Array(Float32)),
    ],
    source=parquet("origin_weather"),
)

booking = RequestSource(name="booking", schema=[Field(name="minutes_since_landing", dtype=Int64)])


@on_demand_feature_view(
    sources=[aircraft_delays, origin_weather, booking],
    schema=[Field(name="turnaround_tight", dtype=Bool), Field(name="rough_weather", dtype=Bool)],
    mode="python",
)
def departure_outlook(inputs: dict[str, list[Any]]) -> dict[str, list[bool]]:
    """Whether the aircraft has little time at the gate for one that tends to be late, and whether weather slows all."""
    gates = zip(inputs["minutes_since_landing"], inputs["mean_arr_delay_7d"], strict=True)
    skies = zip(inputs["wind_gust_mph"], inputs["visibility_miles"], strict=True)
    return {
        "turnaround_tight": [minutes < 45 + max(usual_delay or 0.0, 0.0) for minutes, usual_delay in gates],
        "rough_weather": [(gust or 0.0) > 35.0 or (miles is not None and miles < 2.0) for gust, miles in skies],
    }


flight_delay = FeatureService(
    name="flight_delay",
    features=[
        aircraft_delays,
        aircraft_facts[["manufacturer", "seats", "year_built"]],
        origin_carrier_departures,
        flight_punctuality,
        origin_weather[["wind_speed_mph", "wind_gust_mph", "wind_from", "visibility_miles", "recent_wind_mph"]],
        departure_outlook,
    ],
    description="what the model that predicts a delay before departure reads",
)
