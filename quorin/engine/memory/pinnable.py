"""The generation that the reads of an open segment go to: the newest, or a pinned one."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

from quorin.engine.memory.lineage import newest
from quorin.engine.memory.pinned import pin_in_force
from quorin.engine.memory.view import SegmentView
from quorin.errors import SegmentClosedError, SegmentReadOnlyError

if TYPE_CHECKING:
    from quorin.engine.memory.kept import Limits
    from quorin.engine.memory.pins import Pin
    from quorin.engine.memory.writer import Writer


class Pinnable:
    """Follows a segment's generations, unless one is pinned."""

    __slots__ = ("_limits", "_pin", "_view", "_writer", "read_only")

    _view: SegmentView
    _pin: tuple[Pin, SegmentView] | None
    _limits: Limits
    _writer: Writer
    read_only: bool

    @property
    def name(self) -> str:
        """``quorin_<Schema>_<hex>``, the name of the current generation's file."""
        name: str = self.current_view().name
        return name

    def current_view(self) -> SegmentView:
        """The view of the newest generation, followed to it if need be. :raises SegmentClosedError: after close."""
        view = self._view
        if view.successor_name is not None:
            return self.follow(view)
        return view

    def follow(self, seen: SegmentView) -> SegmentView:
        """Attach the newest successor of ``seen``; other threads may do the same at the same time, without harm."""
        if self._view is seen:
            self._view = newest(seen, writable=not self.read_only)
            # A thread may have pinned the segment since the comparison.
            if (held := self._pin) is not None:
                self._view = held[1]
        return self._view

    @property
    def is_pinned(self) -> bool:
        """Whether reads stay with one generation, whatever takes its place."""
        return self._view.pinned

    def pin(self) -> AbstractContextManager[Any]:
        """Stay with the present generation when the segment grows, is upgraded or replaced: reads then show it as it
        was left. Until a successor takes its place, its writer goes on writing to it.

        Its file and its memory stay until :meth:`unpin`, :meth:`close`, or the end of a ``with`` block of the result;
        when the process dies, the pin ends with it. Pinning twice is the same as once.

        :raises SegmentReadOnlyError: for a segment that is open for writing, which can't stay behind.
        :raises SegmentNotFoundError: if the segment was removed. :raises PinLimitError: if as many other generations
            are pinned as may be.
        """
        if not self.read_only:
            raise SegmentReadOnlyError(f"segment {self.name!r} is open for writing; only a read-only one can be pinned")
        if not self._view.pinned:
            view, pin = pin_in_force(self.current_view, self._limits)
            staying = view.staying()
            self._pin = pin, staying
            self._view = staying
        unpinning = ExitStack()
        unpinning.callback(self.unpin)
        return unpinning

    def unpin(self) -> None:
        """Follow again, from the next read on. The file of a generation that nothing else pins or keeps is removed."""
        view = self._view
        if not isinstance(view, ClosedView) and view.pinned:
            held, self._pin = self._pin, None
            self._view = SegmentView(view.mapping, view.stored, view.layout, view.schema)
            self._release_pin(held)

    def _release_pin(self, held: tuple[Pin, SegmentView] | None) -> None:
        if held is not None:
            held[0].release()
            self._writer.forget(held[1])


class ClosedView:
    """Stands in for the view of a closed segment; whatever is asked of it says that the segment is closed."""

    def __init__(self, name: str) -> None:
        self.closed_name = name

    def __getattr__(self, attribute: str) -> Any:
        raise SegmentClosedError(f"segment {self.closed_name!r} is closed")
