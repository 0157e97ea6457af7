"""What the watchdog decides: nothing that is held, in force or another's ever goes, and everything else does."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from quorin.engine.ops.reclaim_plan import Decision, Reason, SegmentFile, State, decide, reachable_generation

OURS, THEIRS = 11, 22
LINES = ("quorin_A_aaaaaaaaaaaa", "quorin_B_bbbbbbbbbbbb")


def file(generation: int, line: str = LINES[0], **more: Any) -> SegmentFile:
    facts = {"owner": OURS, "held": False, "was_in_force": True, "inode": generation} | more
    pending = f".{OURS:016x}-00000000.pending" if facts.get("pending") else ""
    return SegmentFile(f"{line}{generation:08x}{pending}", line, generation, **facts)


def look(
    files: list[SegmentFile], named: int | None = 1, misses: dict[str, int] | None = None, **more: Any
) -> Decision:
    currents = {} if named is None else {"A": f"{LINES[0]}{named:08x}"}
    state = State(frozenset({OURS}), currents, tuple(files), more.pop("processes", {}))
    return decide(state, misses or {}, threshold=more.pop("threshold", 1))


def unlinked(decision: Decision) -> dict[int, Reason]:
    return {file.generation: reason for file, reason in decision.unlink}


def test_a_line_that_is_in_order_is_left_alone() -> None:
    assert look([file(1)]) == Decision((), (), (), {}, 0)


@pytest.mark.parametrize(
    ("files", "named", "expected"),
    [
        pytest.param([file(1, successor=2), file(2)], 2, {1: Reason.superseded}, id="replaced"),
        pytest.param([file(1), file(2, was_in_force=False)], 1, {2: Reason.never_in_force}, id="died before the flip"),
        pytest.param([file(1), file(2, pending=True)], 1, {2: Reason.unfinished}, id="died in creation"),
        pytest.param([file(1), file(2)], None, {1: Reason.unnamed, 2: Reason.unnamed}, id="no entry"),
        pytest.param([file(1), file(5, LINES[1])], 1, {5: Reason.unnamed}, id="another line"),
        pytest.param([file(1, held=True, successor=2), file(2)], 2, {}, id="still read"),
        pytest.param([file(1), file(2, was_in_force=False, held=True)], 1, {}, id="being built"),
        pytest.param([file(1), file(2, pending=True, held=True)], 1, {}, id="being created"),
        pytest.param([file(1, kept=True, successor=2), file(2)], 2, {}, id="kept"),
        pytest.param([file(1), file(5, LINES[1], kept=True)], 1, {5: Reason.unnamed}, id="kept, line gone"),
        pytest.param([file(1, owner=THEIRS)], None, {}, id="another namespace's"),
        pytest.param([file(1, owner=0)], None, {}, id="nobody's, and not named"),
        pytest.param([file(1, pending=True, owner=THEIRS)], None, {}, id="another's unfinished"),
        pytest.param([file(1, pending=True, owner=0)], 1, {}, id="nobody's unfinished"),
        pytest.param([file(1, owner=0, successor=2), file(2, owner=0)], 2, {1: Reason.superseded}, id="untagged"),
        pytest.param([file(1, owner=THEIRS, successor=2), file(2)], 2, {}, id="named, another's"),
    ],
)
def test_what_goes(files: list[SegmentFile], named: int | None, expected: dict[int, Reason]) -> None:
    assert unlinked(look(files, named)) == expected


def test_a_stale_pointer_is_mended_and_the_signpost_goes() -> None:
    files = [file(1, successor=2), file(2, successor=4, was_in_force=False), file(3, was_in_force=False), file(4)]
    decision = look(files, 1)
    assert decision.repoint == (("A", files[0].name, files[3].name),)
    assert unlinked(decision) == dict.fromkeys((1, 2, 3), Reason.superseded)
    # The named file is gone: the newest that ever had a writer is in force, as a reader finds it.
    assert look([file(3), file(4, was_in_force=False)], 1).repoint == (("A", files[0].name, file(3).name),)
    # After a reboot nothing is left, and the pointer stays: it says that a segment was lost.
    assert look([], 1) == Decision((), (), (), {}, 0)


def test_things_go_when_they_were_missed_often_enough_in_a_row() -> None:
    orphan, processes = file(2, was_in_force=False), {"h:1:1": True, "h:2:2": False}
    misses: dict[str, int] = {}
    for tick in (1, 2, 3):
        decision = look([file(1), orphan], misses=misses, processes=processes, threshold=3)
        misses = dict(decision.misses)
        assert bool(decision.unlink) == bool(decision.withdraw) == (tick == 3)
    assert decision.withdraw == ("h:1:1",)
    # Whoever was seen alive in between counts from the start; so does another file of the same name.
    between = look([file(1), file(2, held=True)], misses=misses, threshold=3)
    assert between.misses == {}
    replaced = look([file(1), file(2, was_in_force=False, inode=99)], misses=misses, threshold=3)
    assert list(replaced.misses.values()) == [1]


FILES = st.builds(
    file,
    st.integers(1, 6),
    st.sampled_from(LINES),
    owner=st.sampled_from([OURS, THEIRS, 0]),
    held=st.booleans(),
    pending=st.booleans(),
    was_in_force=st.booleans(),
    successor=st.sampled_from([0, 0, 3, 5, 7]),
)


@given(st.lists(FILES, unique_by=lambda file: file.name), st.none() | st.integers(1, 6), st.integers(1, 3))
def test_never_what_is_held_or_served_or_of_others(files: list[SegmentFile], named: int | None, threshold: int) -> None:
    files = [file for file in files if not file.successor or file.successor > file.generation]
    misses: dict[str, int] = {}
    for _ in range(threshold - 1):
        early = look(files, named, misses=misses, threshold=threshold)
        assert early.unlink == early.repoint == ()
        misses = dict(early.misses)
    decision = look(files, named, misses=misses, threshold=threshold)
    line = {file.generation: file for file in files if file.line == LINES[0] and not file.pending}
    served = None if named is None else reachable_generation(line, named)
    for gone, _ in decision.unlink:
        assert gone is not served
        assert not gone.held
        assert gone.owner == OURS or (gone.owner == 0 and not gone.pending and named is not None)
    kept = [file for file in files if file not in {gone for gone, _ in decision.unlink}]
    for left in kept:
        assert left.held or left.owner != OURS or left is served
    # What is left is in order: looking again finds nothing new, and the pointer leads to the same file.
    assert look(kept, named, misses=dict(decision.misses), threshold=threshold).unlink == ()
    if served is not None:
        after = {file.generation: file for file in kept if file.line == LINES[0] and not file.pending}
        assert reachable_generation(after, served.generation) is served
        assert all(new == served.name for _, _, new in decision.repoint)
