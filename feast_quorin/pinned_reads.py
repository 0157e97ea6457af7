"""What requests read from: a session and its compiled plans, or the same with generations of views pinned.

Pins of a request and of a feature service are sessions of their own, beside the one that follows. So a request without
pins does what it did, and what is pinned is released as a whole: when nothing reads from such a session any more, its
segments are unpinned.
"""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from feast.errors import FeastError

from feast_quorin.cache import IdleCache
from feast_quorin.feast_versions import COMPILED_READS, has
from feast_quorin.read.plan import Plans
from feast_quorin.session import Session
from quorin.errors import InvalidPinError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from feast_quorin.config import Pin
    from feast_quorin.read.pins import Generations, Pins
    from feast_quorin.views import StoredView
    from quorin.inline_consumer import InlineConsumer
    from quorin.shm import Segment

MAX_PINNED_SESSIONS = 16
IDLE_SECONDS = 60.0
"""How long the pins of requests stay after the last one, for the next that has the same."""
_LOOK_SECONDS = 1.0
"""How old the newest generation of a pinned version may be, as a new block of requests finds it."""


class Reads:
    """A session and the plans compiled for it. Threads may share it.

    ``services`` has the pins of feature services by name, from the settings.
    """

    __slots__ = (
        "__weakref__",
        "_known",
        "_of_requests",
        "_of_services",
        "_opening",
        "config",
        "plans",
        "services",
        "session",
    )

    def __init__(self, session: Session, config: Any) -> None:
        self.session, self.config = session, config
        self.plans = Plans(session, config) if has(COMPILED_READS) else None
        self.services: dict[str, Pin] = session.settings.pins or {}
        self._of_services: dict[str, Reads] = {}
        self._of_requests: IdleCache[Generations, Reads] = IdleCache(MAX_PINNED_SESSIONS, IDLE_SECONDS)
        self._known: set[str] = set()
        self._opening = threading.Lock()

    def of(self, features: Any, pins: Pins | None, registry: Any = None, project: str = "") -> Reads:
        """What a request for these features reads from, if it has these pins. Those of the service hold for the views
        that the request does not pin itself.

        :raises InvalidPinError: for a view that the ``registry`` does not have.
        """
        reads, service = self, getattr(features, "name", None) if self.services else None
        if service in self.services:
            reads = self._of_service(str(service), registry, project)
        return reads if pins is None else reads.pinned(pins, registry, project)

    def release_idle(self, idle_seconds: float = IDLE_SECONDS) -> None:
        """Release the pins of requests that nobody used for so long, as a thread does after :data:`IDLE_SECONDS`."""
        self._of_requests.drop_idle(idle_seconds)

    def close(self) -> None:
        """End the pins, as :meth:`Session.close` does."""
        services, self._of_services = self._of_services, {}
        for reads in (*services.values(), *self._of_requests.clear()):
            reads.close()
            reads.session.close()

    def _of_service(self, service: str, registry: Any, project: str) -> Reads:
        reads, pin = self._of_services.get(service), self.services[service]
        if reads is None:
            self._check("" if isinstance(pin, str) else pin, registry, project, f"pins[{service!r}]")
            with self._opening:  # Requests that come first at the same time stay with the same generations.
                made = Reads(PinnedSession(self.session, pin), self.config)
                reads = self._of_services.setdefault(service, made)
        return reads

    def pinned(self, pins: Pins, registry: Any, project: str) -> Reads:
        """The same with the pins of a request."""
        reads: Reads | None = pins.held.get(self)
        if reads is None:
            self._check(dict(pins.generations), registry, project, "pin")
            reads = self._of_requests.get(pins.generations, self._is_newest, self._of_generations)
            # Of threads that share the block, all read from the first one's.
            reads = pins.held.setdefault(self, reads)
        return reads

    def _of_generations(self, generations: Generations) -> Reads:
        return Reads(PinnedSession(self.session, dict(generations)), self.config)

    @staticmethod
    def _is_newest(reads: Reads) -> bool:
        session = reads.session
        return isinstance(session, PinnedSession) and session.is_newest()

    def _check(self, views: Iterable[str], registry: Any, project: str, where: str) -> None:
        if registry is None:
            return
        for view in views:
            if view not in self._known:
                try:
                    registry.get_any_feature_view(view, project, allow_cache=True)
                except FeastError:
                    raise InvalidPinError(f"{where}: project {project!r} has no feature view {view!r}") from None
                self._known.add(view)


class PinnedSession(Session):
    """A session whose reads of some views stay with generations, as its setting ``pin`` says; all else is its parent's.

    Its segments are unpinned when it is collected.
    """

    def __init__(self, parent: Session, pin: Pin) -> None:
        vars(self).update(vars(parent))
        self._parent = parent
        self.settings = parent.settings.model_copy(update={"pin": pin, "pins": None})
        self._readers = {}
        self._opening = threading.Lock()
        self._versioned: set[str] = set()
        """The schema names of views that are pinned to a version."""
        self._look_again = 0.0
        weakref.finalize(self, _unpin, self._readers)

    @property
    def opened(self) -> object:
        """As :attr:`Session.opened`, of the parent too, whose views are read through this."""
        return self._parent.opened

    @opened.setter
    def opened(self, value: object) -> None:
        self._parent.opened = value

    def prepare(self, view: StoredView) -> Segment:
        """The pinned segment of a view, or what its parent reads from."""
        pin = self.settings.pin_of(view.name)
        if pin is None:
            return self._parent.prepare(view)
        if isinstance(pin, str) and pin.startswith("v"):
            self._versioned.add(view.schema.__name__)
        return super().prepare(view)

    def is_newest(self) -> bool:
        """Whether each pinned version is read in its newest generation, as of a second ago or less."""
        now = time.monotonic()
        if self._versioned and now >= self._look_again:
            self._look_again = now + _LOOK_SECONDS
            return all(self._is_newest_of_version(name) for name in [*self._versioned])
        return True

    def _is_newest_of_version(self, name: str) -> bool:
        segment = self._readers.get(name)
        if segment is None:
            return True
        found = segment.stats()
        if not found["replaced"]:
            return True
        same = [one for one in self.registry.generations(name) if one.schema_version == found["schema_version"]]
        return not same or same[0].number == found["generation"]

    def reads_from(self, name: str, segment: Segment) -> bool:
        """As :meth:`Session.reads_from`."""
        return self._readers.get(name) is segment or self._parent.reads_from(name, segment)

    def forget(self, view: StoredView) -> bool:
        """As :meth:`Session.forget`."""
        return super().forget(view) if self.settings.pin_of(view.name) else self._parent.forget(view)

    def close(self) -> None:
        """End the pins of this session's segments, whose readers follow from then on; the parent stays."""
        _unpin(self._readers)

    def consumer_of(self, view: StoredView) -> InlineConsumer:
        """The parent's."""
        return self._parent.consumer_of(view)


def _unpin(readers: dict[str, Segment]) -> None:
    """Follow again, so that the file of a generation that nothing else needs is removed."""
    for segment in readers.values():
        segment.unpin()
