"""The server's side of the process that sends a segment; see :mod:`quorin.engine.bootstrap.sender`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from quorin.engine.bootstrap import sender
from quorin.errors import QuorinError, SegmentNotFoundError

if TYPE_CHECKING:
    from quorin.engine.bootstrap.sender import Job


class TransferFailedError(QuorinError, RuntimeError):
    """The process that copies a segment failed; the message is its own."""


class TransferStoppedError(QuorinError, RuntimeError):
    """The process was stopped."""


class NewerFormatError(QuorinError, ValueError):
    """A segment has a newer format than was asked for."""

    def __init__(self, version: int) -> None:
        super().__init__(f"the segment has format {version}")
        self.version = version


class Copied(NamedTuple):
    """The name of a snapshot, and its bytes without the trailer."""

    name: str
    byte_count: int


class Sent(NamedTuple):
    """How many bytes were sent, and the trailer that has to follow; it is empty if not all were sent, as the other node
    went away, or took nothing for long.
    """

    byte_count: int
    trailer: bytes


class Transfer:
    """A process that copies a segment at once, and sends the copy when it is told to. The last call is :meth:`end`.

    It takes a descriptor of its own for where the bytes go; that of the caller can be closed.

    :raises TransferFailedError: if the process can't be started.
    """

    def __init__(self, job: Job) -> None:
        # The same installation, wherever it was found; not what lies in the working directory.
        paths = os.pathsep.join(str(Path(path).absolute()) for path in sys.path)
        self._segment, self._is_stopped, self._is_copied = job.segment, False, False
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-P", "-m", sender.__name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[job.descriptor],
                env={**os.environ, "PYTHONPATH": paths},
            )
        except OSError as error:
            raise TransferFailedError(f"cannot start the process that copies: {error.strerror}") from error
        self._order(json.dumps(job))

    def copied(self) -> Copied:
        """Wait for the copy.

        :raises SegmentNotFoundError: if there is no such segment any more. :raises NewerFormatError: if its format is
            newer than was asked for. :raises TransferStoppedError: if :meth:`stop` was called.
        :raises TransferFailedError: if it can't be copied.
        """
        words = self._answer()
        if "name" in words:
            self._is_copied = True
            return Copied(words["name"], words["bytes"])
        if "missing" in words:
            raise SegmentNotFoundError(f"segment {self._segment!r} is gone")
        if "format" in words:
            raise NewerFormatError(words["format"])
        if self._is_stopped:
            raise TransferStoppedError("the process that copies was stopped")
        raise TransferFailedError(words.get("error", f"the process that copies ended with {self._process.wait()}"))

    def begin(self) -> None:
        """Let it send."""
        self._order("")

    def sent(self) -> Sent:
        """Wait until it has sent all, or can't."""
        words = self._answer()
        return Sent(words.get("sent", 0), bytes.fromhex(words.get("trailer", "")))

    def stop(self) -> None:
        """Have it end, which ends calls that wait for it."""
        self._is_stopped = True
        if self._is_copied:
            self._process.kill()
        else:
            self._process.terminate()  # It removes the copy, which still has a name.

    def end(self) -> None:
        """Wait until it has ended, and the copy is gone with it."""
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _order(self, line: str) -> None:
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        with suppress(BrokenPipeError):  # The answer says so.
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        """A line of the process; nothing if it ended."""
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        line = self._process.stdout.readline()
        words: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {}
        return words
