"""A forked child first releases and renews what it inherited, and only that which is still in use."""

from __future__ import annotations

import gc
import os

from quorin.engine import forks


class Inherited:
    def __init__(self) -> None:
        self.calls = 0

    def after_fork_in_child(self) -> None:
        self.calls += 1


def test_what_is_registered_and_alive_is_told_once_in_the_child_alone() -> None:
    kept, forgotten, dropped = Inherited(), Inherited(), Inherited()
    for inherited in (kept, kept, forgotten, dropped):
        forks.register(inherited)
    forks.unregister(forgotten)
    forks.unregister(forgotten)
    del inherited, dropped
    gc.collect()
    child = os.fork()
    if not child:
        os._exit(10 * kept.calls + forgotten.calls)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 10
    assert kept.calls == 0
