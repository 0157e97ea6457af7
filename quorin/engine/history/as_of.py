"""What was served: the rows that were in force at a position of the log.

The rows of an entity are applied in the order of the log by the rule of the segment's writer: the newest event time
stays, then the larger tie-breaker, then the later row. A late row is in the history, but changes nothing from its
position on. A partial row takes over what it does not set from the row that was in force when it arrived.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from quorin.engine.backend.keys import SEQUENCE_BITS
from quorin.engine.history.point_in_time import (
    Keys,
    by_entity,
    by_entity_and_time,
    keys_of,
    last_of_group,
    taken,
    values_from,
)
from quorin.engine.log.record import Kind
from quorin.engine.log.token import Token
from quorin.engine.rows.batch import ENTITY_ID, EVENT_TIME
from quorin.engine.rows.column import cast_entity_ids
from quorin.engine.rows.partitions import by_partition
from quorin.errors import IncompleteHistoryError, InvalidRowError, PartitionedError, TokenError

if TYPE_CHECKING:
    from quorin.engine.arrays import AnyArray, Int64s, Mask
    from quorin.engine.history.dataset import Loaded
    from quorin.engine.history.tail import Sources
    from quorin.schema import Schema

FOUND, POSITION = "found", "log_position"
_MAX_SHOWN = 3
Number = TypeVar("Number", int, "Int64s")


@dataclass(frozen=True)
class AsOf:
    """When to read: at a log position, of several partitions a token, or at a time."""

    position: int | None
    time_ns: int | None

    @property
    def last(self) -> int:
        """The last position that counts. Positions are times in milliseconds, so a time includes its millisecond.

        :raises InvalidRowError: unless one of position and time is given, and none is negative.
        """
        if (self.position is None) == (self.time_ns is None):
            raise InvalidRowError(
                f"expected either position or time_ns, got position={self.position!r} and time_ns={self.time_ns!r}"
            )
        name, given = ("time_ns", self.time_ns) if self.position is None else ("position", self.position)
        if isinstance(given, bool) or not isinstance(given, Integral) or not 0 <= int(given) < 2**63:
            raise InvalidRowError(f"{name}: expected a whole number from 0 to 2**63 - 1, got {given!r}")
        return int(given) if self.time_ns is None else position_after(int(given)) - 1

    def last_if_known(self, sources: Sources, partition: int) -> int | None:
        """:meth:`last_in`, or None for a token that does not say it of this partition."""
        try:
            return self.last_in(sources, partition)
        except TokenError:
            return None

    def last_in(self, sources: Sources, partition: int) -> int:
        """The last position that counts in one of several partitions.

        :raises PartitionedError: for a position that is no token. :raises TokenError: for a token of other logs, or
            without a position of this partition's log.
        """
        if self.time_ns is not None:
            return self.last
        if not isinstance(self.position, Token):
            raise PartitionedError(
                f"position {self.position}: expected a token, as there are {sources.count} partitions, each with "
                "positions of its own"
            )
        if not sources.has_log:
            raise TokenError(
                f"token {self.position.text}: which partitions it is of is known to the logs: pass the connection, or "
                "a time"
            )
        return position_in(sources, partition, self.position)


def position_after(time_ns: Number) -> Number:
    """The lowest position that entries get from the millisecond after a time on."""
    return (time_ns // 1_000_000 + 1) << SEQUENCE_BITS


def position_in(sources: Sources, partition: int, token: Token) -> int:
    """The position that a token has of a partition's log, or of one that it followed.

    :raises TokenError: if it has none, unless that log never had an entry.
    """
    parts, logs = dict(token.parts), [one.log for one in sources.logs(partition)]
    for log in reversed(logs):
        identity, bounds = log.state()
        if identity in parts:
            return parts[identity]
        if len(logs) == 1 and not bounds.last and not sources.stored(partition, sources.count).parts:
            return 0
    raise TokenError(
        f"token {token.text} has no position of partition {partition}, in which there are requested entities: expected "
        "the token of a read, or of all that a node has applied"
    )


def read_at(sources: Sources, ids: Any, asked: AsOf) -> pa.Table:
    """:func:`rows_at` of sources that have all positions up to then.

    :raises IncompleteHistoryError: if they lack some.
    """
    schema, last, entities = sources.schema, asked.last, cast_entity_ids(ids, None)
    whole = whole_of(sources, last)

    def read(partition: int, places: pa.Array) -> pa.Table:
        position = asked.last_in(sources, partition) if len(places) else 0
        loaded = _complete(sources.load(partition, through=position), position, sources)
        loaded = _without_half_a_load(sources, loaded, partition, position, asked)
        return rows_at(schema, loaded, entities.take(places), position)

    if whole is None:
        return by_partition(entities, sources.count, read)
    return rows_at(schema, _complete(whole, last, sources), entities, last)


def whole_of(sources: Sources, last: int) -> Loaded | None:
    """All rows up to a position, from the log too if the history lacks some; None if there are several partitions."""
    stored = sources.stored() if sources.stored_count == 1 else None
    if stored is not None and not (sources.has_log and missing(stored, last)):
        return stored  # Neither the log is needed, nor a connection to it.
    return sources.load(0, through=last) if sources.count == 1 else None


def _complete(loaded: Loaded, position: int, sources: Sources) -> Loaded:
    if gaps := missing(loaded, position):
        raise incomplete(sources.schema, gaps, has_connection=sources.has_log)
    return loaded


def _without_half_a_load(sources: Sources, loaded: Loaded, partition: int, position: int, asked: AsOf) -> Loaded:
    """A partition's rows, without a load that another partition's log had not committed: nodes served what was before.

    No load begins before the logs have the commit of the one before, so it is the last one, or none.
    """
    commits = loaded.counted.as_of(position).commits
    others = (other for other in range(sources.count) if other != partition)
    if not commits or all(_has_committed(sources, commits[-1].begin, other, asked) for other in others):
        return loaded
    return loaded.counting(replace(loaded.counted, commits=commits[:-1]))


def _has_committed(sources: Sources, load: int, partition: int, asked: AsOf) -> bool:
    """Whether a partition's log had the commit of a load. A token that says nothing of it is of a later write.

    :raises IncompleteHistoryError: if neither the history nor the log says it.
    """
    position = asked.last_if_known(sources, partition)
    if position is None:
        return True
    found = _commit_in(sources.stored(partition, sources.count), load)
    if found is None:
        loaded = sources.load(partition, through=position, ids=pa.array([], pa.string()))
        found = _commit_in(_complete(loaded, position, sources), load)
    return found is not None and found <= position


def _commit_in(loaded: Loaded, load: int) -> int | None:
    """The position of a load's commit in a partition's log, None if there is none."""
    return next((commit.position for commit in loaded.counted.commits if commit.begin == load), None)


def rows_at(schema: Schema, loaded: Loaded, ids: pa.Array, position: int) -> pa.Table:
    """The row of each id that was in force at a position, in the order of the ids: the columns ``entity_id``,
    ``found``, ``event_time_ns``, ``log_position`` and the fields; null where not found.
    """
    entities = ids.dictionary_encode()
    loaded = loaded.counting(loaded.counted.as_of(position))
    states = States.of(schema, loaded, entities.dictionary, position, replaced=True)
    as_of = np.full(len(entities), position, np.int64)
    chosen = states.in_force_at(entities.indices.to_numpy(), as_of)
    return states.table(schema, loaded, entities.dictionary_decode(), chosen, as_of)


@dataclass(frozen=True)
class States:
    """Which row of each entity was in force after every row of the history.

    ``rows`` are indices in ``keys``, by entity and in the order of the log; those of entity ``e`` begin at
    ``starts[e]``, and are ``counts[e]``. ``in_force[i]`` is the index in ``keys`` of the row that was in force once
    ``rows[i]`` was applied, and ``places`` are the indices in ``rows`` of the keys. ``loads`` numbers for each key the
    committed loads that began before it: what was in force before a load is not in force after it. ``is_loaded`` marks
    the keys of rows of loads.
    """

    keys: Keys
    rows: Int64s
    starts: Int64s
    counts: Int64s
    in_force: Int64s
    places: Int64s
    loads: Int64s
    is_loaded: Mask

    @classmethod
    def of(cls, schema: Schema, loaded: Loaded, ids: pa.Array, position: int, *, replaced: bool = False) -> States:
        """The states of these entities up to a position; ``replaced`` leaves out what the last load has replaced.
        ``schema`` has the tie-breaker.
        """
        keys = counting(keys_of(schema, loaded, ids, replaced=replaced, with_positions=True), position)
        counts = np.bincount(keys.entity, minlength=len(ids)).astype(np.int64)
        starts = np.cumsum(counts) - counts
        count = len(keys.time)
        if not count:
            nothing = np.zeros(0, np.int64)
            return cls(keys, nothing, starts, counts, nothing, nothing, nothing, np.zeros(0, np.bool_))
        begins = np.array([commit.begin for commit in loaded.counted.commits], np.int64)
        loads = np.searchsorted(begins, keys.position, side="right")
        rows = by_entity(keys, np.arange(count))
        ranked = by_entity(keys, np.lexsort((keys.tie, keys.time, loads))) if loads.any() else by_entity_and_time(keys)
        ranks, places = np.empty(count, np.int64), np.empty(count, np.int64)
        ranks[ranked] = places[rows] = np.arange(count)
        # Ranks grow from one entity to the next, so the greatest one so far is always of the same entity.
        in_force = ranked[np.maximum.accumulate(ranks[rows])]
        return cls(keys, rows, starts, counts, in_force, places, loads, np.isin(keys.position, begins))

    def in_force_at(self, entity: AnyArray, positions: Int64s) -> Int64s:
        """For each query the index in ``keys`` of the row in force at a position, -1 if there was none."""
        last = self.last_at(entity, positions)
        return np.where(last >= 0, self.in_force[last], -1) if len(self.rows) else last

    def last_at(self, entity: AnyArray, positions: Int64s) -> Int64s:
        """For each query the index in ``rows`` of the entity's last row at or before a position, -1 for none."""
        if not len(self.rows) or not len(positions):
            return np.full(len(positions), -1, np.int64)
        return last_of_group(self.keys.position[self.rows], self.starts, self.counts, entity, positions)

    def written_by(self, entity: AnyArray, positions: Int64s, event_times: Int64s) -> Int64s:
        """For each query the index in ``keys`` of the entity's row with a position and an event time, -1 for none. Of
        several it is the last one: it was in force as soon as the entry was applied.
        """
        keys, last = self.keys, self.last_at(entity, positions)
        written, pending = np.full(len(positions), -1, np.int64), np.flatnonzero(last >= 0)
        places = last[pending]
        while len(pending):
            rows = self.rows[places]
            is_of_entry = keys.position[rows] == positions[pending]
            is_it = is_of_entry & (keys.time[rows] == event_times[pending])
            written[pending[is_it]] = rows[is_it]
            goes_on = is_of_entry & ~is_it & (places > self.starts[entity[pending]])
            pending, places = pending[goes_on], places[goes_on] - 1
        return written

    def before(self, rows: Int64s) -> Int64s:
        """For each index in ``keys`` that of the row which was in force when it arrived, -1 for none."""
        places = self.places[rows]
        earlier = self.in_force[places - 1]
        is_first = (places == self.starts[self.keys.entity[rows]]) | (self.loads[earlier] != self.loads[rows])
        return np.where(is_first, -1, earlier)

    def reach_load(self, rows: Int64s) -> Mask:
        """Whether each of the partial rows, by index in ``keys``, takes over values from a row of a load, or would from
        one that a load has replaced.
        """
        keys, reached = self.keys, np.zeros(len(rows), np.bool_)
        some = np.arange(len(rows))
        while len(some):
            places = self.places[rows]
            has_earlier = places > self.starts[keys.entity[rows]]
            earlier = self.in_force[places - 1]
            is_other = (self.loads[earlier] != self.loads[rows]) | self.is_loaded[earlier]
            reached[some[has_earlier & is_other]] = True
            goes_on = has_earlier & ~is_other & (keys.kind[earlier] == Kind.partial)
            some, rows = some[goes_on], earlier[goes_on]
        return reached

    def table(self, schema: Schema, loaded: Loaded, ids: pa.Array, chosen: Int64s, as_of: Int64s) -> pa.Table:
        """The rows with these indices in ``keys``, -1 for none, as they were read when the log was at the positions
        ``as_of``; deletions are not found.
        """
        keys = self.keys
        if len(keys.kind):
            chosen = np.where((chosen >= 0) & (keys.kind[chosen] != Kind.delete), chosen, -1)
        columns: dict[str, Any] = {ENTITY_ID: ids, FOUND: pa.array(chosen >= 0)}
        columns[EVENT_TIME] = taken(pa.array(keys.time), chosen)
        columns[POSITION] = taken(pa.array(keys.position), chosen)
        return pa.table(
            columns | values_from(schema, loaded, keys, chosen, self._sources(schema, loaded, chosen, as_of))
        )

    def _sources(self, schema: Schema, loaded: Loaded, chosen: Int64s, as_of: Int64s) -> dict[str, Int64s]:
        """For every field the index in ``keys`` of the row that its value comes from, -1 for null; empty if all values
        come from the chosen rows.
        """
        names, keys = [field.name for field in schema.fields], self.keys
        lost = {name: loaded.lost_through(name, as_of) for name in names if loaded.lacks(name)}
        some = np.flatnonzero(chosen >= 0)
        if not len(some) or (not lost and not (keys.kind[chosen[some]] == Kind.partial).any()):
            return {}
        sets = np.array([[*(name in chosen_set for chosen_set in keys.field_sets), False] for name in names])
        sources = np.full((len(names), len(chosen)), -1, np.int64)
        rows = chosen[some]
        while len(some):
            kind = keys.kind[rows]
            is_set = (sets[:, keys.fields[rows]] & (kind == Kind.partial)) | (kind == Kind.upsert)
            field, query = np.nonzero(is_set & (sources[:, some] < 0))
            sources[field, some[query]] = rows[query]
            earlier = np.where(kind == Kind.partial, self.before(rows), -1)
            goes_on = (earlier >= 0) & (sources[:, some] < 0).any(axis=0)
            some, rows = some[goes_on], earlier[goes_on]
        for name, through in lost.items():
            own = sources[names.index(name)]
            own[(own >= 0) & (keys.position[own] <= through)] = -1
        return {name: np.ascontiguousarray(sources[i]) for i, name in enumerate(names)}


def counting(keys: Keys, position: int) -> Keys:
    """The rows of the history that count at a position: the one place that decides it.

    Rows behind the position were not there yet. A partial row that sets nothing is not applied.
    """
    kept: Mask = keys.position <= position
    empty = [number for number, fields in enumerate(keys.field_sets) if not fields]
    if empty:
        kept &= (keys.kind != Kind.partial) | ~np.isin(keys.fields, empty)
    return keys if kept.all() else keys.only(kept)


def incomplete(schema: Schema, gaps: list[tuple[int, int]], *, has_connection: bool) -> IncompleteHistoryError:
    """The error for a history that lacks positions."""
    ranges = ", ".join(f"{after + 1} to {through}" for after, through in gaps[:_MAX_SHOWN])
    more = f" and {len(gaps) - _MAX_SHOWN} other ranges" if len(gaps) > _MAX_SHOWN else ""
    hint = "they were trimmed, or files were removed or are damaged"
    if not has_connection:
        hint = "pass the connection, whose log may have them, or an earlier position"
    return IncompleteHistoryError(
        f"the history of {schema.__name__!r} lacks log positions {ranges}{more}: {hint}", gaps
    )


def missing(loaded: Loaded, position: int) -> list[tuple[int, int]]:
    """The positions up to ``position`` that the history does not cover: pairs (after, through)."""
    gaps, covered = [], 0
    for part in loaded.parts:
        file = part.piece.file
        if file.after > covered and covered < position:
            gaps.append((covered, min(file.after, position)))
        covered = max(covered, file.through)
    covered = max([covered, loaded.complete, *(commit.position for commit in loaded.counted.commits)])
    return [*gaps, (covered, position)] if covered < position else gaps
