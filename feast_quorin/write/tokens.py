"""The tokens of writes: of a process's last one, and of those in a block of code."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from quorin.wal import Token

if TYPE_CHECKING:
    from collections.abc import Iterator


class Written:
    """The token of all writes so far. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._token = Token()

    @property
    def token(self) -> Token | None:
        """The token; None before the first write. After a log was wiped, it covers the writes to the new one only."""
        return self._token if self._token.parts else None

    def add(self, token: Token) -> None:
        """Cover one more write."""
        with self._lock:
            known = {identity for identity, _ in self._token.parts}
            is_same_log = known.issuperset(identity for identity, _ in token.parts)
            self._token = Token.covering(self._token, token) if is_same_log else token


_COLLECTED: ContextVar[Written | None] = ContextVar("feast_quorin_written", default=None)


@contextmanager
def collecting() -> Iterator[Written]:
    """Collect the tokens of writes in a ``with`` block, and in tasks and threads that asyncio starts inside it."""
    written = Written()
    before = _COLLECTED.set(written)
    try:
        yield written
    finally:
        _COLLECTED.reset(before)


def add(written: Written, token: Token) -> None:
    """Note a write of a session, whose own ``written`` is passed."""
    written.add(token)
    collected = _COLLECTED.get()
    if collected is not None:
        collected.add(token)


def last_token(store: Any) -> Token | None:
    """The token of what this process has written through a ``FeatureStore`` so far: by ``push``, materialization,
    ``write_to_online_store`` and all else. None if nothing. It may cover more, if other threads write.

    Reads with :func:`feast_quorin.at_least` show those writes, in every process and on every machine.

    :raises ValueError: if the online store is not Quorin's.
    """
    online_store = store.provider.online_store
    if not hasattr(online_store, "session"):
        raise ValueError(f"expected `online_store: {{type: quorin}}`, got {type(online_store).__name__}")
    written: Written = online_store.session(store.config).written
    return written.token
