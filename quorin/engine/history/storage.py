"""Storage of files, of the history or of snapshots: a directory, or any filesystem that pyarrow supports.

Files appear complete or not at all. In a directory, a file is written under a temporary name, synced and renamed, and
the directory is synced. On an object store an object appears when its upload is complete, so it is uploaded under its
final name. On other remote filesystems a file is written under a temporary name and moved.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from quorin.engine.history.counted import is_commit
from quorin.engine.history.files import PENDING_SUFFIX, DataFile, parse_path
from quorin.engine.paths import absolute
from quorin.engine.urls import URL_FORM, is_malformed, secrets_in, shown, without_secrets
from quorin.errors import ConnectionFailedError, CorruptHistoryError, HistoryUnavailableError, QuorinError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_OBJECT_STORES = {"s3", "gcs", "abfs"}
LEFTOVER_SECONDS = 3600.0
_Item = TypeVar("_Item")


class VanishedError(HistoryUnavailableError):
    """A listed file is gone: a compaction has merged it into another."""


class Listing:
    """A schema's folder: data files, foreign files, and leftovers of writers that died."""

    def __init__(self) -> None:
        self.files: list[DataFile] = []
        self.foreign: list[str] = []
        self.leftovers: list[str] = []

    @property
    def through(self) -> int:
        """The last position of the data files; 0 without any."""
        return max((file.through for file in self.files), default=0)


class Storage:
    """A filesystem below a base, with atomic writes. Paths are the filesystem's own.

    ``address`` is the base without keys or passwords, for display. Errors are of the type ``error``, and say that
    ``what`` is unavailable.
    """

    def __init__(
        self,
        base: Any,
        filesystem: fs.FileSystem | None,
        *,
        what: str = "history",
        error: type[ConnectionFailedError] = HistoryUnavailableError,
    ) -> None:
        self._what, self._error = what, error
        try:
            self._fs, self.root = _resolve(base, filesystem)
        except HistoryUnavailableError as failure:
            raise error(str(failure)) from None
        self.is_local = isinstance(self._fs, fs.LocalFileSystem)
        self._hidden = _secrets_in(os.fspath(base))
        self.address = _shown(os.fspath(base))
        self.in_memory: dict[str, pa.Buffer] = {}
        """Files by path that are read from memory; see :meth:`with_file`."""

    def folder(self, *names: str) -> str:
        """A path under the base."""
        return "/".join((self.root, *names))

    def prepare(self) -> None:
        """Create a local base. :raises HistoryUnavailableError: if it is not writable."""
        if self.is_local:
            self._guarded(self.root, lambda: _make_writable(Path(self.root)))

    def exists(self) -> bool:
        """Whether the base exists; in an object store, whether it has objects."""
        info = self._guarded(self.root, lambda: self._fs.get_file_info(self.root))
        return bool(info.type == fs.FileType.Directory)

    def under(self, *names: str) -> Storage:
        """The storage of a folder under the base."""
        other = copy(self)
        other.root, other.address = self.folder(*names), "/".join((self.address.rstrip("/"), *names))
        return other

    def folders(self) -> list[str]:
        """The names of the folders under the base, sorted; none if it does not exist."""
        selector = fs.FileSelector(self.root, allow_not_found=True)

        def listed() -> list[fs.FileInfo]:
            with contextlib.suppress(NotADirectoryError):
                return self._found(selector)
            return []

        infos = self._guarded(self.root, listed)
        return sorted(info.base_name for info in infos if info.type == fs.FileType.Directory)

    def files(self, folder: str) -> list[fs.FileInfo]:
        """All files below a folder; none if the folder does not exist."""
        selector = fs.FileSelector(folder, recursive=True, allow_not_found=True)
        infos = self._guarded(folder, lambda: self._found(selector))
        return [info for info in infos if info.type == fs.FileType.File]

    def _found(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        """What there is. A folder that is made while Arrow lists it, by the first flush, is an error at first: it was
        not there, but is when Arrow looks whether that may be.
        """
        with contextlib.suppress(FileNotFoundError):
            return list(self._fs.get_file_info(selector))
        return list(self._fs.get_file_info(selector))

    def listing(self, folder: str) -> Listing:
        """All files below a folder, by kind; empty if the folder does not exist."""
        found = Listing()
        old = time.time() - LEFTOVER_SECONDS
        for info in self.files(folder):
            if info.path.endswith(PENDING_SUFFIX):
                if info.mtime is None or info.mtime.timestamp() < old:
                    found.leftovers.append(info.path)
            elif (file := parse_path(info.path)) is not None:
                found.files.append(file)
            elif not is_commit(info.path):
                found.foreign.append(info.path)
        return found

    def with_file(self, path: str, content: pa.Buffer) -> Storage:
        """The same storage for reading, with one more file, which is in memory only."""
        other = copy(self)
        other.in_memory = {**self.in_memory, path: content}
        return other

    def open(self, path: str) -> pa.NativeFile:
        """Open a file for reading. :raises VanishedError: if it is gone."""
        if path in self.in_memory:
            return pa.BufferReader(self.in_memory[path])
        try:
            return self._fs.open_input_file(path)
        except FileNotFoundError as error:
            raise VanishedError(f"{path} is gone since it was listed") from error
        except OSError as error:
            raise self.unavailable(f"cannot read {path}", error) from self._cause(error)

    def write(self, path: str, fill: Callable[[Any], None]) -> None:
        """Create or replace a file with what ``fill`` writes to a sink.

        :raises HistoryUnavailableError: if that fails; the previous file, if any, is unchanged.
        """
        self._guarded(path, lambda: self._write_local(path, fill) if self.is_local else self._write_remote(path, fill))

    def stream(self, path: str, blocks: Iterable[Any]) -> None:
        """Create a file in a remote filesystem from blocks that need not fit in memory together.

        A failure may leave a part of the file: in an object store under its own name, elsewhere under another.
        """
        self._guarded(path, lambda: self._stream(path, blocks))

    def make_folder(self, *names: str) -> Path:
        """A local folder under the base, which is created."""
        folder = Path(self.folder(*names))
        self._guarded(str(folder), lambda: _make_folders(folder))
        return folder

    def remove(self, path: str) -> None:
        """Remove a file, if it exists."""

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.delete_file(path)

        self._guarded(path, delete)

    def _write_local(self, path: str, fill: Callable[[Any], None]) -> None:
        target = Path(path)
        _make_folders(target.parent)
        pending = target.with_name(f"{target.name}.{secrets.token_hex(4)}{PENDING_SUFFIX}")
        descriptor = os.open(pending, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with open(descriptor, "wb", closefd=False) as sink:
                fill(sink)
            os.fsync(descriptor)
            pending.rename(target)
        except BaseException:
            pending.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        sync_folder(target.parent)

    def _write_remote(self, path: str, fill: Callable[[Any], None]) -> None:
        # Closing a stream after an error would leave a partial object, so all bytes are collected first.
        memory = pa.BufferOutputStream()
        fill(memory)
        self._stream(path, [memory.getvalue()])

    def _stream(self, path: str, blocks: Iterable[Any]) -> None:
        in_place = self._fs.type_name in _OBJECT_STORES
        aside = path if in_place else f"{path}.{secrets.token_hex(4)}{PENDING_SUFFIX}"
        if not in_place:
            self._fs.create_dir(path.rpartition("/")[0], recursive=True)
        with self._fs.open_output_stream(aside) as sink:
            for block in blocks:
                sink.write(block)
        if not in_place:
            self._fs.move(aside, path)

    def _guarded(self, path: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, QuorinError):
                raise
            raise self.unavailable(f"the {self._what} at {self.address}: {path}", error) from self._cause(error)

    def unavailable(self, what: str, error: Exception) -> ConnectionFailedError:
        """The error to raise if a file cannot be read or written; its message holds no secrets."""
        return self._error(f"{what}: {without_secrets(str(error), self._hidden)}")

    def _cause(self, error: Exception) -> Exception | None:
        """The error, unless its message may hold secrets."""
        return None if self._hidden else error


def decoded(
    storage: Storage, path: str, read: Callable[[pa.NativeFile], Iterator[_Item]], damage: str
) -> Iterator[_Item]:
    """The items that ``read`` yields from an open file.

    Arrow raises ``OSError`` for damaged pages as well as for failed reads. So after an error the file is read again
    through a source that records failed reads. The file is damaged if all reads succeed and it still does not decode.

    :raises CorruptHistoryError: if the file was read and does not decode; the message contains ``damage``.
    :raises HistoryUnavailableError: if it cannot be opened or read, or was read only the second time.
    :raises VanishedError: if it is gone.
    """
    try:
        with storage.open(path) as source:
            yield from read(source)
    except (HistoryUnavailableError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise VanishedError(f"{path} is gone since it was listed") from error
    except (pa.ArrowException, OSError) as error:
        if _is_damaged(storage, path, read):
            raise CorruptHistoryError(f"{path} {damage}: {error}") from error
        raise storage.unavailable(f"cannot read {path}", error) from None


def _is_damaged(storage: Storage, path: str, read: Callable[[pa.NativeFile], Iterator[Any]]) -> bool:
    """Whether a file does not decode although every read succeeds."""
    with storage.open(path) as source:
        watched = _Watched(source)
        try:
            for _ in read(pa.PythonFile(watched, "r")):
                pass
        except FileNotFoundError as error:
            raise VanishedError(f"{path} is gone since it was listed") from error
        except MemoryError:
            raise
        except (pa.ArrowException, OSError):
            return not watched.has_failed
    return False


class _Watched:
    """A readable file that records whether a read failed."""

    def __init__(self, source: pa.NativeFile) -> None:
        self._source = source
        self.has_failed = False
        self.closed = False

    def read(self, count: int = -1) -> bytes:
        try:
            return bytes(self._source.read(None if count < 0 else count))
        except Exception:
            self.has_failed = True
            raise

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._source.seek(offset, whence))

    def tell(self) -> int:
        return int(self._source.tell())

    def close(self) -> None:
        self.closed = True


def sync_folder(folder: Path) -> None:
    """Sync a directory, so that new names survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folders(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync_folder(folder.parent)


def _make_writable(folder: Path) -> None:
    _make_folders(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "Permission denied")


def _resolve(base: Any, filesystem: fs.FileSystem | None) -> tuple[fs.FileSystem, str]:
    """The filesystem and the path in it. Unwraps sub-tree filesystems, so that local files are synced to disk."""
    text = os.fspath(base)
    if filesystem is None and "://" in text and is_malformed(text):
        raise HistoryUnavailableError(f"base {shown(text)!r} is malformed: expected {URL_FORM}")
    try:
        if filesystem is not None:
            path = text
        elif "://" in text:
            filesystem, path = fs.FileSystem.from_uri(text)
        else:
            filesystem, path = fs.LocalFileSystem(), text
    except (pa.ArrowException, OSError, ValueError, ImportError) as error:
        # Drop the cause, and any message that quotes the URL: it may reveal parts of a password.
        quotes_it = without_secrets(str(error), _secrets_in(text)) != str(error)
        reason = f"expected {URL_FORM}" if quotes_it else str(error)
        known = isinstance(error, OSError)
        problem = "cannot be reached" if known else "is neither a path nor a URL that pyarrow.fs knows"
        raise HistoryUnavailableError(f"base {_shown(text)!r} {problem}: {reason}") from None
    while isinstance(filesystem, fs.SubTreeFileSystem):
        path = f"{filesystem.base_path.rstrip('/')}/{path.lstrip('/')}"
        filesystem = filesystem.base_fs
    if isinstance(filesystem, fs.LocalFileSystem):
        path = str(absolute(path))
    return filesystem, path.rstrip("/")


def _shown(base: str) -> str:
    return shown(base) if "://" in base else base


def _secrets_in(base: str) -> list[str]:
    return secrets_in(base) if "://" in base else []
