"""Options for the partitions that a machine holds."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from quorin.engine.backend import Backend
    from quorin.engine.format.partition import Partitioning

Partitions = Annotated[
    str | None,
    typer.Option(
        "--partitions",
        envvar="QUORIN_HELD_PARTITIONS",
        help="The partitions that this machine holds, such as 0-7 or 0-3,9; or auto, by --ordinal and --of. "
        "Default: all.",
        show_default=False,
    ),
]
Ordinal = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="With --partitions auto: the number of this machine, from 0. Default: the number at the end of the host's "
        "name, as a StatefulSet gives its pods.",
        show_default=False,
    ),
]
Of = Annotated[
    int | None,
    typer.Option(
        "--of",
        min=1,
        envvar="QUORIN_NODES",
        help="With --partitions auto: how many machines share the partitions.",
        show_default=False,
    ),
]


def held_partitions(backend: Backend, partitions: str | None, ordinal: int | None, of: int | None) -> str | None:
    """What ``held`` of a registry is for these options: with the number that they speak of, which may grow meanwhile.

    :raises typer.BadParameter: for options that do not go together. :raises PartitionCountError: for partitions that
        the deployment has not.
    """
    from quorin.engine.format.partition import Partitioning, share

    if partitions != "auto":
        if ordinal is not None or of is not None:
            raise typer.BadParameter("expected --ordinal and --of with --partitions auto")
        return None if partitions is None else _text(Partitioning.parse(partitions, backend.partitions()))
    if of is None:
        raise typer.BadParameter("expected --of, how many machines share the partitions, with --partitions auto")
    count = backend.partitions()
    return _text(Partitioning(count, share(_ordinal_of_host() if ordinal is None else ordinal, of, count)))


def _text(held: Partitioning) -> str:
    from quorin.engine.format.partition import ranges

    return f"{ranges(held.held)}/{held.count}"


def _ordinal_of_host() -> int:
    host = socket.gethostname().partition(".")[0]
    found = re.search(r"-([0-9]+)\Z", host)
    if found is None:
        raise typer.BadParameter(f"expected --ordinal: the name of this host, {host!r}, does not end in -NUMBER")
    return int(found[1])
