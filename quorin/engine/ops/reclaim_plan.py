"""The watchdog's decisions, as pure functions over plain values.

A file or process entry is reclaimed once it has been orphaned for several consecutive ticks; :func:`decide` counts
them.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quorin.engine.format.name import SegmentName

if TYPE_CHECKING:
    from collections.abc import Mapping


class Reason(enum.Enum):
    """Why a file is orphaned."""

    unfinished = "its creator died before finishing it"
    superseded = "a newer generation replaced it"
    never_in_force = "its creator died or was too late, so it never came into force"
    unnamed = "no segment of this line is current on the node"


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """A file that looks like a segment. ``line`` is the common part of its generations' names. A ``held`` file is
    mapped, locked or pinned by a process; a ``kept`` one waits for a way back.
    """

    name: str
    line: str
    generation: int
    owner: int
    held: bool
    pending: bool = False
    kept: bool = False
    successor: int = 0
    was_in_force: bool = False
    byte_count: int = 0
    inode: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """The input of one tick: the deployment's identity and those it had before, the node's current segments by schema,
    the files, the processes with an entry, each with whether it is dead, the schemas of the control plane and of
    any deployment's segments here, and those with counters that no process counts in.
    """

    identities: frozenset[int]
    currents: Mapping[str, str]
    files: tuple[SegmentFile, ...]
    processes: Mapping[str, bool]
    schemas: frozenset[str] = frozenset()
    counted: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do in this tick, and for how many consecutive ticks each thing has been orphaned (``misses``).

    ``repoint`` holds the schema name, the segment that the node's file names, and the segment that is in force.
    ``retire`` has the schemas whose counters go: they are unknown here, and no deployment has a segment of them.
    """

    unlink: tuple[tuple[SegmentFile, Reason], ...]
    withdraw: tuple[str, ...]
    repoint: tuple[tuple[str, str, str], ...]
    misses: Mapping[str, int]
    foreign_files: int
    retire: tuple[str, ...] = ()


def decide(state: State, misses: Mapping[str, int], *, threshold: int) -> Decision:
    """Reclaim what has been orphaned for ``threshold`` consecutive ticks, but nothing that is held or foreign.

    A file belongs to this deployment if it carries one of its identities, or if it carries none and its line is current
    on the node.
    """
    names = {schema: SegmentName.parse(text) for schema, text in state.currents.items()}
    named = {name.line: (schema, name) for schema, name in names.items()}
    segments = [file for file in state.files if not file.pending and not file.kept]
    lines: dict[str, dict[int, SegmentFile]] = defaultdict(dict)
    for file in segments:
        lines[file.line][file.generation] = file

    orphans: list[tuple[SegmentFile, Reason]] = []
    repoint: list[tuple[str, str, str]] = []
    for line, (schema, name) in named.items():
        current = reachable_generation(lines.get(line, {}), name.generation)
        if current is not None and current.name != str(name):
            repoint.append((schema, str(name), current.name))
        for file in lines.get(line, {}).values():
            if current is None or file.generation > current.generation:
                orphans.append((file, Reason.never_in_force))
            elif file is not current:
                orphans.append((file, Reason.superseded))
    # Kept generations of a line that is current stay: limits and `quorin generations --drop` remove them.
    others = (file for file in state.files if not file.pending and file.line not in named)
    orphans += [(file, Reason.unnamed) for file in others]
    orphans += [(file, Reason.unfinished) for file in state.files if file.pending]

    ours = {file.name for file in state.files if _is_ours(file, state.identities, named)}
    orphans = [(file, reason) for file, reason in orphans if file.name in ours and not file.held]
    dead = [process for process, is_dead in state.processes.items() if is_dead]
    gone = sorted(state.counted - state.schemas)
    keys = [f"file {file.name} {file.inode}" for file, _ in orphans]
    keys += [f"process {process}" for process in dead]
    keys += [f"current {name}" for _, name, _ in repoint]
    keys += [f"counters {name}" for name in gone]
    counted = {key: misses.get(key, 0) + 1 for key in keys}
    return Decision(
        unlink=tuple(o for o in orphans if counted[f"file {o[0].name} {o[0].inode}"] >= threshold),
        withdraw=tuple(process for process in dead if counted[f"process {process}"] >= threshold),
        repoint=tuple(entry for entry in repoint if counted[f"current {entry[1]}"] >= threshold),
        misses=counted,
        foreign_files=len(state.files) - len(ours),
        retire=tuple(name for name in gone if counted[f"counters {name}"] >= threshold),
    )


def reachable_generation(line: Mapping[int, SegmentFile], named: int) -> SegmentFile | None:
    """The generation that a reader reaches from the ``named`` one; None if the whole line is gone."""
    file = line.get(named)
    if file is None:
        newer = [file for file in line.values() if file.generation > named and file.was_in_force]
        file = max(newer, key=lambda file: file.generation, default=None)
    while file is not None and file.successor:
        named = file.successor
        file = line.get(named)
        if file is None:
            return reachable_generation(line, named)
    return file


def _is_ours(file: SegmentFile, identities: frozenset[int], named: Mapping[str, tuple[str, SegmentName]]) -> bool:
    if file.owner:
        return file.owner in identities
    return file.line in named and not file.pending
