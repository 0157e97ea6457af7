"""Followers of stores of this process, which apply what any test writes to their log."""

from __future__ import annotations

import gc
import sys
import threading

from tests.support.world import until


def end_followers() -> None:
    """End those of stores that nothing refers to any more: a follower ends with its store, which the collector has to
    find.
    """
    if _followers():
        # The frames of a test that failed hold its store.
        for name in ("last_exc", "last_type", "last_value", "last_traceback"):
            sys.__dict__.pop(name, None)
        gc.collect()
        until(lambda: not _followers())


def _followers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "quorin-follower"]
