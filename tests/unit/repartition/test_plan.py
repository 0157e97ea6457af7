"""The steps of a growth, over a model of a control plane and logs: whatever is killed, sleeps or runs twice."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quorin.engine.format.growth import Closed, Former, Growth, State
from quorin.engine.repartition.plan import (
    Begin,
    Close,
    Exchange,
    LogName,
    Reopen,
    Seen,
    Step,
    ended,
    is_complete,
    new_logs,
    next_steps,
    old_logs,
)

KEYS = ("wal",)


@dataclass
class ModelLog:
    """A log as backends have it: closed, reopened and begun in one step each."""

    last: int = 0
    closed_by: int = 0
    ended: int = 0
    written: list[int] = field(default_factory=list)

    def append(self) -> bool:
        if self.closed_by:
            return False
        self.last += 1
        self.written.append(self.last)
        return True

    def close(self, number: int) -> None:
        if number > self.ended and not self.closed_by:
            self.closed_by = number

    def reopen(self, number: int) -> None:
        self.ended = max(self.ended, number)
        if self.closed_by <= number:
            self.closed_by = 0


@dataclass
class Model:
    count: int
    stored: Growth = field(default_factory=Growth)
    logs: dict[tuple[int, LogName], ModelLog] = field(default_factory=dict)

    def log(self, count: int, name: LogName) -> ModelLog:
        return self.logs.setdefault((count, name), ModelLog())

    def seen(self, growth: Growth) -> Seen:
        old = {name: self.log(growth.count, name) for name in old_logs(growth)}
        return Seen(
            {name: log.last if log.closed_by else None for name, log in old.items()},
            {name: self.log(2 * growth.count, name).last for name in new_logs(growth)},
            dict.fromkeys(old, 7),
        )

    def do(self, step: Step, expected: Growth) -> None:
        match step:
            case Close(log, number):
                self.log(expected.count, log).close(number)
            case Reopen(log, number):
                self.log(expected.count, log).reopen(number)
            case Begin(log, behind):
                new = self.log(2 * expected.count, log)
                new.last = max(new.last, behind)
            case Exchange(growth, count):
                if self.stored == expected:
                    if count is not None:
                        seen = self.seen(expected)
                        assert is_complete(seen), "a count is in force only when all logs are closed"
                    self.stored = growth
                    self.count = count or self.count

    def write(self) -> None:
        """As a producer does that looks the count up when it finds a log closed."""
        self.log(self.count, ("wal", 0)).append()


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    count=st.sampled_from([1, 2, 4]),
    events=st.lists(st.sampled_from(["look 0", "look 1", "act 0", "act 1", "abort", "begin", "write"]), max_size=60),
)
def test_whatever_sleeps_a_growth_is_done_or_undone(count: int, events: list[str]) -> None:
    model = Model(count)
    looks: dict[str, tuple[Growth, list[Step]]] = {}
    for event in events:
        kind, _, who = event.partition(" ")
        if kind == "begin" and model.stored.state is State.settled and model.count < 16:
            model.stored = model.stored.begun(model.count, KEYS, "me")
        elif kind == "look":
            looks[who] = model.stored, next_steps(model.stored, model.seen(model.stored))
        elif kind == "act" and who in looks:
            seen, steps = looks[who]
            if steps:
                model.do(steps.pop(0), seen)
        elif kind == "abort" and (ending := ended(model.stored)):
            model.stored = ending
        elif kind == "write":
            model.write()
    _finish(model)
    # Processes that slept all the while wake up.
    for seen, steps in looks.values():
        for step in steps:
            model.do(step, seen)
    assert model.stored.state is State.settled
    for former in model.stored.former:
        closed = [log for (of, _), log in model.logs.items() if of == former.count]
        assert closed
        assert all(log.closed_by and log.last <= former.end for log in closed)
        later = [log for (of, _), log in model.logs.items() if of > former.count]
        assert all(position > former.end for log in later for position in log.written)
    assert all(not log.closed_by for (of, _), log in model.logs.items() if of == model.count)
    before = len(model.log(model.count, ("wal", 0)).written)
    model.write()
    assert len(model.log(model.count, ("wal", 0)).written) == before + 1


def _finish(model: Model) -> None:
    for _ in range(1000):
        seen, steps = model.stored, next_steps(model.stored, model.seen(model.stored))
        if not steps:
            return
        for step in steps:
            model.do(step, seen)
    raise AssertionError(f"does not end: {model}")


@given(count=st.sampled_from([1, 2, 8]), written=st.integers(0, 5))
def test_a_growth_without_disturbance_takes_each_step_once(count: int, written: int) -> None:
    model = Model(count)
    for _ in range(written):
        model.write()
    model.stored = Growth().begun(count, KEYS, "me")
    taken = []
    while steps := next_steps(model.stored, model.seen(model.stored)):
        for step in steps:
            taken.append(type(step))
            model.do(step, model.stored)
    assert taken == [Close] * count + [Begin] * 2 * count + [Exchange]
    assert model.count == 2 * count
    logs = tuple(Closed("wal", partition, 7, written if partition == 0 else 0) for partition in range(count))
    assert model.stored.former == (Former(count, written, logs),)


def test_a_growth_is_stored_as_json() -> None:
    logs = Closed("wal", 0, 2**62, 9), Closed("other", 1, 5, 0)
    growth = Growth(former=(Former(1, 5),), number=3).begun(2, ("wal", "other"), "host:1:2").committed(9, logs)
    assert Growth.parse(growth.to_json()) == growth
    assert Growth.parse(None) == Growth()
