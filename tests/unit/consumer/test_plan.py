"""The consumer's decisions, one by one, without a log or a segment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorin.engine.backend import Bounds
from quorin.engine.consumer.plan import (
    Agenda,
    Anchor,
    EntryRate,
    Fit,
    FlushLimits,
    SchemaPositions,
    Step,
    anchor,
    next_step,
)

LIMITS = FlushLimits(seconds=5.0, rows=100, size=1000)


@pytest.mark.parametrize(
    ("agenda", "step", "seconds"),
    [
        (Agenda(1), Step.take, 0),
        (Agenda(1, stopping=True), Step.stop, 0),
        (Agenda(1, stopping=True, retry_at=15), Step.stop, 0),
        (Agenda(1, retry_at=12.5), Step.wait, 2.5),
        (Agenda(1, take_at=10.2), Step.wait, pytest.approx(0.2)),
        (Agenda(2, owned=1, take_at=9), Step.take, 0),
        (Agenda(2, owned=1, take_at=11), Step.check, 0),
        (Agenda(1, owned=1, check_at=9), Step.check, 0),
        (Agenda(1, owned=1, check_at=11), Step.read, 0),
        (Agenda(1, owned=1, check_at=11, unflushed=True, flush_at=11), Step.read, 0),
        (Agenda(1, owned=1, check_at=11, unflushed=True, flush_at=10), Step.flush, 0),
        (Agenda(0, discovers=True), Step.look, 0),
        (Agenda(0, discovers=True, look_at=10.5), Step.wait, 0.5),
        (Agenda(1, discovers=True, look_at=11, take_at=10.2), Step.wait, pytest.approx(0.2)),
        (Agenda(1, discovers=True, look_at=10.5, take_at=9), Step.take, 0),
        (Agenda(1, discovers=True, owned=1, look_at=9, check_at=9), Step.look, 0),
        (Agenda(1, owned=1, check_at=10, unflushed=True, flush_at=10), Step.check, 0),
    ],
)
def test_the_next_step_at_ten_seconds(agenda: Agenda, step: Step, seconds: float) -> None:
    assert next_step(agenda, 10.0) == (step, seconds)


def test_newly_taken_segments_are_checked_before_they_are_read() -> None:
    agenda = Agenda(2, owned=1, check_at=100)
    agenda.took(2, 10.0)
    assert next_step(agenda, 10.0)[0] is Step.check
    agenda.checked(10.0)
    assert next_step(agenda, 10.5)[0] is Step.read
    assert next_step(agenda, 11.0)[0] is Step.check


def test_lost_segments_are_taken_again_at_once() -> None:
    agenda = Agenda(1, owned=1, take_at=100, check_at=100)
    agenda.lost(0, 10.0)
    assert next_step(agenda, 10.0)[0] is Step.take


def test_failures_back_off_and_end_with_a_check() -> None:
    agenda = Agenda(1, owned=1, check_at=100)
    delays = [agenda.failed(Step.flush, 10.0) for _ in range(8)]
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert next_step(agenda, 10.0) == (Step.wait, 5.0)
    assert next_step(agenda, 15.0)[0] is Step.check
    for step in (Step.look, Step.take, Step.check, Step.read):
        agenda.succeeded(step)
    assert agenda.failed(Step.flush, 20.0) == 5.0
    agenda.succeeded(Step.flush)
    assert agenda.failed(Step.flush, 20.0) == 0.1


def test_the_first_unflushed_rows_set_the_time_of_the_flush() -> None:
    agenda = Agenda(1, owned=1, check_at=100)
    agenda.applied(10.0, LIMITS, rows=1, size=1)
    agenda.applied(14.0, LIMITS, rows=1, size=1)
    assert next_step(agenda, 14.0)[0] is Step.read
    assert next_step(agenda, 15.0)[0] is Step.flush
    agenda.flushed()
    assert next_step(agenda, 15.0)[0] is Step.read


@pytest.mark.parametrize(("rows", "size"), [(50, 1), (1, 500)])
def test_many_rows_or_bytes_are_flushed_before_their_time(rows: int, size: int) -> None:
    agenda = Agenda(1, owned=1, check_at=100)
    agenda.applied(10.0, LIMITS, rows=rows, size=size)
    assert next_step(agenda, 10.0)[0] is Step.read
    agenda.applied(10.5, LIMITS, rows=rows, size=size)
    assert next_step(agenda, 10.5)[0] is Step.flush
    agenda.flushed()
    agenda.applied(11.0, LIMITS, rows=rows, size=size)
    assert next_step(agenda, 11.0)[0] is Step.read


def test_rows_are_read_while_a_flush_goes_on_up_to_twice_the_limits() -> None:
    agenda, limits = Agenda(1, owned=1, check_at=100), FlushLimits(5.0, 10, 1000)
    agenda.applied(0.0, limits, rows=10, size=10)
    assert next_step(agenda, 0.0)[0] is Step.flush
    agenda.flush_begun()
    assert next_step(agenda, 0.0)[0] is Step.read
    agenda.applied(0.0, limits, rows=9, size=10)
    assert next_step(agenda, 50.0)[0] is Step.read, "one flush at a time"
    assert not agenda.waits_for_flush
    agenda.applied(50.0, limits, rows=1, size=10)
    assert next_step(agenda, 50.0)[0] is Step.flush
    assert agenda.waits_for_flush
    agenda.flushed()
    assert (agenda.unflushed, agenda.unflushed_rows, agenda.flushing_rows) == (False, 0, 0)
    assert next_step(agenda, 50.0)[0] is Step.read


def test_rows_applied_beside_a_flush_are_flushed_after_their_own_time() -> None:
    agenda, limits = Agenda(1, owned=1, check_at=100), FlushLimits(5.0, 10, 1000)
    agenda.applied(0.0, limits, rows=1, size=10)
    agenda.flush_begun()
    agenda.applied(6.0, limits, rows=1, size=10)
    agenda.flush_is_done = True
    assert next_step(agenda, 7.0)[0] is Step.flush
    agenda.flush_settled()
    assert next_step(agenda, 7.0)[0] is Step.read
    assert next_step(agenda, 11.0)[0] is Step.flush


def test_reads_go_on_while_a_log_cannot_be_trimmed() -> None:
    agenda, limits = Agenda(1, owned=1, check_at=100), FlushLimits(0.0, 10, 1000)
    agenda.trim_failed(10.0, limits)
    assert next_step(agenda, 10.5)[0] is Step.read
    assert next_step(agenda, 11.0)[0] is Step.flush


def test_the_rows_of_a_failed_flush_count_again_and_are_waited_for() -> None:
    agenda, limits = Agenda(1, owned=1, check_at=100), FlushLimits(5.0, 10, 1000)
    agenda.applied(0.0, limits, rows=3, size=30)
    agenda.flush_begun()
    agenda.applied(5.0, limits, rows=4, size=40)
    agenda.flush_is_done = True
    agenda.flush_failed(6.0)
    agenda.failed(Step.flush, 6.0)
    assert (agenda.unflushed_rows, agenda.unflushed_bytes, agenda.flush_is_done) == (7, 70, False)
    assert agenda.waits_for_flush
    agenda.checked(7.0)
    assert next_step(agenda, 7.0)[0] is Step.flush
    agenda.flushed()
    agenda.succeeded(Step.flush)
    assert not agenda.waits_for_flush


@pytest.mark.parametrize(
    ("position", "known", "bounds", "flushed", "expected"),
    [
        (0, 0, Bounds(0, 0), None, Anchor(0, Fit.new)),
        (0, 0, Bounds(3, 9), None, Anchor(0, Fit.new)),
        (0, 0, Bounds(3, 9, 2), None, Anchor(0, Fit.new_after_trim)),
        (5, 7, Bounds(1, 9), None, Anchor(5, Fit.same)),
        (9, 7, Bounds(0, 9, 9), None, Anchor(9, Fit.same)),
        (9, 7, Bounds(1, 9), 4, Anchor(4, Fit.same)),
        (4, 7, Bounds(1, 9), 9, Anchor(4, Fit.same)),
        (5, 8, Bounds(1, 9), None, Anchor(0, Fit.other_log)),
        (10, 7, Bounds(1, 9), None, Anchor(0, Fit.shorter)),
        (10, 7, Bounds(0, 0), None, Anchor(0, Fit.shorter)),
        (5, 7, Bounds(8, 9, 7), None, Anchor(5, Fit.trimmed)),
        (9, 7, Bounds(8, 9, 7), 5, Anchor(5, Fit.trimmed)),
    ],
)
def test_where_reading_begins(position: int, known: int, bounds: Bounds, flushed: int | None, expected: Anchor) -> None:
    found = anchor(position=position, log_identity=known, identity=7, bounds=bounds, flushed=flushed)
    assert found == expected
    assert found.resets == (expected.fit not in (Fit.same, Fit.trimmed))


@given(st.integers(0, 20), st.integers(0, 8), st.integers(0, 20), st.none() | st.integers(0, 20))
def test_nothing_that_may_be_missing_is_ever_skipped(position: int, known: int, last: int, flushed: int | None) -> None:
    found = anchor(position=position, log_identity=known, identity=7, bounds=Bounds(1, last), flushed=flushed)
    if known == 7 and position <= last:
        assert found.after <= position
        assert flushed is None or found.after <= flushed
    else:
        assert found.after == 0


def test_the_least_advanced_schema_decides_where_to_read() -> None:
    cursors = SchemaPositions({"A": 5, "B": 9})
    assert cursors.lowest == 5
    assert cursors.wants("A", 6)
    assert not cursors.wants("A", 5)
    assert not cursors.wants("B", 9)
    assert not cursors.wants("C", 100)
    cursors.advance(7)
    assert cursors.after == {"A": 7, "B": 9}
    assert SchemaPositions().lowest == 0


def test_the_pace_is_that_of_the_last_hundredth_of_a_second() -> None:
    pace = EntryRate(since=5.0)
    assert not pace.is_fast(1000, 5.001)
    assert pace.is_fast(0, 5.011)
    assert pace.is_fast(1, 5.012)
    assert not pace.is_fast(1, 5.022)


def test_writers_who_wait_for_each_write_are_not_fast() -> None:
    pace = EntryRate()
    assert not any(pace.is_fast(1, 10 + number * 0.0002) for number in range(1000))
    assert pace.is_fast(1, 10.0) or any(pace.is_fast(1, 11 + number * 0.0001) for number in range(1000))
