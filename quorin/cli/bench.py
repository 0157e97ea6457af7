"""``quorin bench``: measure this machine in a few seconds, with the installed package alone."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quorin.cli.children import ended_by_sigterm, running
from quorin.cli.options import ShmDir
from quorin.cli.output import Json, add_row, console, print_json, table
from quorin.engine.words import count, duration

if TYPE_CHECKING:
    import numpy as np

    from quorin.schema import Schema
    from quorin.shm import Segment

_BATCH = 1000
_TIMED_TOGETHER = 20


def bench(
    entities: Annotated[int, typer.Option(min=1000, help="Entities in the segment.")] = 100_000,
    fields: Annotated[int, typer.Option(min=1, max=1000, help="float32 fields per entity.")] = 4,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each read is measured.")] = 1.0,
    shm_dir: ShmDir = None,
    as_json: Json = False,
) -> None:
    """Measure reads and writes on this machine.

    Measures single-row reads, batches, and writes until they are served. Creates its own embedded store and segment,
    and removes them. Single-row reads are timed in groups of twenty, since reading the clock costs about as much as a
    read, so percentiles are percentiles of means of twenty.

    Examples:
        quorin bench  # about five seconds
        quorin bench --entities 1000000 --fields 50 --json

    Exit codes: 0 measured, 1 failed (with the reason on stderr), 2 wrong usage.
    """
    from rich.progress import Progress

    steps = ("kernels", "filling", "reads", "batches", "write_sync")
    out = console(stderr=True)
    with (
        ended_by_sigterm(),
        tempfile.TemporaryDirectory(prefix="quorin-bench-") as store,
        tempfile.TemporaryDirectory(prefix="quorin-bench-", dir=shm_dir or _shm_dir()) as memory,
        Progress(console=out, transient=True, disable=as_json or not out.is_terminal) as progress,
    ):
        task = progress.add_task(steps[0], total=len(steps))

        def begin(step: str) -> None:
            progress.update(task, description=step, completed=steps.index(step))

        results = _measure(Path(store), Path(memory), entities, fields, seconds, begin)
    if as_json:
        print_json(results)
    else:
        _print(results)


def _shm_dir() -> str:
    from quorin.shm import default_shm_dir

    return default_shm_dir()


def _measure(
    store: Path, memory: Path, entities: int, fields: int, seconds: float, begin: Callable[[str], None]
) -> dict[str, Any]:
    import numpy as np

    from quorin import __version__
    from quorin.engine import kernels
    from quorin.schema import FeatureField, dtype, make_schema
    from quorin.shm import SegmentRegistry

    kernels.load()
    schema = make_schema("Bench", [FeatureField(f"f{number}", dtype.float32) for number in range(fields)])
    registry = SegmentRegistry(store, shm_dir=memory)
    generator = np.random.default_rng(1)
    with registry.create(schema, capacity=entities) as segment:
        begin("filling")
        ids = [f"user_{number:09}" for number in range(entities)]
        results = {
            "quorin": __version__,
            "processors": os.cpu_count(),
            "entities": entities,
            "fields": fields,
            "fill_rows_per_second": _fill(segment, schema, ids, generator),
            "bytes_per_entity": segment.stats()["bytes"] / entities,
        }
        begin("reads")
        results["read_hot_seconds"] = _time_reads(segment, ids[:100], seconds)
        random_ids = [ids[number] for number in generator.integers(0, entities, min(entities, 200_000))]
        results["read_random_seconds"] = _time_reads(segment, random_ids, seconds)
        begin("batches")
        results |= _time_batches(segment, random_ids, seconds)
    begin("write_sync")
    results["write_sync_seconds"] = _time_writes(store, memory, registry, schema, seconds)
    registry.discard(registry.open_current(schema, read_only=False))
    registry.backend.close()
    return results


def _fill(segment: Segment, schema: Schema, ids: list[str], generator: np.random.Generator) -> float:
    import pyarrow as pa

    from quorin.layout import insert_many

    columns = {field.name: generator.random(len(ids), "float32") for field in schema.fields}
    table_ = pa.table({"entity_id": ids, **columns})
    insert_many(segment, table_.slice(0, 100))  # loads the kernels
    started = time.perf_counter()
    insert_many(segment, table_)
    rate = len(ids) / (time.perf_counter() - started)
    segment.release_writer_lease()
    return rate


def _time_reads(segment: Segment, ids: list[str], seconds: float) -> dict[str, float]:
    from quorin.assembly import assemble

    clock = time.perf_counter_ns
    samples, offset, end = [], 0, time.monotonic() + seconds
    assemble(segment, ids[0])
    while time.monotonic() < end:
        group = ids[offset : offset + _TIMED_TOGETHER]
        offset = (offset + _TIMED_TOGETHER) % max(1, len(ids) - _TIMED_TOGETHER)
        started = clock()
        for entity_id in group:
            assemble(segment, entity_id)
        samples.append((clock() - started) / 1e9 / len(group))
    return _percentiles(samples)


def _time_batches(segment: Segment, ids: list[str], seconds: float) -> dict[str, float]:
    import numpy as np
    import pyarrow as pa

    from quorin.assembly import assemble_batch

    rates = {}
    for name, form in (("list", list), ("arrow", pa.array)):
        batches = [form(ids[start : start + _BATCH]) for start in range(0, len(ids) - _BATCH + 1, _BATCH)]
        out, mask = np.empty((_BATCH, len(segment.schema.fields)), np.float32), np.empty(_BATCH, np.bool_)
        rows, started, end = 0, time.perf_counter(), time.monotonic() + seconds / 2
        while time.monotonic() < end:
            assemble_batch(segment, batches[rows // _BATCH % len(batches)], out=out, found_mask=mask)
            rows += _BATCH
        rates[f"batch_{name}_rows_per_second"] = rows / (time.perf_counter() - started)
    return rates


def _time_writes(store: Path, memory: Path, registry: Any, schema: Schema, seconds: float) -> dict[str, float]:
    """Time each write from the call until it is served, with a consumer in a separate process, as in production."""
    from quorin.wal import WALProducer

    values = dict.fromkeys((field.name for field in schema.fields), 1.0)
    samples: list[float] = []
    with running(_consume, store, memory), WALProducer(store, registry=registry) as producer:
        producer.write_sync(schema, "user_000000001", values, timeout_ms=30_000)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            started = time.perf_counter()
            producer.write_sync(schema, "user_000000001", values, timeout_ms=10_000)
            samples.append(time.perf_counter() - started)
    return _percentiles(samples)


def _consume(ready: Callable[[], None], store: Path, memory: Path) -> None:
    """What ``quorin consumer`` does, with all kernels loaded before."""
    from quorin.engine import kernels
    from quorin.shm import SegmentRegistry
    from quorin.wal_consumer import WALConsumer

    registry = SegmentRegistry(store, shm_dir=memory)
    with WALConsumer(registry.backend, None, registry=registry) as consumer:
        signal.signal(signal.SIGTERM, lambda *_: consumer.stop())
        kernels.load()
        ready()
        consumer.run()
    registry.backend.close()


def _percentiles(samples: list[float]) -> dict[str, float]:
    import numpy as np

    p50, p99 = np.percentile(np.array(samples), [50, 99])
    return {"p50": float(p50), "p99": float(p99), "samples": len(samples)}


def _print(results: dict[str, Any]) -> None:
    out = console()
    out.print(
        f"{count(results['entities'])} entities of {results['fields']} float32 fields, "
        f"{results['bytes_per_entity']:.0f} bytes each; {results['processors']} processors; "
        f"quorin {results['quorin']}\n"
    )
    latencies = table("", "p50", "p99")
    for name, key in (
        ("one row, hot (100 ids)", "read_hot_seconds"),
        ("one row, random ids", "read_random_seconds"),
        ("write until served", "write_sync_seconds"),
    ):
        add_row(latencies, name, duration(results[key]["p50"]), duration(results[key]["p99"]))
    out.print(latencies)
    rates = table("", "rows/s")
    for name, key in (
        (f"batches of {_BATCH:,} ids, a list of str", "batch_list_rows_per_second"),
        (f"batches of {_BATCH:,} ids, an Arrow array", "batch_arrow_rows_per_second"),
        ("bulk insert", "fill_rows_per_second"),
    ):
        add_row(rates, name, count(results[key]))
    out.print()
    out.print(rates)
