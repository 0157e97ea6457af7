"""The number of partitions of a deployment as a process knows it, and the log that needs it to be one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quorin.engine.format.growth import counts_before
from quorin.engine.format.partition import check_count
from quorin.errors import PartitionCountError, PartitionedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from quorin.engine.backend.protocols import ControlPlane, Log


class PartitionCount:
    """Asked for at its first use, then remembered: it changes only when the deployment grows.

    ``wanted`` is the number that the process was told to expect. It is checked at the first use too, as the store may
    be away before.
    """

    def __init__(self, control: ControlPlane, deployment: str, wanted: int | None = None) -> None:
        self._control = control
        self._deployment = deployment
        self._wanted = None if wanted is None else check_count(wanted)
        self._known: int | None = None
        self._stream_keys: set[str] = set()

    def expect(self, wanted: int | None) -> None:
        """Expect a number from now on; None expects any.

        :raises PartitionCountError: if another one is expected, or known.
        """
        expected = self._known or self._wanted
        if wanted is not None and expected not in (None, check_count(wanted)):
            raise self._differs(wanted, expected)
        self._wanted = wanted or self._wanted

    def note(self, stream_key: str) -> None:
        """A name of a log that this process uses: a deployment that has a log of it is not new."""
        self._stream_keys.add(stream_key)

    def get(self) -> int:
        """The number; remembered once the deployment is made.

        :raises PartitionCountError: if another number was expected.
        """
        if self._known is None:
            if self._wanted is not None:
                self.settle(self._wanted)
            stored = self._known or self._control.partition_count()
            if stored is None and not self._control.schemas():
                return 1  # The deployment may not have been made yet, and have another number then.
            self._known = stored or 1
        return self._known

    def settle(self, count: int) -> None:
        """Make it the deployment's number if that is new.

        A number that the deployment has grown from is as good as the one that it has now.

        :raises PartitionCountError: if the deployment has another number, naming both.
        """
        in_force = self._control.settle_partitions(check_count(count), stream_keys=sorted(self._stream_keys))
        if in_force != count and count not in counts_before(self._control.growth()):
            raise self._differs(count, in_force)
        self._known = in_force

    def forget(self) -> None:
        """Ask again at the next use: the deployment may have grown."""
        self._known = None

    def check_partition(self, partition: int) -> int:
        """The number of partitions, if it has this one.

        :raises PartitionCountError: if it has not.
        """
        count = self.get()
        if isinstance(partition, bool) or not isinstance(partition, int) or not 0 <= partition < count:
            raise PartitionCountError(
                f"partition {partition!r}: the deployment {self._deployment} has {count}, expected a number from 0 to "
                f"{count - 1}"
            )
        return count

    def check_only(self, what: str) -> None:
        """:raises PartitionedError: if there are several partitions; ``what`` was tried, and needs one."""
        if (count := self.get()) > 1:
            raise PartitionedError(f"{what} needs a deployment of one partition, and {self._deployment} has {count}")

    def _differs(self, wanted: int, actual: int | None) -> PartitionCountError:
        return PartitionCountError(
            f"{wanted} partitions are expected here, and the deployment {self._deployment} has {actual}: the number is "
            "fixed when a deployment is made, and doubled by `quorin repartition`"
        )


class Partitioned:
    """What a backend says of partitions, by its count of them."""

    _count: PartitionCount

    def partitions(self) -> int:
        """One round trip at the first call."""
        return self._count.get()

    def settle_partitions(self, count: int) -> None:
        """One script, or one transaction."""
        self._count.settle(count)

    def expect_partitions(self, count: int | None) -> None:
        """Nothing is asked yet."""
        self._count.expect(count)

    def forget_partitions(self) -> None:
        """Nothing is asked yet."""
        self._count.forget()


class OnlyLog:
    """The log of a deployment that has one. Every call raises :class:`PartitionedError` if it has several.

    The first call of each method asks; later ones are the log's own, and cost nothing more.
    """

    partition = 0

    def __init__(self, log: Log, count: PartitionCount) -> None:
        self._log = log
        self._count = count
        self.stream_key = log.stream_key

    def __reduce__(self) -> tuple[type[OnlyLog], tuple[Log, PartitionCount]]:
        return OnlyLog, (self._log, self._count)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        method = getattr(self._log, name)

        def checked(*arguments: Any, **options: Any) -> Any:
            self._count.check_only(f"{name!r} of log {self.stream_key!r} without a partition")
            vars(self)[name] = method
            return method(*arguments, **options)

        return checked
