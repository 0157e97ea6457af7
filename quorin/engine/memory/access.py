"""Which users may open a segment's file, and the files beside it: the owner reads and writes, a group may read."""

from __future__ import annotations

import grp
import os
import pwd
import secrets
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quorin.errors import SegmentNotFoundError, SharedMemoryError, UnknownGroupError

if TYPE_CHECKING:
    from pathlib import Path

SHM_GROUP_VARIABLE = "QUORIN_SHM_GROUP"

_PRIVATE, _GROUP_READS, _READERS = 0o600, 0o640, 0o044
_MAX_GID = 2**32 - 2  # The number above it means "no group" to chown(2).
_AS_CREATED = -1


@dataclass(frozen=True, slots=True)
class Access:
    """The mode and the owners of a file. Nobody but the owner ever writes. By default nobody else reads."""

    mode: int = _PRIVATE
    user: int = _AS_CREATED
    group: int = _AS_CREATED

    @classmethod
    def for_group(cls, gid: int | None) -> Access:
        """Members of the group may read; nobody but the owner if ``gid`` is None."""
        return cls() if gid is None else cls(_GROUP_READS, group=gid)

    @classmethod
    def of(cls, path: Path) -> Access:
        """What a file's successor inherits: owners, and who may read.

        :raises SegmentNotFoundError: if it is gone. :raises SharedMemoryError: if the system refuses.
        """
        try:
            status = path.stat(follow_symlinks=False)
        except FileNotFoundError as error:
            raise SegmentNotFoundError(f"no segment file {path}") from error
        except OSError as error:
            raise SharedMemoryError(error.errno, f"cannot read the mode of {path}: {error.strerror}") from error
        group = status.st_gid if status.st_mode & stat.S_IRGRP else _AS_CREATED
        return cls(_PRIVATE | status.st_mode & _READERS, status.st_uid, group)

    def apply(self, descriptor: int, path: Path) -> None:
        """Give an open file this mode and these owners; ``path`` is for the error.

        :raises SharedMemoryError: if this process may not: it is no member of the group, or not the file's owner.
        """
        status = os.fstat(descriptor)
        changes = any(
            wanted not in (_AS_CREATED, present)
            for wanted, present in ((self.user, status.st_uid), (self.group, status.st_gid))
        )
        try:
            # In this order: between the two calls no group reads that is not to.
            if changes:
                os.fchown(descriptor, self.user, self.group)
            if stat.S_IMODE(status.st_mode) != self.mode:
                os.fchmod(descriptor, self.mode)
        except OSError as error:
            owner = status.st_uid if self.user == _AS_CREATED else self.user
            raise SharedMemoryError(error.errno, _refusal(path, owner, self.group, error)) from error


def grant(path: Path, gid: int) -> None:
    """Let a group read a segment that exists. A file that is gone needs nothing.

    :raises SharedMemoryError: if this process may not.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    except OSError as error:
        reason = f"{error.strerror}{why_not(path, writing=False)}"
        raise SharedMemoryError(error.errno, f"cannot open segment file {path}: {reason}") from error
    try:
        Access.for_group(gid).apply(descriptor, path)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str, access: Access) -> None:
    """Write a file aside and rename it into place: readers see the old text or the new one, whole.

    :raises SharedMemoryError: if the system refuses; the old file stays.
    """
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.pending")
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            access.apply(file.fileno(), path)
            file.write(text)
        aside.rename(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise SharedMemoryError(error.errno, f"cannot write {path}: {error.strerror}") from error


def resolve_group(group: str | int | None) -> int | None:
    """The gid of a setting: a group's name or a gid; None means ``QUORIN_SHM_GROUP``, and None without that.

    A gid need not be in the group database: in a container it rarely is.

    :raises UnknownGroupError: for a name that no group has, or a number out of range.
    """
    setting = (os.environ.get(SHM_GROUP_VARIABLE) or None) if group is None else group
    if setting is None:
        return None
    if isinstance(setting, bool) or not isinstance(setting, str | int):
        raise UnknownGroupError(f"shm_group: expected a group's name or a gid, got {setting!r}")
    if isinstance(setting, int) or setting.isdecimal():
        if 0 <= (gid := int(setting)) <= _MAX_GID:
            return gid
        raise UnknownGroupError(f"shm_group {setting!r} is no gid: expected 0 to {_MAX_GID}")
    try:
        return grp.getgrnam(setting).gr_gid
    except (KeyError, ValueError) as error:
        raise UnknownGroupError(
            f"shm_group {setting!r} is no group of this system: expected a name in its group database, or a gid"
        ) from error


def why_not(path: Path, *, writing: bool) -> str:
    """What keeps this process from opening a file, for an error; empty if its owner and mode don't tell."""
    try:
        status = path.stat(follow_symlinks=False)
    except OSError:
        return ""
    owner, me, mode = _user(status.st_uid), _user(os.geteuid()), stat.S_IMODE(status.st_mode)
    if status.st_uid == os.geteuid():
        return ""
    if writing:
        return f": only its owner, user {owner}, may write (mode {mode:04o}); this process is user {me}"
    if mode & stat.S_IRGRP:
        return (
            f": user {owner} and members of group {_group(status.st_gid)} may read (mode {mode:04o}); this process is "
            f"user {me}, which is not one of them"
        )
    return (
        f": only its owner, user {owner}, may read (mode {mode:04o}); this process is user {me}. Set shm_group, or "
        f"{SHM_GROUP_VARIABLE}, where segments are created, to a group of both users"
    )


def _refusal(path: Path, user: int, gid: int, error: OSError) -> str:
    me = _user(os.geteuid())
    if os.geteuid() not in (0, user):
        return f"cannot change who may read {path}: it belongs to user {_user(user)}, and this process is user {me}"
    own = sorted({os.getegid(), *os.getgroups()})
    return (
        f"cannot give {path} to group {_group(gid)} ({error.strerror}), which shm_group or the segment's last "
        f"generation names: user {me} must be a member of it; its groups are {', '.join(map(_group, own))}"
    )


def _user(uid: int) -> str:
    try:
        return f"{uid} ({pwd.getpwuid(uid).pw_name})"
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return f"{gid} ({grp.getgrgid(gid).gr_name})"
    except KeyError:
        return str(gid)
