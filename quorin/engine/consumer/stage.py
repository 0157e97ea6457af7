"""The next state of a schema, from one log: a load's rows, and what was logged since it began."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorin.engine.consumer.apply import Applier
from quorin.engine.consumer.plan import SchemaPositions
from quorin.engine.history.counted import Counted
from quorin.engine.log.record import Kind, decode, is_of_load, load_of, peek, translate
from quorin.engine.rows.column import text_lengths
from quorin.errors import InvalidEntryError
from quorin.layout import apply_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from quorin.engine.backend import ControlPlane, Log
    from quorin.engine.history.store import ParquetDatasetStore
    from quorin.engine.memory.staged import Staged
    from quorin.schema import Schema
    from quorin.shm import Segment

Entry = tuple[int, bytes]
_READ_BYTES = 16 << 20


class Stage:
    """One load of one schema, staged up to a position of one log, in a segment beside the serving one. Several logs
    have a stage each, and share the segment.

    A load's rows count as written at its beginning: whatever is pushed since comes after them, wherever the log has
    them. Rows are ordered by event time, so both may be applied as they come, except from the first partial row on,
    which takes over what it does not set: from there, pushed rows wait for :meth:`complete`.
    """

    def __init__(self, staged: Staged, load: int, log: Log, control: ControlPlane) -> None:
        self.load = load
        self.row_count = 0
        self.commit = 0
        """The position of the entry that commits the load; 0 if that was not read yet."""
        self.is_followed = False
        """Whether a later load begins behind the commit: then all nodes that had applied this log have the load."""
        self.refusal = ""
        """Why the load must not come into force, as far as this log says."""
        self.staged = staged
        self._schema = staged.segment.stored_schema
        self._log = log
        self._applier = Applier(log, control, None)
        self._through = self._pushed_through = load
        self._has_partial_rows = False

    # The applier writes to it as to a consumer's target.
    @property
    def schema(self) -> Schema:
        """The schema of the staged rows."""
        return self._schema

    @schema.setter
    def schema(self, schema: Schema) -> None:
        """The staged segment is of that version now."""
        self._schema = schema

    @property
    def opened(self) -> Segment:
        """The staged segment."""
        return self.staged.segment

    @property
    def through(self) -> int:
        """The position up to which the log was read."""
        return self._through

    @property
    def needs_behind(self) -> int:
        """The position behind which it still needs the log."""
        return self._pushed_through if self._has_partial_rows else self._through

    def advance(self, through: int, alive: Callable[[], None]) -> None:
        """Read on, up to a position of the log. ``alive`` is called now and then."""
        for entries in self._entries(self._through, through):
            alive()
            self._apply(entries)
            if entries:  # What was read counts once, also if the next read fails.
                self._through = entries[-1][0]
        self._through = max(self._through, through)

    def complete(self, through: int, alive: Callable[[], None]) -> None:
        """:meth:`advance`, and apply pushed rows that had to wait."""
        self.advance(through, alive)
        if self._has_partial_rows:
            for entries in self._entries(self._pushed_through, through):
                alive()
                self._push([entry for entry in entries if not is_of_load(entry[1])])
            self._has_partial_rows = False

    def fill(self, history: ParquetDatasetStore, position: int, trimmed: int) -> None:
        """Begin with the history's rows, for a log that was trimmed behind the load's beginning.

        The state is that at ``position``, which no commit of another load separates from the load's own; the rows
        behind ``trimmed`` are then read from the log.
        """
        loaded = history.load(self._schema)
        commits = tuple(commit for commit in loaded.counted.commits if commit.begin == self.load)
        self.commit = commits[0].position if commits else self.commit
        loaded = loaded.counting(Counted(commits, position))
        parts = loaded.batches(
            self._schema, newest_first=not loaded.has_partial_rows, after=0 if commits else self.load
        )
        for kind, rows, positions in parts:
            # The others were pushed; a row of the load counts at its beginning.
            self.row_count += len(rows) if commits and positions[0].as_py() == self.load else 0
            apply_batch(self.opened, rows, position=positions, kind=kind)
        self._through = self._pushed_through = min(position, max(self.load, trimmed, loaded.file_through))

    def fill_pushed(self, history: ParquetDatasetStore, position: int, trimmed: int) -> None:
        """Apply what the history has of pushes behind :attr:`load`, up to a position."""
        loaded = history.load(self._schema)
        through = min(position, max(trimmed, loaded.file_through))
        rows = loaded.counting(Counted((), through)).batches(self._schema, newest_first=False, after=self.load)
        for kind, batch, positions in rows:
            apply_batch(self.opened, batch, position=positions, kind=kind)
        self._through = self._pushed_through = max(self.load, through)

    def _entries(self, after: int, through: int) -> Iterator[list[Entry]]:
        while after < through:
            found = self._log.read(after, schema_names=[self._schema.__name__], max_bytes=_READ_BYTES)
            yield [entry for entry in found.entries if entry[0] <= through]
            if found.through <= after:
                return
            after = found.through

    def _apply(self, entries: Iterable[Entry]) -> None:
        pushed: list[Entry] = []
        for position, payload in entries:
            if is_of_load(payload):
                self._take(position, payload)
            elif not self._has_partial_rows:
                self._has_partial_rows = _is_partial(payload)
                if not self._has_partial_rows:
                    pushed.append((position, payload))
                    self._pushed_through = position
        self._push(pushed)

    def _take(self, position: int, payload: bytes) -> None:
        """A record of a load: rows of this one, or the end of it, which is the first entry that ends it."""
        try:
            kind = peek(payload).kind
            load, row_count = load_of(payload)
            if self.commit or self.refusal:
                self.is_followed |= kind is Kind.begin and load > self.load
            elif (kind is Kind.begin and load > self.load) or (kind is Kind.abort and load == self.load):
                self.refusal = "the load was aborted, or another one began, before its commit"
            elif kind is Kind.commit and load == self.load:
                self.commit = position
                if row_count != self.row_count:
                    self.refusal = f"the log has {self.row_count} of the load's {row_count} rows"
            elif kind is Kind.load and load == self.load:
                rows = translate(decode(payload), self._schema)
                limit = self.opened.current_view().layout.max_id_bytes
                fitting = rows.filter(text_lengths(rows.column(0)) <= limit)
                apply_batch(self.opened, fitting, position=self.load, kind=Kind.upsert)
                self.row_count += len(rows)
        except InvalidEntryError:
            # It has become a dead letter, and the load's number of rows will tell.
            return

    def _push(self, entries: list[Entry]) -> None:
        name = self._schema.__name__
        with self.opened.writing:
            self._applier.apply(entries, {name: self}, SchemaPositions({name: 0}))


def _is_partial(payload: bytes) -> bool:
    try:
        return peek(payload).kind is Kind.partial
    except InvalidEntryError:
        return False
