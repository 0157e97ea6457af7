"""Coverage-guided fuzzing of what clients send.

``python -m tests.support.fuzz_http protocol|requests FOLDER [libFuzzer's options]``: ``protocol`` sends bytes, in
pieces, to connections of an application that echoes, ``requests`` sends bodies to the short way of a Feast repository
in the folder.
It ends with an error at the first input that breaks a promise.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["quorin.engine.http", "feast_quorin.server", "uvicorn.protocols"]):
    import quorin.engine.http.observed
    import quorin.engine.http.protocol
    from feast_quorin.server import online_features
    from quorin.http import Limits
    from tests.support.echo_server import LIMITS, Echo

import orjson
import pandas as pd
import yaml
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Float32, String
from uvicorn import Config
from uvicorn.server import ServerState

SEEDS = {
    "protocol": [
        b"POST /direct HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc",
        b"POST /other HTTP/1.1\r\nexpect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\nGET /x?y=%20 HTTP/1.1\r\nupgrade: websocket\r\n\r\n",
    ],
    "requests": [
        b'{"features": ["view:number", "view:text"], "entities": {"key": ["a", "b", null]}}',
        b'{"feature_service": "none", "entities": {"key": [1, 1.5, true]}, "full_feature_names": true}',
        b'{"features": ["view:list"], "entities": {"key": ["a"]}, "include_feature_view_version_metadata": false}',
    ],
}


class Client:
    """The transport of a connection, which keeps what the server writes."""

    def __init__(self) -> None:
        self.written = b""
        self.is_closed = False

    def write(self, data: bytes) -> None:
        assert not self.is_closed, "written to a closed connection"
        self.written += data

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def get_extra_info(self, _: str) -> None:
        """There is no socket."""

    def pause_reading(self) -> None:
        """Bytes are sent one piece after the other."""

    resume_reading = pause_reading


def protocol() -> Callable[[bytes], None]:
    """A connection takes any bytes: it answers with 2xx or 4xx, or waits for more."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    app = quorin.engine.http.observed.Observed(Echo())
    config = Config(
        app, http=quorin.engine.http.protocol.DirectProtocol, ws="none", proxy_headers=False, log_level="critical"
    )
    config.load()

    def run(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        client, state = Client(), ServerState()

        async def talk() -> None:
            connection = quorin.engine.http.protocol.DirectProtocol(config, state, {})
            connection.connection_made(client)  # type: ignore[arg-type]
            while provider.remaining_bytes() and not client.is_closed:
                connection.data_received(provider.ConsumeBytes(provider.ConsumeIntInRange(1, 400)))
                await asyncio.sleep(0)
            for _ in range(5):
                await asyncio.sleep(0)
            connection.connection_lost(None)
            await asyncio.gather(*state.tasks)

        loop.run_until_complete(talk())
        assert not client.written or client.written.startswith((b"HTTP/1.1 2", b"HTTP/1.1 4", b"HTTP/1.1 100 "))

    return run


def requests(folder: Path) -> Callable[[bytes], None]:
    """The short way takes any body: it answers with JSON, or leaves the request to Feast."""
    settings = {
        "project": "fuzz",
        "provider": "local",
        "registry": str(folder / "registry.db"),
        "online_store": {"type": "quorin", "path": str(folder / "store"), "shm_dir": str(folder)},
        "entity_key_serialization_version": 3,
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    store = FeatureStore(repo_path=str(folder))
    key = Entity(name="key", join_keys=["key"], value_type=ValueType.STRING)
    fields = [
        Field(name="number", dtype=Float32),
        Field(name="text", dtype=String),
        Field(name="list", dtype=Array(Float32)),
    ]
    source = FileSource(path=str(folder / "none.parquet"), timestamp_field="at")
    store.apply([key, FeatureView(name="view", entities=[key], schema=fields, source=source)])
    row = {"key": ["a"], "number": [1.5], "text": ["x"], "list": [[1.0, 2.0]], "at": [pd.Timestamp(0, tz="UTC")]}
    store.write_to_online_store("view", pd.DataFrame(row))
    features = online_features.OnlineFeatures(store, Limits())
    headers = [(b"content-type", b"application/json")]

    def run(body: bytes) -> None:
        online_features.excess(body, LIMITS)
        reply = features.direct(body, headers)
        if reply is not None:
            assert reply.status == 200
            assert orjson.loads(reply.body)["metadata"]["feature_names"]

    return run


def main() -> None:
    target, folder, *options = sys.argv[1:]
    corpus = Path(folder) / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(SEEDS[target]):
        (corpus / str(number)).write_bytes(seed)
    run: Any = protocol() if target == "protocol" else requests(Path(folder))
    atheris.Setup([sys.argv[0], str(corpus), *options], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
