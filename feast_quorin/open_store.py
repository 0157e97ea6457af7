"""What an online store has open in this process: its session, and what requests read from."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from feast_quorin.pinned_reads import Reads
from feast_quorin.read.options import current
from feast_quorin.session import Session, new_session
from quorin import assembly

if TYPE_CHECKING:
    from feast.repo_config import RepoConfig

    from quorin.shm import SegmentRegistry


class OpenStore:
    """The part of the online store that opens and closes. What is open is made at the first use, and in a forked child
    anew.
    """

    _session: Session | None = None
    _reads: Reads | None = None

    def session(self, config: RepoConfig) -> Session:
        """What this process has open of the store."""
        return self._session_for(config)

    def reads(self, config: RepoConfig) -> Reads:
        """What requests without pins read from, and those with pins beside it."""
        session, reads = self._session_for(config), self._reads
        if reads is None or reads.session is not session or reads.config is not config:
            reads = self._reads = Reads(session, config)
        return reads

    def reading_session(self, config: RepoConfig) -> Session:
        """The session that reads of this context go to: :meth:`session`, or one whose generations are pinned."""
        pins = current().pins
        return self._session_for(config) if pins is None else self.reads(config).of(None, pins).session

    def may_wait(self, config: RepoConfig) -> bool:
        """Whether reads of this context may have to wait until something is applied: they ask for a token, or for all
        views at one position.
        """
        asked = current()
        settled_ms = self._session_for(config).settings.consistent_timeout_ms
        return not (asked.at_least is asked.consistent_ms is settled_ms is None)

    def registry(self, config: RepoConfig) -> SegmentRegistry:
        """The segments that this process serves, and where they stand."""
        return self._session_for(config).registry

    async def initialize(self, config: RepoConfig) -> None:
        """Connect and load the compiled kernels, so that the first request of a feature server finds both ready."""
        self._session_for(config)
        await asyncio.to_thread(assembly.prewarm)

    async def close(self) -> None:
        """Release segments and connections. The next use connects anew."""
        await asyncio.to_thread(self.release)

    def release(self) -> None:
        """:meth:`close`, outside an event loop. Pins end now."""
        session, reads = self._session, self._reads
        self._session = self._reads = None
        if reads is not None:
            reads.close()
        if session is not None and session.pid == os.getpid():
            session.close()

    def _session_for(self, config: RepoConfig) -> Session:
        """The session of this process. A forked child must not use its parent's."""
        session = self._session
        if session is None or session.pid != os.getpid():
            session = self._session = new_session(config.online_store, config.repo_path, inherited=session)
        return session
