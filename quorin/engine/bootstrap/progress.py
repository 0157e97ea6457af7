"""Progress of long work: as a bar for people, or as log events where nobody looks."""

from __future__ import annotations

import time
import warnings
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from quorin.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    Progress = Callable[[int, int], None]
    ShowProgress = Callable[[str], AbstractContextManager[Progress]]
    """Called with what is going on; inside its block, the result is called with the amount done and the total."""

LOG_SECONDS = 5.0

_log = get_logger(__name__)


@contextmanager
def logged_progress(what: str) -> Iterator[Progress]:
    """Log how far it is and how fast, every few seconds."""
    started = logged = time.monotonic()

    def progress(done: int, total: int | None = None) -> None:
        nonlocal logged
        now = time.monotonic()
        if now - logged >= LOG_SECONDS:
            logged = now
            rate = round(done / (now - started))
            _log.info("progress", what=what, done=done, total=total, per_second=rate)

    yield progress


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[..., None]]:
    """A progress bar in a notebook or a terminal, for a ``with`` block::

        with progress_bar("hydrating") as progress:
            hydrate(Users, store, registry, progress=progress)

    The same goes for snapshots, upgrades and replacements. tqdm draws it, which Feast brings; where it is not
    installed, progress is logged every few seconds.
    """
    try:
        from tqdm import TqdmWarning

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TqdmWarning)  # without ipywidgets a notebook shows the bar as text
            from tqdm.auto import tqdm
    except ModuleNotFoundError:
        with logged_progress(what) as progress:
            yield progress
    else:
        with tqdm(desc=what, unit_scale=True) as bar:
            yield partial(_draw, bar)


def _draw(bar: Any, done: int, total: int | None = None) -> None:
    if bar.total != total:
        bar.reset(total)
    bar.update(done - bar.n)
