"""Processes in network namespaces of their own, and the link between two; all goes when the processes end."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from functools import cache

IN_NAMESPACE = ("unshare", "-n")
SERVER, CLIENT = "10.0.0.1", "10.0.0.2"
_LINK = "link0"


@cache
def has_networks() -> bool:
    """Whether this user can make network namespaces and links, which only root can."""
    command = [*IN_NAMESPACE, "ip", "link", "add", _LINK, "type", "veth", "peer", "name", "link1"]
    with suppress(OSError):
        return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0
    return False


class Link:
    """The link from a server's process to a client's."""

    def __init__(self, server_pid: int, client_pid: int) -> None:
        self._client_pid = client_pid
        ends = ("name", _LINK, "netns", str(server_pid)), ("name", _LINK, "netns", str(client_pid))
        # Made in a third namespace, so that its names meet none of the machine's.
        _run(*IN_NAMESPACE, "ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for pid, address in ((server_pid, SERVER), (client_pid, CLIENT)):
            _inside(pid, "addr", "add", f"{address}/24", "dev", _LINK)
            _inside(pid, "link", "set", _LINK, "up")

    def cut(self) -> None:
        _inside(self._client_pid, "link", "set", _LINK, "down")

    def mend(self) -> None:
        _inside(self._client_pid, "link", "set", _LINK, "up")


def _inside(pid: int, *words: str) -> None:
    _run("nsenter", "-t", str(pid), "-n", "ip", *words)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)
