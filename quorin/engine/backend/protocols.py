"""What the control plane and the log can do, whoever does it. Both implementations pass one contract suite.

Every method raises :class:`quorin.errors.ConnectionFailedError`, naming the address, when the store cannot be reached.
Objects may be shared by threads, and go on working in a forked child, which opens connections of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from quorin.errors import WriterFencedError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class ReadResult:
    """Entries in the order of the log. Every entry of the schemas asked for up to ``through`` has been given."""

    entries: list[tuple[int, bytes]]
    through: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """The first position still in the log, the last that was ever given, the last that was trimmed; 0 for none."""

    first: int
    last: int
    trimmed: int = 0


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a log as the append of an entry saw it: what its schema has behind ``after``, that entry included.

    ``schema`` is the JSON that the control plane has under the schema's name.
    """

    identity: int
    trimmed: int
    schema: str
    after: int
    found: ReadResult


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An entry that could not be applied, and why."""

    position: int
    payload: bytes
    reason: str


class Log(Protocol):
    """An ordered, durable list of entries. Positions start at 1 and only grow; 0 stands before the first."""

    @property
    def stream_key(self) -> str:
        """The name of the log."""

    def identity(self) -> int:
        """A random 63-bit number made with the log: another one means that the log was wiped and began anew."""

    def append(self, entries: Sequence[tuple[str, bytes]], *, max_entries: int | None = None) -> list[int]:
        """Append pairs of schema name and record, all or none, and give their positions.

        :raises quorin.errors.LogFullError: if the log would hold more than ``max_entries``; nothing was written.
        """

    def append_and_read(
        self, schema_name: str, payload: bytes, *, after: int, max_entries: int | None = None
    ) -> tuple[int, Tail | None]:
        """:meth:`append` one entry, and see in the same step what else its schema has behind position ``after``.

        None if that is much, or cannot be seen in one step, or the control plane does not know the schema.

        :raises quorin.errors.LogFullError: as :meth:`append`.
        """

    def read(
        self,
        after: int,
        *,
        schema_names: Collection[str] | None = None,
        max_entries: int = 1024,
        max_bytes: int = 16 << 20,
        block_ms: int = 0,
    ) -> ReadResult:
        """Entries behind position ``after``; waits up to ``block_ms`` if there are none.

        ``schema_names`` leaves other schemas' entries out. ``max_bytes`` is aimed at, and at least one entry is given.
        """

    def bounds(self) -> Bounds:
        """Where the log begins and ends. Trimmed entries count for the end."""

    def state(self) -> tuple[int, Bounds]:
        """:meth:`identity` and :meth:`bounds` as they are at one moment."""

    def sizes(self) -> tuple[int, int]:
        """How many entries and how many dead letters there are. Cheap, whatever they hold."""

    def claim(self, schema_names: Collection[str], consumer: str) -> None:
        """Let nobody trim in the name of these schemas from now on but this consumer."""

    def trim(self, through: int, *, claims: Mapping[str, str] | None = None) -> int:
        """Forget the entries up to and with a position; gives how many there were.

        ``claims`` says which consumer asks for which schemas; it is compared and the entries are removed in one step.

        :raises WriterFencedError: if another consumer has claimed one of them; nothing is forgotten.
        """

    def bury(self, position: int, payload: bytes, reason: str, *, max_letters: int = ...) -> int:
        """Keep an entry that cannot be applied. Burying a position again replaces what is kept for it.

        Over ``max_letters`` the oldest make room; gives how many did.
        """

    def dead_letters(self) -> list[DeadLetter]:
        """The buried entries, by position."""

    def remove_dead_letter(self, position: int) -> bool:
        """Forget a buried entry; False if there was none."""


class ControlPlane(Protocol):
    """What processes must agree on: which segment is the current one of a schema, and what the schemas are.

    And what they only tell each other: which processes there are. Nothing that must hold depends on that.
    """

    def current(self, schema_name: str) -> str | None:
        """The name of the current segment, or None."""

    def set_current(
        self, schema_name: str, segment_name: str, *, expected: str | None, schema: str | None = None
    ) -> bool:
        """Make a segment the current one if ``expected`` (None: no segment) is so now; False if it is not.

        With ``schema``, keep this as the schema's JSON in the same step.
        """

    def clear_current(self, schema_name: str, *, expected: str) -> bool:
        """Let a schema have no current segment, if ``expected`` is it now; False if it is not."""

    def currents(self) -> dict[str, str]:
        """The names of all current segments, by schema name."""

    def identity(self) -> int:
        """A random 63-bit number of this namespace, made when it is first asked for; segments carry it."""

    def put_schema(self, schema_name: str, json: str) -> None:
        """Keep a schema's JSON, in place of any older one."""

    def swap_schema(self, schema_name: str, json: str, *, expected: str | None) -> bool:
        """Keep a schema's JSON if ``expected`` (None: none) is what is kept now; False if it is not."""

    def schemas(self) -> dict[str, str]:
        """The schemas' JSON by name."""

    def drop_schema(self, schema_name: str, *, expected: str | None = None) -> bool:
        """Forget a schema's JSON; False if there was none, or another than ``expected`` (None: whatever it is)."""

    def announce(self, process: str, report: str) -> None:
        """Keep what a process says of itself, in place of what it said before."""

    def processes(self) -> dict[str, str]:
        """What processes said of themselves; those that died stay until somebody withdraws them."""

    def withdraw(self, process: str) -> bool:
        """Forget a process; False if there was none of that name."""


class Backend(Protocol):
    """A connection to one control plane and its logs."""

    @property
    def address(self) -> str:
        """Where it is, for people: no user, no password."""

    @property
    def control(self) -> ControlPlane:
        """The control plane of this connection's namespace."""

    def log(self, stream_key: str = ...) -> Log:
        """The log of that name; it need not exist yet.

        :raises ConnectionFailedError: for a name that would make keys which are others', such as ``schemas``.
        """

    def facts(self) -> dict[str, str]:
        """What the store says of itself and people may want to know: ``kind`` (``redis`` or ``sqlite``), ``version``,
        and how it keeps what it is given. Names beyond those two differ.
        """

    def close(self) -> None:
        """Give connections back. Closing twice is fine; using a closed one raises ``ConnectionFailedError``."""


def trim_refused(schema_name: str, stream_key: str, address: str) -> WriterFencedError:
    """The error for a trim in the name of a schema that another consumer has claimed."""
    return WriterFencedError(
        f"log {stream_key!r} at {address} was not trimmed: another consumer has taken {schema_name!r} over"
    )
