"""The least that a server can do: one answer for everything. `python -m benchmarks.constant_server PORT BYTES`."""

from __future__ import annotations

import asyncio
import sys

import uvloop


def main() -> None:
    """Serve until the process is ended."""
    port, size = map(int, sys.argv[1:])
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size

    class Constant(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, _: bytes) -> None:
            self.transport.write(answer)  # type: ignore[attr-defined]

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Constant, "127.0.0.1", port)
        await server.serve_forever()

    uvloop.run(serve())


if __name__ == "__main__":
    main()
