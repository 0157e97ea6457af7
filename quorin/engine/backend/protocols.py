"""The protocols of the control plane and the log. Both implementations pass one contract suite.

Every method raises :class:`quorin.errors.ConnectionFailedError`, naming the address, when the store cannot be reached.
Objects are thread-safe, and keep working in a forked child, which opens connections of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from quorin.engine.backend.closable import ClosableLog
from quorin.errors import LogClosedError, QuorinError, WriterFencedError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from quorin.engine.log.token import Token


@dataclass(frozen=True, slots=True)
class ReadResult:
    """Entries in the order of the log: all entries of the requested schemas up to ``through``.

    ``confirmed_ns`` is a time, in ns since the epoch, at which the log had nothing behind ``through``; 0 if it had
    more, or if that is unknown. With ``lost_tail`` the log no longer has the entry behind which it was read, though it
    was not trimmed: a replica that lacked it took over. Then there are no entries, as more may have been lost.
    """

    entries: list[tuple[int, bytes]]
    through: int
    confirmed_ns: int = 0
    lost_tail: bool = False


@dataclass(frozen=True, slots=True)
class Bounds:
    """The first position still in the log, the last one ever assigned, the last one trimmed; 0 for none.

    ``lost``: positions of entries that were in the log and are not, though not trimmed. ``is_closed``: no entry comes
    behind ``last`` any more, unless the log is reopened.
    """

    first: int
    last: int
    trimmed: int = 0
    lost: frozenset[int] = frozenset()
    is_closed: bool = False


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a log, as read by the append of an entry: its schema's entries behind ``after``, the new one included.

    ``schema`` is the schema's JSON in the control plane.
    """

    identity: int
    trimmed: int
    schema: str
    after: int
    found: ReadResult


@dataclass(frozen=True, slots=True)
class Fence:
    """A historian's lease: the holder, and the token that it got with the lease."""

    holder: str
    token: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An entry that could not be applied, and why."""

    position: int
    payload: bytes
    reason: str


class Log(ClosableLog, Protocol):
    """An ordered, durable list of entries. Positions start at 1 and only grow; 0 is before the first."""

    @property
    def stream_key(self) -> str:
        """The name of the log."""

    @property
    def partition(self) -> int:
        """The partition that the log is of; 0 of one."""

    def identity(self) -> int:
        """A random 63-bit number created with the log. It changes when the log is wiped and starts over."""

    def append(self, entries: Sequence[tuple[str, bytes]], *, max_entries: int | None = None) -> list[Token]:
        """Append pairs of schema name and record, all or none, and return their positions.

        The identity in a token was the log's at most a tenth of a second before the append: a log that is wiped in
        between leaves tokens that reads refuse, never one that a read takes for applied.

        :raises quorin.errors.LogFullError: if the log would hold more than ``max_entries``; nothing was written.
        :raises quorin.errors.LogClosedError: if the log is closed; nothing was written.
        """

    def append_and_read(
        self, schema_name: str, payload: bytes, *, after: int, max_entries: int | None = None
    ) -> tuple[Token, Tail | None]:
        """:meth:`append` one entry, and read in the same step its schema's entries behind position ``after``.

        The tail is None if there are many entries, if they cannot be read in one step, or if the control plane does not
        know the schema.

        :raises quorin.errors.LogFullError, quorin.errors.LogClosedError: as :meth:`append`.
        """

    def read(
        self,
        after: int,
        *,
        schema_names: Collection[str] | None = None,
        max_entries: int = 1024,
        max_bytes: int = 16 << 20,
        block_ms: int = 0,
        follows: bool = False,
    ) -> ReadResult:
        """Entries behind position ``after``; waits up to ``block_ms`` if there are none.

        ``schema_names`` leaves out entries of other schemas. ``max_bytes`` is a target; at least one entry is returned.
        With ``follows``, ``after`` is a position that was read, and the result says whether its entry was lost since.
        """

    def bounds(self) -> Bounds:
        """Where the log begins and ends. The end includes trimmed entries."""

    def state(self, read: Collection[int] = ()) -> tuple[int, Bounds]:
        """:meth:`identity` and :meth:`bounds`, read in one step; ``read``: positions that may be lost since."""

    def sizes(self) -> tuple[int, int]:
        """The number of entries and of dead letters. Cheap, however large they are."""

    def acquire_historian(self, holder: str, ttl_ms: int, *, replacing: str | None = None) -> int | None:
        """Take or renew the lease of the log's historian for ``ttl_ms``, by the clock of the store.

        Returns its fencing token; None while another holds it, unless that is ``replacing``. The token grows each time
        the lease goes to another holder or is taken after its end; renewing keeps it.
        """

    def release_historian(self, holder: str) -> bool:
        """End the historian's lease; False if ``holder`` does not hold it."""

    def historian(self) -> tuple[str, float] | None:
        """The holder of the historian's lease and the seconds until it ends; None if nobody holds it."""

    def trim(self, through: int, *, fence: Fence | None = None) -> int:
        """Remove the entries up to and including a position. Returns their number.

        ``fence`` is the historian's lease on which the caller trims. Comparing it and removing the entries is one step.

        :raises WriterFencedError: if the lease has ended or gone to another; nothing is removed.
        """

    def bury(self, position: int, payload: bytes, reason: str, *, max_letters: int = ...) -> int:
        """Store an entry that cannot be applied. Burying a position again replaces its dead letter.

        Beyond ``max_letters`` the oldest are removed. Returns the number removed.
        """

    def dead_letters(self) -> list[DeadLetter]:
        """The buried entries, by position."""

    def remove_dead_letter(self, position: int) -> bool:
        """Remove a buried entry; False if there was none."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where the life of a schema begins in a log: entries up to ``position`` belong to a former schema of its name."""

    log_identity: int
    position: int


Beginnings = Beginning | Sequence[Beginning] | None
"""Of one partition, of several in order, or unchanged."""


@dataclass(frozen=True, slots=True)
class Applied:
    """The position that a replica has applied, and seconds since it was reported, by the store's own clock."""

    position: int
    silent_seconds: float


class ControlPlane(Protocol):
    """What all nodes of a deployment agree on: its schemas, where each begins in the log, and which were dropped.

    Also the reports of processes. Which segment is current is a fact of one node: :mod:`quorin.engine.memory.node`.
    """

    def legacy_currents(self) -> dict[str, str]:
        """The current segments by schema name, as earlier releases stored them here. Nothing writes them."""

    def identity(self, *, remembered: int | None = None) -> int:
        """A random 63-bit number of this namespace, which segments carry.

        If it has none, because it is new or was wiped, it becomes ``remembered``, or a fresh number.
        """

    def put_schema(self, schema_name: str, json: str, *, beginning: Beginnings = None) -> None:
        """Store a schema's JSON, in place of any older one. With ``beginning`` its life in the log begins there; of
        several partitions it is a sequence, one for each in order.
        """

    def swap_schema(self, schema_name: str, json: str, *, expected: str | None, beginning: Beginnings = None) -> bool:
        """:meth:`put_schema` if ``expected`` (None: none) is stored now; False if it is not."""

    def restore_schema(self, schema_name: str, json: str, *, beginning: Beginnings) -> bool:
        """:meth:`put_schema` if none is stored, and none was dropped; False otherwise."""

    def schemas(self) -> dict[str, str]:
        """The schemas' JSON by name."""

    def drop_schema(self, schema_name: str, *, expected: str | None = None) -> bool:
        """Remove a schema's JSON and its beginning; False if there was none, or another than ``expected`` (None: any).

        It is listed in :meth:`dropped_schemas` until a schema of this name is stored again.
        """

    def dropped_schemas(self) -> set[str]:
        """The names of schemas that were dropped, unlike those that are missing because the control plane was wiped."""

    def beginnings(self, partition: int = 0) -> dict[str, Beginning]:
        """Where schemas begin in the log of a partition, by name; the others begin at its start."""

    def partition_count(self) -> int | None:
        """The number of partitions; None if none was settled, so that it is 1."""

    def settle_partitions(self, count: int, *, stream_keys: Collection[str] = ()) -> int:
        """Store the number of partitions if the deployment is new: without a number, schemas and a log, which is looked
        for under the default name and under ``stream_keys``. Returns the number in force. All in one step.
        """

    def growth(self) -> str | None:
        """The JSON of the last growth (:mod:`quorin.engine.repartition.plan`); None if there was none."""

    def swap_growth(
        self, json: str, *, expected: str | None, count: int | None = None, loads: Mapping[str, str] | None = None
    ) -> bool:
        """Store a growth if ``expected`` (None: none) is stored now, and with a ``count`` the number of partitions in
        the same step; False if it is not. With ``loads`` (JSON by schema name) these must be the open loads, no others.
        """

    def put_checks(self, schema_name: str, json: str | None) -> None:
        """Store the JSON of a schema's checks, in place of any older one; None removes it. Dropping the schema does
        too.
        """

    def checks(self) -> dict[str, str]:
        """The checks' JSON by schema name."""

    def swap_load(
        self, schema_name: str, json: str | None, *, expected: str | None, beside: tuple[str | None] | None = None
    ) -> bool:
        """Store or (None) remove a schema's open load if ``expected`` (None: none) is stored now; False if it is not.
        With ``beside`` its item must be what :meth:`growth` returns, in the same step.

        Storing it counts as a sign of life of its coordinator.
        """

    def loads(self) -> dict[str, tuple[str, float]]:
        """The open loads' JSON by schema name, each with the seconds since it was stored, by the store's own clock."""

    def announce(
        self, process: str, report: str, *, node: str = "", positions: Mapping[str, int] | None = None
    ) -> None:
        """Store a process's report, in place of its earlier one, and the positions of its node's replicas by schema."""

    def hold(self, node: str, schema_name: str, position: int) -> None:
        """Keep the log from being trimmed behind a position, for a replica of the node that is being built."""

    def replicas(self) -> dict[tuple[str, str], Applied]:
        """How far each replica is, by node and schema. They stay when the process that reported them ends."""

    def forget_replica(self, node: str, schema_name: str) -> None:
        """Remove a replica of :meth:`replicas`."""

    def processes(self) -> dict[str, str]:
        """The processes' reports. Reports of dead processes stay until they are withdrawn."""

    def silences(self) -> dict[str, float]:
        """Seconds since each process's last report, by the store's own clock: those of machines may differ."""

    def withdraw(self, process: str) -> bool:
        """Remove a process's report; False if there was none."""


class Backend(Protocol):
    """A connection to one control plane and its logs."""

    @property
    def address(self) -> str:
        """Where it is, for messages and logs: without user and password."""

    @property
    def namespace(self) -> str:
        """The name of the deployment, which separates it from others at the same address."""

    @property
    def is_remote(self) -> bool:
        """Whether the store can be away while this process runs: a server, not a file."""

    @property
    def control(self) -> ControlPlane:
        """The control plane of this connection's namespace."""

    def partitions(self) -> int:
        """The deployment's number of partitions: one round trip, then remembered.

        :raises PartitionCountError: if it is not the number that the connection was told to expect.
        """

    def settle_partitions(self, count: int) -> None:
        """Make it the deployment's number of partitions if that is new, in one step.

        :raises PartitionCountError: if the deployment has another number, naming both.
        """

    def expect_partitions(self, count: int | None) -> None:
        """Check the number of partitions at its first use, and settle it; None expects any.

        :raises PartitionCountError: if another one is expected already, or known.
        """

    def forget_partitions(self) -> None:
        """Ask for the number of partitions again when it is needed next: the deployment may have grown."""

    def log(self, stream_key: str = ..., partition: int | None = None, *, of: int | None = None) -> Log:
        """The log of that name and partition, which need not exist yet. A partition asks for their number, unless it is
        one ``of`` a number that the deployment had or will have.

        Without a partition it is the only log, which is not asked for now: its first use raises ``PartitionedError`` if
        the deployment has several.

        :raises ConnectionFailedError: for a name that would collide with other keys, such as ``schemas``.
        :raises PartitionCountError: for a partition that there is not.
        """

    def append_together(
        self, parts: Sequence[tuple[Log, Sequence[tuple[str, bytes]]]], *, max_entries: int | None = None
    ) -> list[Token | QuorinError]:
        """:meth:`Log.append` to several logs of partitions at once, all entries of one log or none. Returns the token
        of each log's last entry, or why its entries were not written.
        """

    def check(self) -> None:
        """Contact the store, without retries. :raises ConnectionFailedError: if it cannot be used."""

    def facts(self) -> dict[str, str]:
        """Facts about the store for operators: ``kind`` (``redis`` or ``sqlite``), ``version``, and its durability
        settings, whose names differ by kind.
        """

    def close(self) -> None:
        """Close the connections. Closing twice is fine; using a closed backend raises ``ConnectionFailedError``."""


def in_order(beginning: Beginnings) -> Sequence[Beginning]:
    """The beginnings, one a partition; none if they stay as they are."""
    if beginning is None:
        return ()
    return [beginning] if isinstance(beginning, Beginning) else beginning


def not_the_historian(fence: Fence, stream_key: str, address: str) -> WriterFencedError:
    """The error for a trim on a historian's lease that is no longer in force."""
    return WriterFencedError(
        f"log {stream_key!r} at {address} was not trimmed: the historian's lease {fence.token} of {fence.holder!r} has "
        "ended, or another process has taken it over"
    )


def log_closed(stream_key: str, address: str) -> LogClosedError:
    """The error for an append to a closed log."""
    return LogClosedError(
        f"log {stream_key!r} at {address} is closed: its rows go to the logs of twice as many partitions; nothing was "
        "written"
    )
