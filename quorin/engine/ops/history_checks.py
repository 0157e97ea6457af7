"""Checks of a history: every file as far as its footer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorin.engine.ops.health import OK, PROBLEM, WARNING, Check
from quorin.engine.words import counted
from quorin.errors import CorruptHistoryError, HistoryUnavailableError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from quorin.engine.history.storage import Storage


def check_history(base: str | os.PathLike[str]) -> list[Check]:
    """Every file of a history as far as its footer: one check a schema, and one for each file that cannot be read."""
    from quorin.engine.history.folders import schemas_of
    from quorin.engine.history.storage import Storage

    try:
        storage = Storage(base, None)
        if not storage.exists():
            advice = "see that the address is right; a consumer makes a history with its first flush"
            return [Check(f"history at {storage.address}", PROBLEM, "no such directory", advice)]
        return [check for folder, name in schemas_of(storage) for check in _history(folder, name)]
    except HistoryUnavailableError as error:
        advice = "see that the storage can be reached, and that this user may read it"
        return [Check("history", PROBLEM, str(error), advice)]


def _history(storage: Storage, schema_name: str) -> Iterator[Check]:
    from quorin.engine.history.dataset import Dataset
    from quorin.engine.history.storage import VanishedError

    name, dataset = f"history of {schema_name}", Dataset(storage, schema_name, strict=False, reported=set())
    listing, rows, problems = storage.listing(storage.folder(schema_name)), 0, 0
    for file in sorted(listing.files):
        try:
            rows += dataset.check(file)
        except VanishedError:  # A compaction has merged it into another, which is not listed yet.
            continue
        except CorruptHistoryError as error:
            problems += 1
            advice = "reads leave it out: bring it back from a copy, or move it away"
            yield Check(name, PROBLEM, f"damaged: {error}", advice)
        except HistoryUnavailableError as error:
            problems += 1
            advice = "reads fail until it can be read: see to its rights and to the storage"
            yield Check(name, PROBLEM, f"unreadable: {error}", advice)
    for path in listing.foreign:
        yield Check(name, WARNING, f"{path} has no name of a history's file", "reads leave it out: move it away")
    if not problems:
        yield Check(name, OK, f"{counted(rows, 'row')} in {counted(len(listing.files), 'file')}")
