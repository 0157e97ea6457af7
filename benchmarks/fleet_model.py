"""A model of a fleet, not a measurement: from entities, bytes, write rate and machines to memory, lag and cost.

It multiplies figures of one small machine (:data:`MEASURED`), and assumes that partitions are even, that every write is
of another entity, and that machines have nothing else to do.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

from benchmarks import document

ROOT = Path(__file__).parent.parent
MARK = "fleet-model"
MAX_PARTITIONS = 256
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Measured:
    """A figure of docs/figures.json, as it was when the model was calibrated."""

    path: tuple[str, ...]
    value: float


MEASURED = {
    "appended_rows_per_s": Measured(("log", "figures", "log", "redis", "bulk_appended_per_s"), 2.37e6),
    "visible_rows_per_s": Measured(("log", "figures", "log", "redis", "bulk_visible_per_s"), 1.39e6),
    "visible_seconds": Measured(("log", "figures", "log", "redis", "sync_p50"), 281e3),
    "consumer_bytes": Measured(("log", "figures", "log", "redis", "consumer_bytes_most"), 144e6),
    "hydrated_4_per_s": Measured(
        ("history", "figures", "history", "hydrate, 1,000,000 × 4 scalars", "rows_per_s"), 2.08e6
    ),
    "hydrated_200_per_s": Measured(
        ("history", "figures", "history", "hydrate, 300,000 × 200 floats", "rows_per_s"), 385e3
    ),
    "restored_bytes_per_s": Measured(
        ("history", "figures", "history", "restore, 10,000,000 × 4 scalars", "bytes_per_s"), 1.40e9
    ),
    "saved_bytes_per_s": Measured(
        ("history", "figures", "history", "snapshot, 10,000,000 × 4 scalars", "bytes_per_s"), 166e6
    ),
}
"""Each rate of rows is of 4 float32; ``visible_seconds`` is in nanoseconds there."""

ENTRY_BYTES, ENTRY_BYTES_A_FIELD, ROW_BYTES_IN_THE_LOG = 455, 98, 12
"""Of a log entry besides ids and values: its header and Arrow's, and each row's event time and offset. A test encodes
entries and compares."""


def measured(name: str) -> float:
    """A figure that the model is calibrated with."""
    return MEASURED[name].value


@dataclass(frozen=True)
class Fleet:
    """What is to be served, and on which machines. Bytes are bytes, rates are per second, prices per machine-hour."""

    entities: int
    fields: int = 4
    """All float32."""
    id_bytes: int = 13
    rows_per_s: float = 10_000.0
    """Written to the whole deployment."""
    rows_an_entry: int = 100
    """How many rows producers write at once."""
    partitions: int = 1
    replicas: int = 2
    """How many nodes hold each row."""
    node_bytes: float = 64e9
    """Memory of a node."""
    room: float = 2.0
    """How often the segments must fit: twice, as an upgrade builds the next beside the present one."""
    masters: int = 1
    log_replicas: int = 1
    """Replicas of each master of the log."""
    kept_seconds: float = 3600.0
    """For how long the log keeps an entry."""
    snapshot_seconds: float = 600.0
    """From the begin of one snapshot to that of the next."""
    network_bytes_per_s: float = 1.25e9
    """Of a machine."""
    node_price: float = 1.0
    log_price: float = 1.0

    def __post_init__(self) -> None:
        """:raises ValueError: for a fleet that cannot be."""
        for name, least in _LEAST.items():
            if not getattr(self, name) >= least or math.isinf(getattr(self, name)):
                raise ValueError(f"{name} {getattr(self, name)!r}: expected a number of {least} or more")
        if self.partitions > MAX_PARTITIONS or self.partitions & (self.partitions - 1):
            raise ValueError(f"partitions {self.partitions}: expected a power of two up to {MAX_PARTITIONS}")
        if self.masters > self.partitions:
            raise ValueError(f"masters {self.masters}: expected no more than the {self.partitions} partitions")


_LEAST = {
    "entities": 1, "fields": 1, "id_bytes": 1, "rows_per_s": 0, "rows_an_entry": 1, "partitions": 1, "replicas": 1,
    "node_bytes": 1, "room": 1, "masters": 1, "log_replicas": 0, "kept_seconds": 0, "snapshot_seconds": 0,
    "network_bytes_per_s": 1, "node_price": 0, "log_price": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """What a fleet needs. ``inf`` seconds: the nodes cannot keep up with the writes."""

    partition_bytes: float
    """Of the segments of one partition."""
    nodes_a_replica: int
    partitions_a_node: int
    """Of the fullest node."""
    nodes: int
    node_bytes: float
    """That the fullest node needs: its segments, as often as they must fit, and the consumer."""
    log_bytes_per_s: float
    """Written to all masters."""
    read_bytes_per_s: float
    """Read from all masters by all nodes."""
    master_bytes: float
    """Of the log in the memory of the fullest master."""
    master_load: float
    """Of what one master can append, or its network can send: 1 is all."""
    node_load: float
    """Of what one node can apply: 1 is all."""
    lag_seconds: float
    from_snapshot_seconds: float
    from_log_seconds: float
    log_machines: int
    cost_an_hour: float


class TooSmallError(ValueError):
    """No number of such nodes holds the entities."""


def estimate(fleet: Fleet) -> Estimate:
    """What a fleet needs.

    :raises TooSmallError: if a node cannot hold one partition.
    """
    partition_bytes = segment_bytes(math.ceil(fleet.entities / fleet.partitions), fleet.fields)
    held, nodes_a_replica = _spread(fleet, partition_bytes)
    share = held / fleet.partitions
    on_a_master = math.ceil(fleet.partitions / fleet.masters) / fleet.partitions
    row_bytes = log_row_bytes(fleet)
    log_bytes = fleet.rows_per_s * row_bytes
    node_load = fleet.rows_per_s * share * apply_seconds(fleet.fields)
    nodes, log_machines = nodes_a_replica * fleet.replicas, fleet.masters * (1 + fleet.log_replicas)
    sent = log_bytes * (fleet.replicas + fleet.log_replicas)
    saved = partition_bytes * held
    downloaded = saved / min(measured("restored_bytes_per_s"), fleet.network_bytes_per_s)
    # The newest snapshot is complete, and older than the one that is being saved.
    behind = fleet.snapshot_seconds + saved / measured("saved_bytes_per_s")
    return Estimate(
        partition_bytes=partition_bytes,
        nodes_a_replica=nodes_a_replica,
        partitions_a_node=held,
        nodes=nodes,
        node_bytes=saved * fleet.room + measured("consumer_bytes"),
        log_bytes_per_s=log_bytes,
        read_bytes_per_s=log_bytes * fleet.replicas,
        master_bytes=log_bytes * on_a_master * fleet.kept_seconds,
        master_load=on_a_master * max(log_bytes / appended_bytes_per_s(), sent / fleet.network_bytes_per_s),
        node_load=node_load,
        lag_seconds=_lag(fleet, node_load),
        from_snapshot_seconds=downloaded + _caught_up(behind + downloaded, node_load),
        from_log_seconds=_caught_up(fleet.kept_seconds, node_load),
        log_machines=log_machines,
        cost_an_hour=nodes * fleet.node_price + log_machines * fleet.log_price,
    )


def segment_bytes(capacity: int, fields: int) -> float:
    """Of a segment of float32 fields, as docs/deployment.md has it; a test compares it with a segment."""
    rows = capacity + max(64, min(capacity // 64, 65_536))
    row = 56 + FLOAT_BYTES * fields + (fields + 7) // 8
    return 8 * max(64, capacity + capacity // 2) + 4 * rows + rows * ((row + 7) // 8 * 8) + 65_536


def log_row_bytes(fleet: Fleet) -> float:
    """Of one row in the log, with its part of the entry."""
    entry = ENTRY_BYTES + ENTRY_BYTES_A_FIELD * fleet.fields
    return entry / fleet.rows_an_entry + ROW_BYTES_IN_THE_LOG + fleet.id_bytes + FLOAT_BYTES * fleet.fields


def apply_seconds(fields: int) -> float:
    """Of one row on one node, from the log into the segment: as measured with 4 fields, and more for more fields."""
    a_field = (1 / measured("hydrated_200_per_s") - 1 / measured("hydrated_4_per_s")) / (200 - 4)
    return 1 / measured("visible_rows_per_s") + a_field * (fields - 4)


def appended_bytes_per_s() -> float:
    """That one master takes. Producers were on the same machine when it was measured."""
    return measured("appended_rows_per_s") * log_row_bytes(Fleet(1, fields=4, rows_an_entry=8192))


def _spread(fleet: Fleet, partition_bytes: float) -> tuple[int, int]:
    """How many partitions a node holds, and how many nodes hold all, with as few nodes as their memory allows."""
    usable = fleet.node_bytes - measured("consumer_bytes")
    fits = math.floor(usable / (partition_bytes * fleet.room))
    if fits < 1:
        raise TooSmallError(
            f"a node of {fleet.node_bytes / 1e9:,.1f} GB cannot hold one of {fleet.partitions} partitions: "
            f"expected {(partition_bytes * fleet.room + measured('consumer_bytes')) / 1e9:,.1f} GB or more"
        )
    nodes = math.ceil(fleet.partitions / min(fits, fleet.partitions))
    return math.ceil(fleet.partitions / nodes), nodes


def _lag(fleet: Fleet, load: float) -> float:
    """The median way from a write to its visibility, and the wait in a queue of entries of one size (M/D/1)."""
    if load >= 1:
        return math.inf
    entry = fleet.rows_an_entry * apply_seconds(fleet.fields)
    return measured("visible_seconds") / 1e9 + entry + entry * load / (2 * (1 - load))


def _caught_up(seconds: float, load: float) -> float:
    """How long a node reads that is so many seconds of writes behind, while others are written."""
    return math.inf if load >= 1 else seconds * load / (1 - load)


CASES = {
    "10⁸ × 4": Fleet(10**8),
    "10⁸ × 50": Fleet(10**8, fields=50, node_bytes=128e9),
    "10⁸ × 200": Fleet(10**8, fields=200, node_bytes=256e9),
    "10⁸ × 200, in 16 partitions": Fleet(10**8, fields=200, node_bytes=64e9, partitions=16, masters=3),
    "10⁹ × 4": Fleet(10**9, node_bytes=256e9, rows_per_s=100_000.0),
    "10⁹ × 4, in 16 partitions": Fleet(10**9, node_bytes=64e9, partitions=16, masters=3, rows_per_s=100_000.0),
    "10⁹ × 50, in 16 partitions": Fleet(
        10**9, fields=50, node_bytes=128e9, partitions=16, masters=3, rows_per_s=100_000.0
    ),
    "10⁹ × 200, in 64 partitions": Fleet(
        10**9, fields=200, node_bytes=256e9, partitions=64, masters=6, rows_per_s=100_000.0
    ),
}
"""The fleets of the documents' table: entities × float32 fields."""


def table(fleets: dict[str, Fleet]) -> str:
    """Estimates in Markdown. Costs are in the price of a machine-hour."""
    head = (
        "entities × fields", "rows/s", "nodes × memory", "needed a node", "log written, read", "log kept, a master",
        "load of a master, a node", "lag", "new node: snapshot, log", "cost an hour",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", f"|:---|{'---:|' * (len(head) - 1)}"]
    for name, fleet in fleets.items():
        found = estimate(fleet)
        cells = (
            name,
            f"{fleet.rows_per_s:,.0f}",
            f"{found.nodes} × {fleet.node_bytes / 1e9:,.0f} GB",
            f"{found.node_bytes / 1e9:,.1f} GB",
            f"{found.log_bytes_per_s / 1e6:,.1f}, {found.read_bytes_per_s / 1e6:,.1f} MB/s",
            f"{found.master_bytes / 1e9:,.1f} GB",
            f"{found.master_load:.1%}, {found.node_load:.1%}",
            _shown_seconds(found.lag_seconds),
            f"{_shown_seconds(found.from_snapshot_seconds)}, {_shown_seconds(found.from_log_seconds)}",
            f"{found.cost_an_hour:,.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown_seconds(seconds: float) -> str:
    if math.isinf(seconds):
        return "never"
    if seconds < 1:
        return f"{seconds * 1e3:,.2f} ms"
    return f"{seconds:,.0f} s" if seconds < 600 else f"{seconds / 60:,.0f} min"


def main(words: list[str] | None = None) -> None:
    """Estimate the fleet of the arguments, or write the documents' table."""
    arguments = vars(_parser().parse_args(words))
    page, as_json = arguments.pop("docs"), arguments.pop("json")
    if page is not None:
        page.write_text(document.with_section(page.read_text(), MARK, table(CASES)))
        return
    try:
        fleet = Fleet(**arguments)
        found = estimate(fleet)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    print(json.dumps(_finite(dataclasses.asdict(found)), indent=1) if as_json else table({"this fleet": fleet}))


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    """JSON has no infinity: null is never."""
    return {name: None if math.isinf(value) else value for name, value in values.items()}


def _parser() -> argparse.ArgumentParser:
    example = (
        "python -m benchmarks.fleet_model --entities 1e9 --partitions 16 --masters 3 --node-bytes 64e9 --node-price 0.5"
    )
    parser = argparse.ArgumentParser(description=__doc__, epilog=f"Example: {example}")
    for field in dataclasses.fields(Fleet):
        kind = _whole if field.type == "int" else float
        default = None if field.default is dataclasses.MISSING else field.default
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(
            option, type=kind, default=10**8 if default is None else default, help="default %(default)s"
        )
    parser.add_argument("--json", action="store_true", help="all figures, in bytes and seconds; null: never")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="write the documents' table into this page instead")
    return parser


def _whole(text: str) -> int:
    """A whole number, also as 1e9."""
    number = float(text)
    if number != int(number):
        raise ValueError(text)
    return int(number)


if __name__ == "__main__":
    main()
