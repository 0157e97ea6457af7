"""What one node knows of a deployment: which segment of each schema is current here, and the node's own name.

A *node* is the processes that share one ``shm_dir``: a machine, or a pod. Each node has a copy of the rows, so which
segment is current is a fact of the node and is in a file of its ``shm_dir``, where no other node can change it and
every process finds it while the control plane is away. The file is ``quorin-node-<identity of the deployment>``, JSON.
Those who may read the node's segments may read it, and only its owner writes it. It is replaced whole, by one process
after another, as :mod:`quorin.engine.memory.turns` does it.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from quorin.engine.backend.protocols import Beginning, in_order
from quorin.engine.format.name import SegmentName
from quorin.engine.memory.access import Access, grant, why_not
from quorin.engine.memory.turns import make_empty, replace_in_turn
from quorin.errors import CorruptSegmentError, SegmentNotFoundError, SharedMemoryError

if TYPE_CHECKING:
    from pathlib import Path

    from quorin.engine.backend import Backend
    from quorin.engine.backend.protocols import Beginnings

T = TypeVar("T")

FORMAT = 1
_PREFIX = "quorin-node-"


@dataclass(frozen=True, slots=True)
class NodeState:
    """The content of a node's file.

    ``node`` is a random name: a machine that was rebooted, or a new pod, is a new node, as it has no rows. ``former``
    are identities that the deployment had before its control plane was wiped; ``addresses`` are where it was reached,
    none if only its successor is.
    ``beginnings`` has the log identity and position behind which the rows of a current segment begin, with several
    partitions those of each: it tells a segment of a schema from one of an earlier, dropped schema of that name.
    ``growth`` is what the control plane had of growths to more partitions, if there were any.
    """

    identity: int
    node: str
    namespace: str
    addresses: tuple[str, ...] = ()
    former: tuple[int, ...] = ()
    currents: Mapping[str, str] = field(default_factory=dict)
    beginnings: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    growth: str | None = None

    def beginning_of(self, schema_name: str) -> Beginnings:
        """Where the rows of a schema's current segment begin; None at the start of the log."""
        at = self.beginnings.get(schema_name)
        if at is None or not isinstance(at[0], tuple):
            return None if at is None else Beginning(*at)
        return tuple(Beginning(*one) for one in at)

    def with_current(self, schema_name: str, segment_name: str, beginning: Beginnings) -> NodeState:
        """The state in which a segment is current, whose rows begin at ``beginning``."""
        beginnings = _without(self.beginnings, schema_name)
        if beginning is not None:
            each = tuple(astuple(one) for one in in_order(beginning))
            beginnings[schema_name] = each[0] if isinstance(beginning, Beginning) else each
        return replace(self, currents={**self.currents, schema_name: segment_name}, beginnings=beginnings)

    def without_current(self, schema_name: str) -> NodeState:
        """The state in which no segment of a schema is current."""
        currents, beginnings = _without(self.currents, schema_name), _without(self.beginnings, schema_name)
        return replace(self, currents=currents, beginnings=beginnings)

    def to_json(self) -> str:
        """The text of the file."""
        values = {"format": FORMAT, **asdict(self)}
        if self.growth is None:  # Earlier releases read the file.
            del values["growth"]
        return json.dumps(values)

    @classmethod
    def from_json(cls, path: Path, text: str | bytes) -> NodeState:
        """The state in a file. :raises CorruptSegmentError: if it is damaged, or of a newer release."""
        try:
            values = json.loads(text)
            written = values.pop("format")
            if written == FORMAT:
                values["addresses"], values["former"] = tuple(values["addresses"]), tuple(values["former"])
                values["beginnings"] = {name: _tuples(at) for name, at in values["beginnings"].items()}
                return cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptSegmentError(
                f"{path} is damaged ({error}): remove it, and the node's segments are built anew"
            ) from error
        raise CorruptSegmentError(f"{path} has format {written!r}, this release of Quorin reads {FORMAT}")


class Node:
    """The node's state for the deployment of a backend, read from its file at each call. Threads may share it.

    The file is made when the node first meets the deployment, with the segments that earlier releases recorded in the
    control plane. The file of a server's deployment is found by the server's address, without contacting it. The
    identity of an embedded store is in the store, so one that was deleted and made anew is another deployment.
    Members of ``group`` may read the file, as far as this object writes it; without a group, access stays as it is.

    :raises ConnectionFailedError: from every method, if the node has no file yet and the control plane cannot be
        reached. :raises CorruptSegmentError: likewise, if the file is damaged.
    :raises SharedMemoryError: if it cannot be read or written.
    """

    def __init__(self, directory: Path, backend: Backend, group: int | None = None) -> None:
        self._directory = directory
        self._backend = backend
        self._group = group
        self._path: Path | None = None
        self._cached: tuple[tuple[int, int, int], NodeState] | None = None

    def check_reachable(self) -> None:
        """:raises ConnectionFailedError: if the node's file can't be found, nor the control plane be reached."""
        if not self.is_known:
            self._backend.check()

    @property
    def is_known(self) -> bool:
        """Whether the node's file can be found without contacting a server."""
        return not self._backend.is_remote or self._found_by_address() is not None

    @property
    def id(self) -> str:
        """The node's random name: 16 hex digits."""
        return self.state().node

    @property
    def identity(self) -> int:
        """The deployment's identity, which this node's segments carry."""
        return self.state().identity

    def current(self, schema_name: str) -> str | None:
        """The name of the current segment of a schema, or None."""
        return self.currents().get(schema_name)

    def currents(self) -> dict[str, str]:
        """The names of all current segments, by schema name."""
        state = self._state_if_made()
        return _legacy_currents(self._directory, self._backend) if state is None else dict(state.currents)

    def publish(
        self,
        schema_name: str,
        segment_name: str,
        *,
        expected: str | None,
        beginning: Beginnings,
        before: Callable[[], None],
    ) -> bool:
        """Make a segment current, whose rows begin at ``beginning``, if ``expected`` (None: none) is current now; False
        if it is not.

        ``before`` is called after the comparison, while no other process changes what is current on the node: if one
        does because this process was frozen, the comparison is repeated. If it raises, nothing has changed.
        """

        def published(state: NodeState) -> NodeState:
            before()
            return state.with_current(schema_name, segment_name, beginning)

        return self._change_if(schema_name, expected, published)

    def swap(self, schema_name: str, segment_name: str, *, expected: str) -> bool:
        """Replace the name of a current segment by that of a later generation; False if it is not ``expected``."""

        def swapped(state: NodeState) -> NodeState:
            return replace(state, currents={**state.currents, schema_name: segment_name})

        return self._change_if(schema_name, expected, swapped)

    def clear(self, schema_name: str, *, expected: str) -> bool:
        """Let no segment be current for a schema if ``expected`` is now; False if it is not."""
        return self._change_if(schema_name, expected, lambda state: state.without_current(schema_name))

    def remember_growth(self, text: str) -> None:
        """Keep what the control plane has of growths, to give it back if it is wiped."""
        if self.state().growth != text:
            self._change(lambda state: replace(state, growth=text))

    def confirm(self) -> None:
        """Compare the identity with the control plane's, which gets it back if it was wiped.

        If another process gave a wiped control plane another identity before, the node takes that one.

        :raises ConnectionFailedError: if the control plane cannot be reached.
        """
        state = self.state()
        identity = self._backend.control.identity(remembered=state.identity)
        if identity != state.identity and self._backend.is_remote:
            self._adopt(identity)

    def share(self, segment_path: Path) -> None:
        """Let the group, if there is one, read a segment of the node and the node's file, whoever made them.

        :raises SharedMemoryError: if this process may not.
        """
        if self._group is not None:
            grant(segment_path, self._group)
            grant(self._file(self.identity), self._group)

    def lock_path(self, purpose: str) -> Path:
        """A file of the node whose lock decides which process does something for the node; it is made if need be.

        :raises SharedMemoryError: if the node is another user's, whose processes could not use a lock of this one's.
        """
        _check_own(self._file(self.identity))
        return make_empty(self.beside(purpose))

    def beside(self, purpose: str) -> Path:
        """The path of the node's file for a purpose, whether or not there is one; of its own file for ``""``."""
        return self._file(self.identity).with_suffix(f".{purpose}" if purpose else "")

    def state(self) -> NodeState:
        """The present state."""
        if self._path is None or not self._backend.is_remote:
            self._path = self._located()
        while True:
            state = self._read(self._path)
            if state is not None and state.addresses:
                return state
            self._path = self._located()

    def _state_if_made(self) -> NodeState | None:
        """The state if there is a file. None is made: a process that only reads may be of another user than those that
        write, and they could not change its file.
        """
        if self._backend.is_remote:
            if self._path is None or self._read(self._path) is None:
                self._path = self._found_by_address()
            if self._path is not None:
                return self._read(self._path)
        path = self._file(self._backend.control.identity())
        if self._backend.is_remote and os.access(path, os.W_OK):
            self._add_address(path)
        return self._read(path)

    def _located(self) -> Path:
        """The node's file, which is made if there is none."""
        if self._backend.is_remote and (path := self._found_by_address()) is not None:
            return path
        identity = self._backend.control.identity()
        path = self._file(identity)
        if self._read(path) is None:
            self._make(path, identity)
        elif self._backend.is_remote:
            self._add_address(path)
        return path

    def _found_by_address(self) -> Path | None:
        backend = self._backend
        for path in _files(self._directory):
            # A file that is damaged or another user's hides no other. If it is this deployment's, the error comes when
            # the control plane has said so.
            with suppress(CorruptSegmentError, SharedMemoryError):
                state = self._read(path)
                if state and state.namespace == backend.namespace and backend.address in state.addresses:
                    return path
        return None

    def _make(self, path: Path, identity: int) -> None:
        """Make the file, with the segments that an earlier release recorded."""
        namespace, addresses = self._backend.namespace, (self._backend.address,)
        legacy = _legacy_currents(self._directory, self._backend)
        new = NodeState(identity, secrets.token_hex(8), namespace, addresses, currents=legacy)
        self._replace(path, lambda state: new if state is None else None)

    def _add_address(self, path: Path) -> None:
        address = self._backend.address

        def with_it(state: NodeState | None) -> NodeState | None:
            if state is None or address in state.addresses:
                return None
            return replace(state, addresses=(*state.addresses, address))

        self._replace(path, with_it)

    def _adopt(self, identity: int) -> None:
        """Carry the state over to another identity of the same deployment."""
        path, old_path = self._file(identity), self._file(self.identity)

        def left(state: NodeState) -> NodeState | None:
            """The old state without this address, when its successor has a file."""
            if state.identity == identity:  # Another process of the node was first.
                return None
            adopted = replace(state, identity=identity, former=(*state.former, state.identity))
            self._replace(path, lambda present: adopted if present is None else None)
            return replace(state, addresses=tuple(one for one in state.addresses if one != self._backend.address))

        if self._change(left):
            old = self._read(old_path)
            if old is not None and not old.addresses:
                old_path.unlink(missing_ok=True)
        self._add_address(path)
        self._path = path

    def _change_if(self, schema_name: str, expected: str | None, change: Callable[[NodeState], NodeState]) -> bool:
        """Change the state if ``expected`` is the current segment of a schema; False if it is not."""
        return self._change(lambda state: change(state) if state.currents.get(schema_name) == expected else None)

    def _change(self, change: Callable[[NodeState], NodeState | None]) -> bool:
        """Let the state become what ``change`` makes of it; False if that is None. It may be called more than once."""
        while True:
            is_gone = False

            def changed(state: NodeState | None) -> NodeState | None:
                nonlocal is_gone
                is_gone = state is None or not state.addresses  # It was carried over to another identity this moment.
                return None if state is None or is_gone else change(state)

            is_changed = self._replace(self._file(self.identity), changed)
            if not is_gone:
                return is_changed

    def _replace(self, path: Path, change: Callable[[NodeState | None], NodeState | None]) -> bool:
        """Likewise of the state in a file, which is None if there is no file."""

        def text_and_access() -> tuple[str, Access] | None:
            state = change(self._read(path))
            return None if state is None else (state.to_json(), _access(self._group, path, self._path))

        return replace_in_turn(path, text_and_access)

    def _file(self, identity: int) -> Path:
        return self._directory / f"{_PREFIX}{identity:016x}"

    def _read(self, path: Path) -> NodeState | None:
        try:
            status = path.stat()
            signature = status.st_ino, status.st_mtime_ns, status.st_size
            cached = self._cached
            if cached is not None and cached[0] == signature:
                return cached[1]
            state = NodeState.from_json(path, path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            reason = f"{error.strerror}{why_not(path, writing=False)}"
            raise SharedMemoryError(error.errno, f"cannot read {path}: {reason}") from error
        self._cached = signature, state
        return state


def _legacy_currents(directory: Path, backend: Backend) -> dict[str, str]:
    """The segments that an earlier release recorded and that have files here."""
    return {
        schema_name: text
        for schema_name, text in backend.control.legacy_currents().items()
        if (name := SegmentName.match(text)) is not None and name.siblings(directory)
    }


def _access(group: int | None, *present: Path | None) -> Access:
    """Of a new state's file: the group's, or else that of the first of the ``present`` files that is there."""
    if group is not None:
        return Access.for_group(group)
    for path in filter(None, present):
        with suppress(SegmentNotFoundError):
            return Access.of(path)
    return Access()


def _tuples(at: list[Any]) -> tuple[Any, ...]:
    return tuple(tuple(one) if isinstance(one, list) else one for one in at)


def _without(mapping: Mapping[str, T], name: str) -> dict[str, T]:
    return {key: value for key, value in mapping.items() if key != name}


def _check_own(file: Path) -> None:
    """:raises SharedMemoryError: if the node of a file is another user's."""
    if not os.access(file, os.W_OK):
        reason = f"{os.strerror(errno.EACCES)}{why_not(file, writing=True)}"
        raise SharedMemoryError(errno.EACCES, f"cannot apply the log on the node of {file}: {reason}")


def _files(directory: Path) -> list[Path]:
    return [path for path in sorted(directory.glob(f"{_PREFIX}*")) if not path.suffix]
