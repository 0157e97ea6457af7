"""A flush, or a trim behind it, that failed is tried again, whoever asked for it, and also if no new rows come."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from quorin.engine.consumer.flushing import Flusher
from quorin.engine.consumer.plan import Agenda, FlushLimits, Step, next_step
from quorin.engine.consumer.trimming import Trimming
from quorin.errors import ConnectionFailedError, HistoryUnavailableError
from quorin.wal_consumer import NoopOfflineWriter
from tests.support.world import TRIP, World, row, running, until

LIMITS = FlushLimits(5.0, 10, 1000)


class FakeLanes(list[Any]):
    """One lane, whose history and log are away when a test says so."""

    def __init__(self) -> None:
        trimming = SimpleNamespace(flush=lambda _: self._reach("history", HistoryUnavailableError))
        historian = SimpleNamespace(offline=object())
        super().__init__([SimpleNamespace(covered=lambda: None, trimming=trimming, historian=historian)])
        self.away = ""
        self.trims = 0

    def trim(self, _: object) -> bool:
        self._reach("log", ConnectionFailedError)
        self.trims += 1
        return True

    def _reach(self, what: str, error: Callable[[str], Exception]) -> None:
        if self.away == what:
            raise error(f"the {what} is away")


@pytest.fixture
def lanes() -> FakeLanes:
    return FakeLanes()


@pytest.fixture
def flusher(lanes: FakeLanes) -> Flusher:
    return Flusher(lanes, None, LIMITS)  # type: ignore[arg-type]


@pytest.fixture
def agenda() -> Agenda:
    return Agenda(1, owned=1, check_at=1e18, unflushed=True, unflushed_rows=3)


def due(agenda: Agenda) -> Step:
    return next_step(agenda, 1e17)[0]


@pytest.mark.parametrize("away", ["log", "history"])
def test_what_failed_in_a_flush_is_flushed_again(flusher: Flusher, lanes: FakeLanes, agenda: Agenda, away: str) -> None:
    lanes.away = away
    flusher.advance(agenda)
    with pytest.raises(ConnectionFailedError):
        flusher.advance(agenda)
    assert due(agenda) is Step.flush
    agenda.failed(Step.flush, 0.0)
    agenda.check_at, lanes.away = 1e18, ""
    assert due(agenda) is Step.flush
    flusher.advance(agenda)
    assert (lanes.trims, due(agenda)) == (1, Step.read)


@pytest.mark.parametrize("away", ["log", "history"])
def test_what_failed_in_another_step_is_flushed_again(
    flusher: Flusher, lanes: FakeLanes, agenda: Agenda, away: str
) -> None:
    flusher.advance(agenda)
    lanes.away = away
    with pytest.raises(ConnectionFailedError):
        flusher.flush(agenda)
    assert (agenda.flushing, agenda.unflushed_rows) == (False, 3 if away == "history" else 0)
    assert due(agenda) is Step.flush


def test_a_flush_that_failed_beside_does_not_keep_the_next_from_being_tried(
    flusher: Flusher, lanes: FakeLanes, agenda: Agenda
) -> None:
    lanes.away = "history"
    flusher.advance(agenda)
    lanes.away = ""
    flusher.flush(agenda)
    assert (lanes.trims, due(agenda)) == (1, Step.read)


def test_a_trim_that_failed_is_tried_again_without_new_rows(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    trim, failed = Trimming._trim, list[bool]()

    def fails_once(*arguments: Any) -> None:
        if not failed:
            failed.append(True)
            raise ConnectionFailedError("the log is away")
        trim(*arguments)

    monkeypatch.setattr(Trimming, "_trim", fails_once)
    last, consumer = (
        world.producer.write(TRIP, "a", row(1)),
        world.consumer(offline=NoopOfflineWriter(), flush_interval_seconds=0.01),
    )
    with running(consumer):
        until(lambda: world.log.bounds().trimmed == last)
        until(lambda: not consumer.is_failing)
    assert failed
