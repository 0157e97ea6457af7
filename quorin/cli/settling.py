"""``--sync``: return when writes are applied, and say which did not take effect."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from quorin.engine.backend.keys import DEFAULT_NAMESPACE, DEFAULT_STREAM_KEY
from quorin.engine.log.token import Token
from quorin.engine.words import moment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quorin.engine.reads.stored import Stored
    from quorin.shm import SegmentRegistry


@dataclass(frozen=True, slots=True)
class SettledLog:
    """A log that the command applies, or waits for, up to its own writes."""

    registry: SegmentRegistry
    namespace: str
    stream_key: str
    timeout_ms: float

    def settle(self, schema_name: str, writes: Mapping[str, Token]) -> dict[str, Stored]:
        """Apply the log up to writes, the position of each by its entity, or wait for the process that does.

        Returns, by entity, the writes that these did not replace, because they have a newer event time.

        :raises WriteSyncTimeoutError, SegmentNotFoundError: with a note on what to do, if no consumer is running.
        """
        from quorin.engine.ops.presence import reports
        from quorin.engine.reads.stored import stored_write
        from quorin.errors import SegmentNotFoundError, WriteSyncTimeoutError
        from quorin.inline_consumer import InlineConsumer

        backend = self.registry.backend
        consumer = InlineConsumer(self.registry, schema_name, stream_key=self.stream_key, timeout_ms=self.timeout_ms)
        try:
            consumer.settle(Token.covering(*writes.values()))
        except (WriteSyncTimeoutError, SegmentNotFoundError) as error:
            if isinstance(error, SegmentNotFoundError):
                written = max(writes.values())
                error.add_note(f"the write is in the log at position {written}: it shows once the segment is rebuilt")
            if not any(report.role == "consumer" for report in reports(backend.control)):
                error.add_note(self._how_to_apply(backend.address))
            raise
        with self.registry.open_stored(schema_name) as segment:
            found = {entity_id: stored_write(segment, entity_id) for entity_id in writes}
        return {it: stored for it, stored in found.items() if stored and stored.overrules(writes[it])}

    def _how_to_apply(self, address: str) -> str:
        words = ["quorin", "consumer", "--connection", address]
        words += ["--namespace", self.namespace] if self.namespace != DEFAULT_NAMESPACE else []
        words += ["--stream-key", self.stream_key] if self.stream_key != DEFAULT_STREAM_KEY else []
        return f"no consumer is running: run `{shlex.join(words)}`"


def outcome_json(newer: Mapping[str, Stored], *, sync: bool) -> dict[str, Any]:
    """What came of writes, for JSON: whether all are served, and what overruled those that are not; null if unknown."""
    overruled = [
        {"entity_id": it, "event_time_ns": one.event_time_ns, "position": one.position, "deleted": one.deleted}
        for it, one in newer.items()
    ]
    return {"is_served": not newer if sync else None, "overruled_by": overruled if sync else None}


def report_overruled(newer: Mapping[str, Stored], what: str, writes: Mapping[str, Token]) -> None:
    """Say on stderr which writes did not take effect, and why. :raises typer.Exit: with code 1, if there are any.

    ``what`` says what became of a write at ``{position}``.
    """
    for entity_id, one in newer.items():
        kind = "deletion" if one.deleted else "row"
        typer.echo(
            f"{what.format(position=writes[entity_id])}: the {kind} of {entity_id!r} at position {one.position} is "
            f"newer, with the event time {moment(one.event_time_ns)} ({one.event_time_ns})",
            err=True,
        )
    if newer:
        raise typer.Exit(1)
