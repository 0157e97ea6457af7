"""Rows that this machine does not hold: which other machines are asked for them, and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from feast_quorin.read.options import current
from feast_quorin.remote.client import read_token
from quorin.assembly import Elsewhere, RoutedReader, Waiting

if TYPE_CHECKING:
    from datetime import timedelta
    from pathlib import Path

    from feast_quorin.config import StoreSettings
    from quorin.assembly import Asking, Columns, Fetching
    from quorin.shm import Segment, SegmentRegistry


def router_of(settings: StoreSettings, repo_path: Path | None, registry: SegmentRegistry) -> Fetching:
    """What asks other machines, as the settings say.

    :raises ConnectionFailedError: if the file with the token cannot be read.
    """
    token_file, tls_ca = settings.server_files(repo_path)
    token = settings.server_token if token_file is None else read_token(token_file)
    elsewhere = Elsewhere(timeout_seconds=settings.peer_timeout_ms / 1000, tls_ca=tls_ca)
    return elsewhere.router(registry.node, token)


def routed_reader(
    settings: StoreSettings,
    router: Callable[[], Fetching],
    segment: Segment,
    fields: Sequence[str],
    limits: Mapping[str, timedelta] | None,
) -> Callable[..., Asking[Columns]]:
    """A function that reads fields of rows, whichever machine holds them; see
    :meth:`quorin.assembly.RoutedReader.asking`.
    """
    options: dict[str, Any] = {"max_age": limits or None, "missing_partitions": settings.missing_partitions}
    reader = RoutedReader(router(), segment, fields, positions=True, **options)

    def read(ids: Any, **more: Any) -> Asking[Columns]:
        asked = current()
        waiting = Waiting() if asked.at_least is None else Waiting(asked.at_least.text, asked.timeout_ms)
        return reader.asking(ids, **more, waiting=waiting)

    return read
