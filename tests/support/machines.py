"""A machine with a log, a history and shared memory, and what a row is to the bit, for tests of cold starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quorin import assembly, layout
from quorin.engine.format import segment as fmt
from quorin.offline import ParquetDatasetStore
from quorin.shm import Segment, SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer


class Machine:
    """A log, or one of each of the ``partitions``, a history, and shared memory, which is lost in a reboot; it holds
    all of them, or those ``held``.
    """

    def __init__(
        self,
        directory: Path,
        connection: str | None = None,
        *,
        partitions: int | None = None,
        held: str | None = None,
        shm: str = "shm",
    ) -> None:
        self.shm = directory / shm
        self.shm.mkdir()
        self.registry = SegmentRegistry(
            connection or directory / "store", shm_dir=self.shm, partitions=partitions, held=held
        )
        self.producer = WALProducer(self.registry.backend, registry=self.registry)
        self.base = directory / "history"

    def store(self) -> ParquetDatasetStore:
        return ParquetDatasetStore(self.base)

    def consumer(self, schemas: Any, **options: Any) -> WALConsumer:
        return WALConsumer(self.registry.backend, schemas, registry=self.registry, offline=self.store(), **options)

    def drain(self, schemas: Any, **options: Any) -> None:
        with self.consumer(schemas, **options) as consumer:
            consumer.drain()

    def reboot(self) -> None:
        for path in self.shm.iterdir():
            path.unlink()

    def served(self, schema: Any, ids: list[str]) -> list[Any]:
        with self.registry.open_current(schema) as segment:
            return whole_rows(segment, ids)

    def found(self, schema: Any, ids: list[str]) -> list[bool]:
        return [row is not None for row in self.served(schema, ids)]

    def log(self) -> Any:
        return self.registry.backend.log()

    def close(self) -> None:
        self.producer.close()
        self.registry.backend.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    opened = Machine(tmp_path)
    yield opened
    opened.reboot()
    opened.close()


def whole_rows(segment: Segment, ids: list[str]) -> list[Any]:
    """Everything that a row is: header, fixed cells and null bits as bytes, variable values; deletions too."""
    view = segment.current_view()
    cells = fmt.body_layout(view.schema).cells
    values = assembly.read(segment, ids).to_pylist()
    rows: list[Any] = []
    for entity_id, value in zip(ids, values, strict=True):
        found = layout.find_row(view, entity_id.encode())
        if found is None:
            rows.append(None)
            continue
        memory = view.mapping.memory[found[1] : found[1] + view.layout.row_stride]
        header = memory[: fmt.KEY_OFFSET].view(fmt.ROW_HEADER_DTYPE)[0]
        body = memory[view.layout.body_offset :]
        fixed = [
            body[cell.offset : cell.offset + cell.byte_count].tobytes() for cell in cells if not cell.field.is_variable
        ]
        bits = body[fmt.body_layout(view.schema).bitmap_offset :][: fmt.body_layout(view.schema).bitmap_bytes]
        variable = [repr(value[cell.field.name]) for cell in cells if cell.field.is_variable]
        head = (int(header["event_time_ns"]), int(header["position"]), int(header["flags"]))
        rows.append((head, [] if head[2] & fmt.FLAG_DELETED else [fixed, bits.tobytes(), variable]))
    return rows
