"""URLs of a node's servers: they are there as long as the processes that registered them."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from quorin.engine.memory.addresses import addresses, register_address
from quorin.engine.memory.node import Node
from quorin.shm import SegmentRegistry
from tests.support.forking import context, preload

preload(__name__)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    (tmp_path / "shm").mkdir()
    registry = SegmentRegistry(tmp_path / "store", shm_dir=tmp_path / "shm")
    yield registry.node
    registry.backend.close()


def register_and_wait(directory: str, url: str, pipe: Connection) -> None:
    registry = SegmentRegistry(Path(directory, "store"), shm_dir=Path(directory, "shm"))
    held = register_address(registry.node, url)
    pipe.send(True)
    pipe.recv()
    held.release()
    pipe.send(True)


def test_urls_are_there_until_they_are_released(node: Node) -> None:
    assert addresses(node) == ()
    first = register_address(node, "http://10.0.0.1:6566/")
    second = register_address(node, "https://a.example:1")
    assert addresses(node) == ("http://10.0.0.1:6566", "https://a.example:1")
    first.release()
    first.release()
    assert addresses(node) == ("https://a.example:1",)
    second.release()
    assert addresses(node) == ()
    assert not [path for path in node.beside("").parent.iterdir() if ".serve" in path.name]


def test_two_servers_may_have_one_url(node: Node) -> None:
    """Behind one address of a proxy, or while one takes over from the other."""
    first, second = (register_address(node, "http://a:1") for _ in range(2))
    first.release()
    assert addresses(node) == ("http://a:1",)
    second.release()


@pytest.mark.parametrize("url", ["", "a:1", "ftp://a:1", "http://user:secret@a:1", "http://a:1?token=secret"])
def test_a_url_of_another_form_is_refused_without_its_secrets(node: Node, url: str) -> None:
    with pytest.raises(ValueError, match=r"expected http://host:port") as refused:
        register_address(node, url)
    assert "secret" not in str(refused.value)
    assert addresses(node) == ()


def test_the_url_of_a_killed_process_is_gone(node: Node, tmp_path: Path) -> None:
    ours, theirs = context.Pipe()
    process = context.Process(target=register_and_wait, args=(str(tmp_path), "http://b:2", theirs))
    process.start()
    assert ours.recv()
    assert addresses(node) == ("http://b:2",)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(60)
    assert addresses(node) == ()
    assert not [path for path in (tmp_path / "shm").iterdir() if ".serve" in path.name]


def test_a_forked_child_keeps_no_url_of_its_parent(node: Node) -> None:
    held = register_address(node, "http://c:3")
    child = os.fork()
    if not child:  # It must not take the parent's URL back.
        held.release()
        os._exit(0 if addresses(node) == ("http://c:3",) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert addresses(node) == ("http://c:3",)
    held.release()


def test_a_file_that_is_not_complete_is_no_url(node: Node) -> None:
    pending = node.lock_path("serve-0123456789abcdef.pending")
    assert addresses(node) == ()
    assert pending.exists()


def test_who_may_read_the_node_may_read_its_urls(node: Node) -> None:
    node.beside("").chmod(0o640)
    held = register_address(node, "http://d:4")
    [path] = node.beside("").parent.glob("*.serve-*")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    held.release()
