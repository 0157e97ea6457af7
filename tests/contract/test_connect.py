"""What is no control plane, or cannot be reached, is refused at once, by its address and without its password."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
from hypothesis import given

from quorin.engine.backend import Beginning, connect, keys
from quorin.errors import ConnectionFailedError, LogFullError
from tests.support.http import make_certificate
from tests.support.passwords import urls_with_passwords, without_password
from tests.support.redis_server import RedisServer, emptied

SECRET = "hunter2-hunter2"  # noqa: S105 - must not be seen


def failure(connection: Any) -> str:
    """The whole report of the error that a connection meets."""
    with pytest.raises(ConnectionFailedError) as caught:
        connect(connection)
    report = "".join(traceback.format_exception(caught.value))
    assert SECRET not in report
    assert isinstance(caught.value, ConnectionError)
    return str(caught.value)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("connection", [None, 5, b"/tmp/x", "", "a\0b", object(), ["redis://x"]])
def test_what_is_no_connection_is_refused(connection: Any) -> None:
    assert "expected" in failure(connection)


def test_settings_of_pools_are_taken_and_left_alone(redis_server: RedisServer) -> None:
    backend = connect(f"unix://{redis_server.socket}?max_connections=2&timeout=3")
    assert backend.control.schemas() is not None
    backend.close()


def test_unknown_schemes_and_forgotten_schemes_are_explained() -> None:
    assert "URL scheme 'http' is not known" in failure(f"http://u:{SECRET}@host/")
    assert "write 'redis://localhost:6379'" in failure("localhost:6379")
    assert not Path("localhost:6379").exists()


@pytest.mark.parametrize(
    "url", [f"redis://:{SECRET}@h:port/0", f"redis://u:{SECRET}@[::1/0", f"redis://h:6x?password={SECRET}"]
)
def test_broken_urls_are_refused_without_their_password(url: str) -> None:
    assert "is wrong" in failure(url)


@given(
    urls_with_passwords(
        "redis://u:PASSWORD@127.0.0.1:1/0",
        "redis://127.0.0.1:1/0?password=PASSWORD",
        "redis://127.0.0.1:1/0?db=x&password=PASSWORD",
        "redis://127.0.0.1:1?speed=9&password=PASSWORD",
        "redis://:PASSWORD@127.0.0.1:port",
        "redis://u:PASSWORD",
        "redis://u:PASSWORD@127.0.0.1:1,127.0.0.1:2?cluster=true",
        "redis://127.0.0.1:1?cluster=true&password=PASSWORD",
        "redis+sentinel://u:PASSWORD@127.0.0.1:1/svc",
        "redis+sentinel://127.0.0.1:1/svc?sentinel_password=PASSWORD",
        "unix://:PASSWORD@/no/r.sock",
        "rdis://u:PASSWORD@h",
        "redis:/u:PASSWORD@h",
        "Redis:u:PASSWORD@h",
        "u:PASSWORD@127.0.0.1:1",
        "rdis://u:PASSWORD@h\0",
    )
)
def test_nothing_of_a_password_is_in_an_error(url: str) -> None:
    for connection in (url, url.encode()):
        with pytest.raises(ConnectionFailedError) as caught:
            connect(connection)
        without_password(caught.value)


@pytest.mark.parametrize("url", [f"redis://:{SECRET}/x@localhost:1/0", f"redis://u:12/{SECRET}@localhost:1/0"])
def test_passwords_that_must_be_escaped_are_explained(url: str) -> None:
    assert failure(url).startswith("the Redis URL redis://… is wrong: expected redis://[user:password@]host:port/db")
    assert "%2F for /" in failure(url)


def test_settings_with_bad_values_are_named() -> None:
    assert failure(f"redis://u:{SECRET}@h:1/0?timeout=x").startswith("the Redis URL redis://h:1/0 is wrong: ")
    assert "'timeout'" in failure(f"redis://u:{SECRET}@h:1/0?timeout=x")


def test_a_server_that_does_not_know_passwords_may_not_quote_them() -> None:
    """It quotes the first 128 bytes of what it was sent, which is no longer the password."""
    server = RedisServer("--rename-command", "AUTH", '""')
    try:
        assert "unknown command" in failure(f"unix://:{SECRET * 20}@{server.socket}")
    finally:
        server.stop()


def test_escaped_passwords_are_sent_as_they_are_meant() -> None:
    password = f"{SECRET}/?#@:%41"
    server = RedisServer("--requirepass", password)
    try:
        connect(f"unix://:{quote(password, safe='')}@{server.socket}").close()
        connect(f"unix://default:{quote(password, safe='')}@{server.socket}").close()
    finally:
        server.stop()


def test_unknown_settings_are_named(free_port: int) -> None:
    assert "'speed'" in failure(f"redis://:{SECRET}@127.0.0.1:{free_port}?speed=9")


def test_an_unreachable_server_is_named_in_time(free_port: int, tmp_path: Path) -> None:
    started = time.monotonic()
    assert f"redis://127.0.0.1:{free_port}/3" in failure(f"redis://user:{SECRET}@127.0.0.1:{free_port}/3")
    assert f"redis://127.0.0.1:{free_port}/0" in failure(redis.Redis(port=free_port, host="127.0.0.1", password=SECRET))
    assert str(tmp_path / "no.sock") in failure(f"unix://{tmp_path}/no.sock")
    assert time.monotonic() - started < 20


def test_a_server_that_never_answers_is_named_in_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        started = time.monotonic()
        assert f"redis://127.0.0.1:{port}/0" in failure(f"redis://:{SECRET}@127.0.0.1:{port}?socket_timeout=0.5")
        assert time.monotonic() - started < 20


def test_a_wrong_password_is_refused_and_a_right_one_works() -> None:
    server = RedisServer("--requirepass", SECRET)
    try:
        assert "Authentication" in failure(server.url)
        assert "invalid" in failure(f"unix://:{SECRET}wrong@{server.socket}")
        backend = connect(f"unix://:{SECRET}@{server.socket}")
        backend.log().append([("A", b"x")])
        assert SECRET not in backend.address
        backend.close()
    finally:
        server.stop()


def test_an_acl_user_needs_no_more_than_the_keys_of_its_namespace() -> None:
    rules = ["on", f">{SECRET}", "resetkeys", "~{team}:*", "resetchannels", "-@all", "+@read", "+@write", "+@scripting"]
    server = RedisServer("--user", "default", "off", "--user", "ann", *rules, "+@connection")
    try:
        url = f"unix://ann:{SECRET}@{server.socket}"
        backend = connect(url, namespace="team")
        log = backend.log()
        positions = log.append([("A", b"x")])
        assert log.read(0, block_ms=10).entries == [(positions[0], b"x")]
        log.bury(positions[0], b"x", "bad")
        assert log.trim(positions[0]) == 1
        assert backend.control.swap_schema("A", "{}", expected=None)
        backend.control.announce("a:1:2", "{}")
        assert backend.control.silences()["a:1:2"] >= 0
        backend.close()
        with pytest.raises(ConnectionFailedError, match="permission"):
            connect(url, namespace="other").log().append([("A", b"x")])
        assert "Authentication" in failure(server.url)
        assert "invalid" in failure(f"unix://ann:{SECRET}wrong@{server.socket}")
    finally:
        server.stop()


def test_tls_is_spoken_and_the_server_s_certificate_is_checked(redis_server: RedisServer, tmp_path: Path) -> None:
    """A server's TLS, ended by a proxy in front of it: not every redis-server is built with it."""
    certificate, key = make_certificate(tmp_path)
    emptied(redis_server)
    with tls_proxy(redis_server.socket, certificate, key) as port:
        backend = connect(f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}")
        positions = backend.log().append([("A", b"x" * 100_000)])
        assert [position for position, _ in backend.log().read(positions[0] - 1).entries] == positions
        assert backend.address == f"rediss://127.0.0.1:{port}/0"
        backend.close()
        assert "certificate verify failed" in failure(f"rediss://127.0.0.1:{port}")
        assert f"redis://127.0.0.1:{port}/0" in failure(f"redis://127.0.0.1:{port}?socket_timeout=1")


@contextmanager
def tls_proxy(target: Path, certificate: Path, key: Path) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind = await asyncio.open_unix_connection(target)
        await asyncio.gather(copy(reader, behind[1]), copy(behind[0], writer))

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(server.close)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.1), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def test_a_server_that_dies_is_named_and_used_again_when_it_is_back(tmp_path: Path) -> None:
    server = RedisServer("--appendonly", "yes", "--appendfsync", "always")
    try:
        backend = connect(server.url)
        positions = backend.log().append([("A", b"x")])
        identity = backend.log().identity()
        server.kill()
        started = time.monotonic()
        for use in (backend.log().bounds, backend.log().identity, lambda: backend.log().read(0, block_ms=100)):
            with pytest.raises(ConnectionFailedError, match=str(server.socket)):
                use()
        assert time.monotonic() - started < 30
        server.start()
        assert backend.log().read(0).entries == [(positions[0], b"x")]
        assert backend.log().identity() == identity
        backend.close()
    finally:
        server.stop()


def test_a_server_out_of_memory_is_a_full_log() -> None:
    server = RedisServer("--maxmemory", "3mb", "--maxmemory-policy", "noeviction")
    try:
        backend = connect(server.url)
        with pytest.raises(LogFullError, match="maxmemory"):
            [backend.log().append([("A", bytes(100_000))]) for _ in range(100)]
        backend.close()
    finally:
        server.stop()


def test_a_client_keeps_its_settings_and_its_answers(redis_server: RedisServer, redis_url: str) -> None:
    client = redis.Redis(unix_socket_path=str(redis_server.socket), db=2, decode_responses=True)
    backend = connect(client)
    backend.log().append([("A", b"\xff")])
    assert [payload for _, payload in backend.log().read(0).entries] == [b"\xff"]
    assert backend.address.endswith("?db=2")
    assert sorted(client.keys()) == ["{quorin}:quorin:wal", "{quorin}:quorin:wal:identity"]
    backend.close()
    assert client.ping()
    client.close()


@pytest.mark.parametrize("protocol", [2, 3])
def test_both_versions_of_the_protocol_give_the_same(redis_url: str, protocol: int) -> None:
    backend = connect(f"{redis_url}?protocol={protocol}")
    log = backend.log()
    assert log.read(0, block_ms=5).entries == []
    positions = log.append([("A", b"1"), ("A", b"2")])
    assert log.read(0).entries == list(zip(positions, [b"1", b"2"], strict=True))
    assert log.bounds().last == positions[1]
    log.bury(3, b"x", "bad")
    assert [letter.position for letter in log.dead_letters()] == [3]
    backend.control.put_schema("A", "{}")
    assert backend.control.schemas() == {"A": "{}"}
    backend.close()


def test_a_deleted_stream_is_another_log(redis_url: str) -> None:
    backend = connect(redis_url)
    log = backend.log()
    log.append([("A", b"1")])
    identity = log.identity()
    with redis.Redis.from_url(redis_url) as client:
        client.delete(keys.log_keys("quorin", "quorin:wal").stream)
    log.append([("A", b"2")])
    assert log.identity() != identity
    backend.close()


def test_sequence_numbers_never_run_over(redis_url: str) -> None:
    backend = connect(redis_url)
    log = backend.log()
    far = 1 << 43  # a clock far ahead, so that only sequence numbers can grow
    with redis.Redis.from_url(redis_url) as client:
        log.identity()
        client.xadd(
            keys.log_keys("quorin", "quorin:wal").stream, {"s": "A", "p": "0"}, id=f"{far}-{keys.MAX_SEQUENCE - 1}"
        )
    positions = log.append([("A", b"1"), ("A", b"2"), ("A", b"3")])
    assert [p >> 20 for p in positions] == [far, far + 1, far + 1]
    assert [payload for _, payload in log.read(0).entries] == [b"0", b"1", b"2", b"3"]
    assert [position for position, _ in log.read(0).entries][1:] == positions
    backend.close()


def test_every_key_carries_the_namespace_as_hash_tag(redis_url: str) -> None:
    backend = connect(redis_url, namespace="team-a")
    backend.control.swap_schema("A", "{}", expected=None, beginning=Beginning(1, 2))
    backend.control.announce("a:1:2", "{}")
    backend.control.identity()
    backend.control.put_schema("A", "{}")
    backend.log("my:log").append([("A", b"1")])
    backend.log("my:log").bury(1, b"1", "bad")
    with redis.Redis.from_url(redis_url) as client:
        assert all(key.startswith(b"{team-a}:") for key in client.scan_iter())
        assert client.type("{team-a}:my:log") == b"stream"
    backend.close()


# The embedded control plane


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    backend = connect(tmp_path / "store")
    backend.log().append([("A", b"1")])
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "store").iterdir()} == {0o600}
    assert backend.address == str(tmp_path / "store")
    backend.close()


def test_paths_that_cannot_be_directories_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "its parent does not exist" in failure(tmp_path / "no" / "store")
    assert "is something else" in failure(tmp_path / "file")
    assert str(tmp_path / "file") in failure(tmp_path / "file" / "store")


def test_a_file_of_another_kind_or_format_is_refused(tmp_path: Path) -> None:
    import sqlite3

    (tmp_path / "quorin.db").write_bytes(b"this is no database, and long enough to be looked at as one" * 10)
    assert "not a database" in failure(tmp_path)
    (tmp_path / "quorin.db").unlink()
    with sqlite3.connect(tmp_path / "quorin.db") as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    assert "has format 9, this release reads 4" in failure(tmp_path)


@pytest.mark.parametrize("namespace", ["", "a b", "{x}", None, 5])
def test_bad_namespaces_are_refused(tmp_path: Path, namespace: Any) -> None:
    with pytest.raises(ConnectionFailedError, match="namespace"):
        connect(tmp_path, namespace=namespace)


def test_a_second_connection_leaves_the_locks_of_the_first_alone(tmp_path: Path) -> None:
    """Else a process that ends would take itself for the last one, and remove the write-ahead log under the others."""
    store = tmp_path / "store"
    with contextlib.closing(connect(store)) as first:
        first.log().append([("A", b"1")])
        with contextlib.closing(connect(store)) as second:
            second.log().append([("A", b"2")])
            script = "import sys; from quorin.engine.backend import connect; connect(sys.argv[1]).close()"
            subprocess.run([sys.executable, "-c", script, str(store)], check=True)
            assert (store / "quorin.db-wal").exists()
            first.log().append([("A", b"3")])
            assert [payload for _, payload in second.log().read(0).entries] == [b"1", b"2", b"3"]
